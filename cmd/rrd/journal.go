//go:build unix

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/rs/zerolog"
)

// The journal takes the priority of a line from a prefix: "<3>" and the like, sd-daemon(3).
// A line without one is of priority 6, so errors would look like all others.

// toJournal reports whether w is the stream to the journal. JOURNAL_STREAM has the device
// and the inode of that stream (systemd.exec(5)). A process inherits the variable also
// when its output was redirected, so both must be those of w.
func toJournal(environ []string, w io.Writer) bool {
	f, ok := w.(interface{ Stat() (os.FileInfo, error) })
	if !ok {
		return false
	}
	stream, ok := lookupVariable(environ, "JOURNAL_STREAM")
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && stream == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// forJournal returns w, or, if w is the stream to the journal, a writer that gives each
// line the priority of level.
func forJournal(environ []string, w io.Writer, level zerolog.Level) io.Writer {
	if toJournal(environ, w) {
		return priorityWriter{w, level}
	}
	return w
}

// priorityWriter writes each line behind the prefix of a level, all in one write.
type priorityWriter struct {
	w     io.Writer
	level zerolog.Level
}

func (p priorityWriter) Write(text []byte) (int, error) {
	b := make([]byte, 0, len(text)+16)
	for line := range bytes.Lines(text) {
		b = fmt.Appendf(b, "<%d>", priority(p.level))
		b = append(b, line...)
	}
	if _, err := p.w.Write(b); err != nil {
		return 0, err
	}
	return len(text), nil
}

// priority is the number of syslog(3) for a level.
func priority(level zerolog.Level) int {
	switch {
	case level == zerolog.NoLevel:
		return 6
	case level <= zerolog.DebugLevel:
		return 7
	case level == zerolog.InfoLevel:
		return 6
	case level == zerolog.WarnLevel:
		return 4
	case level == zerolog.ErrorLevel:
		return 3
	}
	return 2
}
