package handoff

import (
	"bytes"
	"encoding/binary"
	"os"
	"strconv"
	"strings"
	"testing"
)

// table reads the table of docs/protocol.md whose head begins with these cells.
func table(t *testing.T, head ...string) [][]string {
	t.Helper()
	text, err := os.ReadFile("../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows [][]string
	inside := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			if inside {
				return rows
			}
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.Trim(strings.TrimSpace(cells[i]), "`")
		}
		switch {
		case inside && !strings.HasPrefix(line, "|---"):
			rows = append(rows, cells)
		case !inside && len(cells) >= len(head) && strings.Join(cells[:len(head)], "|") == strings.Join(head, "|"):
			inside = true
		}
	}
	t.Fatalf("docs/protocol.md has no table %q", head)
	return nil
}

func number(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestDocumentedEnvironment(t *testing.T) {
	var got []string
	for _, row := range table(t, "variable", "value") {
		got = append(got, row[0])
	}
	want := []string{EnvChannelFD, EnvSlot, EnvGeneration, EnvProtocol}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%q, want %q", got, want)
	}
}

// Each field is where the document has it, and they fill the frame.
func TestDocumentedLayout(t *testing.T) {
	f := Frame{Type: 0x11, Flags: 0x2221, Seq: 0x3837363534333231, Listener: 0x44434241, Arg: 0x54535251, Payload: []byte("12345")}
	want := map[string]uint64{
		"magic": 'R' | 'R'<<8 | 'D'<<16, "version": ProtocolVersion, "type": uint64(f.Type), "flags": uint64(f.Flags), "seq": f.Seq,
		"listener": uint64(f.Listener), "arg": uint64(f.Arg), "payload": uint64(len(f.Payload)), "zero": 0,
	}
	b := f.Append(nil)
	at := 0
	for _, row := range table(t, "offset", "size", "field") {
		offset, size, field := number(t, row[0]), number(t, row[1]), row[2]
		if offset != at {
			t.Errorf("%s is at %d, but the field before ends at %d", field, offset, at)
		}
		at = offset + size
		raw := b[offset:at]
		if size > 8 && bytes.Count(raw, []byte{0}) == size {
			raw = nil
		}
		var wide [8]byte
		copy(wide[:], raw)
		v, known := want[field]
		if got := binary.LittleEndian.Uint64(wide[:]); !known || got != v || len(raw) > 8 {
			t.Errorf("%s at %d is %#x, want %#x", field, offset, raw, v)
		}
	}
	if at != FrameSize || string(b[at:]) != "12345" {
		t.Errorf("the frame ends at %d", at)
	}
}

func TestDocumentedFrames(t *testing.T) {
	seen := map[Type]bool{}
	for _, row := range table(t, "type", "name", "from") {
		typ, name, from := Type(number(t, row[0])), row[1], row[2]
		seen[typ] = true
		if typ.String() != name {
			t.Errorf("%d is %s, documented as %s", typ, typ, name)
		}
		if want := map[bool]string{true: "master", false: "worker"}[typ < Ready]; from != want {
			t.Errorf("%s is from the %s, want %s", name, from, want)
		}
	}
	for typ := range 256 {
		if named := Type(typ).String() != "UNKNOWN"; named != seen[Type(typ)] {
			t.Errorf("type %d has a name: %v, is documented: %v", typ, named, seen[Type(typ)])
		}
	}
}

func TestDocumentedReasons(t *testing.T) {
	rows := table(t, "arg", "reason")
	if len(rows) != int(ReasonOther) {
		t.Errorf("%d reasons, want %d", len(rows), ReasonOther)
	}
	for _, row := range rows {
		if r := Reason(number(t, row[0])); r.String() != row[1] {
			t.Errorf("%d is %s, documented as %s", r, r, row[1])
		}
	}
}

func TestDocumentedStates(t *testing.T) {
	heads := []string{"frame"}
	for s := range numStates {
		heads = append(heads, s.String())
	}
	rows := table(t, heads...)
	var types []Type
	for typ := Ready; int(typ) < len(typeNames); typ++ {
		if typeNames[typ] != "" {
			types = append(types, typ)
		}
	}
	if len(rows) != len(types) {
		t.Fatalf("%d frames, want %d", len(rows), len(types))
	}
	for i, row := range rows {
		typ := types[i]
		if typ.String() != row[0] {
			t.Fatalf("row %d is %s, want %s", i, row[0], typ)
		}
		for s := range numStates {
			if documented := row[1+s] == "yes"; documented != Legal(s, typ) {
				t.Errorf("%s while %s: documented as legal: %v", typ, s, documented)
			}
		}
	}
}

func TestDocumentedLimits(t *testing.T) {
	want := map[string]int{
		"frames in a message": MaxFrames, "bytes of a frame": FrameSize, "bytes of a payload": MaxPayload,
		"bytes of a message": MaxMessage, "descriptors with a message": MaxFrames,
		// The dispatcher's, and tested there.
		"messages read from a worker in a turn": 64, "LISTENs of a worker, minus those that failed and those of listeners that it has left": 1024,
	}
	rows := table(t, "what", "limit")
	if len(rows) != len(want) {
		t.Errorf("%d limits, want %d", len(rows), len(want))
	}
	for _, row := range rows {
		if n := number(t, row[1]); n != want[row[0]] {
			t.Errorf("%s: %d, want %d", row[0], n, want[row[0]])
		}
	}
}

// A place that the code names is there.
func TestDocumentedHeadings(t *testing.T) {
	text, err := os.ReadFile("../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, heading := range []string{"Messages", "What is legal when", "Times"} {
		if !strings.Contains(string(text), "\n## "+heading+"\n") {
			t.Errorf("no heading %q", heading)
		}
	}
}
