package pool

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func stdout() *stream { return &stream{name: "stdout"} }

// captured runs a stream through a capture and returns what the sink got.
func captured(t *testing.T, text string) (lines []Line, words string) {
	t.Helper()
	p := newPrinter(Output{Mode: OutputJSON, Record: func(l Line) { lines = append(lines, l) }})
	p.start()
	c := &capture{out: p}
	c.read(Worker{Slot: 2}, stdout(), strings.NewReader(text))
	p.close()
	return lines, string(lastBytes(c.words))
}

func TestLines(t *testing.T) {
	long := strings.Repeat("x", maxLine)
	tests := []struct {
		stream string
		want   []string // with a "+" for More
	}{
		{"", nil},
		{"one\ntwo\n", []string{"one", "two"}},
		{"\n\nhalf", []string{"", "", "half"}},
		{"a\x00\xff\r\n", []string{"a\x00\xff\r"}},
		{long + "yz\nnext", []string{long + "+", "yz", "next"}},
		{long[1:] + "\nnext\n", []string{long[1:], "next"}},
	}
	for _, tt := range tests {
		lines, _ := captured(t, tt.stream)
		var got []string
		for _, l := range lines {
			text := string(l.Text)
			if l.More {
				text += "+"
			}
			got = append(got, text)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%.20q (-want +got):\n%s", tt.stream, diff)
		}
	}
}

func TestLastWordsAreBounded(t *testing.T) {
	var stream strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&stream, "line %d\n", i)
	}
	_, words := captured(t, stream.String())
	if len(words) != maxWords || !strings.HasSuffix(stream.String(), words) {
		t.Errorf("%d bytes, ending %q", len(words), words[len(words)-20:])
	}
	_, words = captured(t, strings.Repeat("x", 100<<10))
	if len(words) != maxWords {
		t.Errorf("%d bytes of one long line", len(words))
	}
}

func TestPrefix(t *testing.T) {
	var b bytes.Buffer
	p := newPrinter(Output{Mode: OutputPrefix, Writer: &b})
	p.put(Line{Worker: Worker{Slot: 3}, Text: []byte("hello")}, alive)
	p.put(Line{Worker: Worker{Slot: 12}, Text: []byte("long"), More: true}, alive)
	p.lost += 2
	p.start()
	p.close()
	want := "[rrd] 2 lines of workers were lost, their output was not taken\n[slot 3] hello\n[slot 12] long+\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A worker that writes as fast as it can to a sink that never takes anything goes on,
// and its end is seen.
func TestFloodedPool(t *testing.T) {
	r, w := io.Pipe() // never read
	defer r.Close()
	e := runReal(t, Config{
		Argv:   []string{"sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done; exit 9"},
		Output: Output{Mode: OutputPrefix, Writer: w},
	})
	if x := recv(t, e.exitedC); x.Code != 9 || !strings.HasSuffix(x.LastWords, "19999\n") {
		t.Errorf("%+v", x)
	}
	_ = recv(t, e.runC)
	if n := e.Snapshot().OutputLost; n < 10000 {
		t.Errorf("%d lines lost", n)
	}
}
