//go:build unix

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// sharedPipe is a pipe as stderr is one: Go's poller does not know it, and another process
// that has it can set O_NONBLOCK.
func sharedPipe(t *testing.T, nonblock bool) (r *os.File, w *os.File) {
	t.Helper()
	r, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := syscall.Dup(int(pw.Fd())) // Fd makes it blocking
	if err != nil {
		t.Fatal(err)
	}
	_ = pw.Close()
	w = os.NewFile(uintptr(fd), "stderr")
	if err := syscall.SetNonblock(fd, nonblock); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.Close()
		_ = w.Close()
	})
	return r, w
}

// Records that find a shared pipe full wait, and arrive whole and in order: also those
// that are longer than what a pipe takes at once.
func TestRecordsWaitForANonblockingPipe(t *testing.T) {
	for _, nonblock := range []bool{true, false} {
		r, w := sharedPipe(t, nonblock)
		_ = r.SetReadDeadline(time.Now().Add(30 * time.Second))
		s := newLogSink(newSteadyWriter(w), func(lines int64) { t.Errorf("nonblock %v: %d lost", nonblock, lines) })
		const n = 3000
		for i := range n {
			_, _ = fmt.Fprintf(s, "%d %s\n", i, strings.Repeat("x", 1+i*7%6000))
		}
		var reading sync.WaitGroup
		reading.Go(func() {
			in := bufio.NewReader(r)
			for i := range n {
				line, err := in.ReadString('\n')
				if want := fmt.Sprintf("%d %s\n", i, strings.Repeat("x", 1+i*7%6000)); err != nil || line != want {
					t.Errorf("nonblock %v: line %d is %.40q, %v", nonblock, i, line, err)
					_, _ = io.Copy(io.Discard, in)
					return
				}
			}
		})
		reading.Wait()
		s.close()
	}
}

// What the reader takes of a long record shows while the record is being written.
func TestAcceptedGrowsWithinARecord(t *testing.T) {
	r, w := sharedPipe(t, true)
	s := newSteadyWriter(w)
	var writing sync.WaitGroup
	writing.Go(func() { _, _ = s.Write(bytes.Repeat([]byte("x"), 1<<20)) })
	last := uint64(0)
	for range 10 {
		if _, err := io.CopyN(io.Discard, r, 64<<10); err != nil {
			t.Fatal(err)
		}
		now := s.accepted.Load()
		for n := 0; now <= last && n < 10_000; n++ { // the writer has to run first
			time.Sleep(time.Millisecond)
			now = s.accepted.Load()
		}
		if now <= last || now == 1<<20 {
			t.Errorf("%d bytes after %d", now, last)
		}
		last = now
	}
	_, _ = io.CopyN(io.Discard, r, 1<<20-10*64<<10)
	writing.Wait()
}

// A record that fails is counted and told of when the sink goes on. It leaves no half line
// for the next to be glued to.
func TestAFailedRecordIsCounted(t *testing.T) {
	_, w := sharedPipe(t, false)
	s := newSteadyWriter(w)
	s.torn = true
	r, w2 := sharedPipe(t, false)
	s.f = w2
	if _, err := s.Write([]byte("next\n")); err != nil {
		t.Fatal(err)
	}
	_ = w2.Close()
	if got, _ := io.ReadAll(r); string(got) != "\nnext\n" {
		t.Errorf("%q", got)
	}

	var b bytes.Buffer
	fails := true
	var sink *logSink
	direct := &lockedWriter{w: writerFunc(func(p []byte) (int, error) {
		if fails {
			return 0, errors.New("no space left")
		}
		return b.Write(p)
	})}
	sink = newLogSink(direct, func(lines int64) { _, _ = fmt.Fprintf(direct, "lost %d\n", lines) })
	direct.failed = sink.failed
	_, _ = sink.Write([]byte("one\n"))
	_, _ = sink.Write([]byte("two\n"))
	sink.flush()
	fails = false
	_, _ = sink.Write([]byte("three\n"))
	sink.close()
	if got := b.String(); got != "three\nlost 2\n" {
		t.Errorf("%q", got)
	}
}
