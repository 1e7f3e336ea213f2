//go:build unix

package main

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"testing"
)

// gated is a sink that takes nothing while it is locked.
type gated struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (g *gated) Write(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.buf.Write(p)
}

func (g *gated) tellLost(lines int64) { _, _ = fmt.Fprintf(g, "lost %d\n", lines) }

// Every line is there after a flush, in order, the last one too, however the writer and
// the reader of the queue meet.
func TestLogSinkKeepsNothingBack(t *testing.T) {
	var g gated
	s := newLogSink(&g, g.tellLost)
	var want strings.Builder
	for i := range 2000 {
		line := fmt.Appendf(nil, "line %d\n", i)
		want.Write(line)
		if n, err := s.Write(line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
		clear(line) // the caller's again
		if i%3 == 0 {
			s.flush()
		}
	}
	s.close()
	_, _ = s.Write([]byte("after the end\n"))
	if got := g.buf.String(); got != want.String() {
		t.Errorf("%d bytes were written, want %d", len(got), want.Len())
	}
}

// A flush that was given up leaves a question behind, which must not be taken for the end.
func TestLogSinkAfterAFlushInVain(t *testing.T) {
	var g gated
	s := newLogSink(&g, g.tellLost)
	g.mu.Lock()
	_, _ = s.Write([]byte("first\n"))
	s.flush()
	_, _ = s.Write([]byte("last\n"))
	s.closed.Store(true) // as close does, before the sink goes on
	g.mu.Unlock()
	s.close()
	if got := g.buf.String(); got != "first\nlast\n" {
		t.Errorf("%q was written", got)
	}
}

// A sink that is blocked holds up nobody; what was lost is told when it goes on.
func TestLogSinkBlocked(t *testing.T) {
	var g gated
	s := newLogSink(&g, g.tellLost)
	g.mu.Lock()
	const surplus = 10
	for range logQueue + surplus + 1 { // the writer may hold one
		_, _ = s.Write([]byte("x\n"))
	}
	g.mu.Unlock()
	s.close()
	got := g.buf.String()
	lost := 0
	for line := range strings.Lines(got) {
		if _, err := fmt.Sscanf(line, "lost %d", &lost); err == nil {
			break
		}
	}
	if lines := strings.Count(got, "x\n"); lost < surplus || lines+lost != logQueue+surplus+1 {
		t.Errorf("%d lines written and %d told to be lost of %d", lines, lost, logQueue+surplus+1)
	}
}
