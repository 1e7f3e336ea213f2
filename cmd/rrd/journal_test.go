//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/rs/zerolog"
)

// streamOf is the value of JOURNAL_STREAM that names f.
func streamOf(t *testing.T, f *os.File) string {
	t.Helper()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

func TestToJournal(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	file, err := os.Create(t.TempDir() + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	stream := streamOf(t, w)
	dev, ino, _ := strings.Cut(stream, ":")
	for _, x := range []struct {
		name   string
		stream string
		w      io.Writer
		want   bool
	}{
		{"the stream", stream, w, true},
		{"redirected to a file", stream, file, false},
		{"another inode", dev + ":" + ino + "1", w, false},
		{"another device", "1" + dev + ":" + ino, w, false},
		{"no inode", dev + ":", w, false},
		{"one number", ino, w, false},
		{"empty", "", w, false},
		{"no file", stream, &bytes.Buffer{}, false},
	} {
		if got := toJournal([]string{"JOURNAL_STREAM=" + x.stream}, x.w); got != x.want {
			t.Errorf("%s: %v", x.name, got)
		}
	}
	if toJournal(nil, w) {
		t.Error("no variable")
	}
	stream = streamOf(t, file)
	file.Close()
	if toJournal([]string{"JOURNAL_STREAM=" + stream}, file) {
		t.Error("a closed file")
	}
}

// Every record has the priority of its level in both formats, and followers get it without.
func TestJournalPriorities(t *testing.T) {
	for _, format := range []string{"json", "console"} {
		var out bytes.Buffer
		gate := newLogGate(zerolog.DebugLevel, nil)
		gate.journal = true
		log := newGatedLogger(&out, false, nil, &config{LogFormat: format}, gate, true)
		log.Debug().Msg("a")
		log.Info().Msg("b")
		log.Warn().Msg("c")
		log.Error().Str("line", "x\n<0>y").Msg("d")
		log.Log().Msg("e")
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		want := []string{"<7>", "<6>", "<4>", "<3>", "<6>"}
		if len(lines) != len(want) {
			t.Fatalf("%s: %q", format, out.String())
		}
		for i, line := range lines {
			record, ok := strings.CutPrefix(line, want[i])
			if !ok || strings.HasPrefix(record, "<") || format == "json" && !json.Valid([]byte(record)) {
				t.Errorf("%s: %q, want %s", format, line, want[i])
			}
		}
		for _, record := range gate.events.last(keptEvents) {
			if !json.Valid(record) {
				t.Errorf("%s: a follower gets %q", format, record)
			}
		}
	}
}

// No line is without its priority, and a record is one write.
func TestPriorityOfEachLine(t *testing.T) {
	var writes []string
	w := priorityWriter{writerFunc(func(p []byte) (int, error) { writes = append(writes, string(p)); return len(p), nil }), zerolog.ErrorLevel}
	if n, err := w.Write([]byte("one\n\ntwo")); n != 8 || err != nil {
		t.Error(n, err)
	}
	if len(writes) != 1 || writes[0] != "<3>one\n<3>\n<3>two" {
		t.Errorf("%q", writes)
	}
	w.w = writerFunc(func([]byte) (int, error) { return 3, io.ErrShortWrite })
	if n, err := w.Write([]byte("one")); n != 0 || err == nil {
		t.Error(n, err)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
