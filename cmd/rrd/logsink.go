//go:build unix

package main

import (
	"bytes"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// logSink is stderr behind a bounded queue that never makes its writer wait: what finds
// it full is dropped and counted, so that a blocked pipe stops nothing.
//
// zerolog's diode does the same, but wakes its reader without the lock under which that
// decides to wait (version 1.35.1): a line that comes in that moment is written with the
// next one, which on a quiet master can be hours later.
type logSink struct {
	w      io.Writer
	lost   func(lines int64) // tells w of them
	lineC  chan logLine
	missed atomic.Int64
	closed atomic.Bool
}

// logLine is a line, or with writtenC a question: closed when all before it is written.
type logLine struct {
	text     []byte
	writtenC chan struct{}
	end      bool // nothing follows
}

const (
	logQueue  = 4096        // lines that wait
	logLinger = time.Second // for a sink that nobody reads
	logBrief  = 50 * time.Millisecond
)

func newLogSink(w io.Writer, lost func(lines int64)) *logSink {
	s := &logSink{w: w, lost: lost, lineC: make(chan logLine, logQueue)}
	go s.write() // ends with close, or, if the sink is blocked, with the process
	return s
}

// Write queues a copy of p, as zerolog uses the memory again. It returns no error.
func (s *logSink) Write(p []byte) (int, error) {
	if !s.closed.Load() {
		select {
		case s.lineC <- logLine{text: bytes.Clone(p)}:
		default:
			s.missed.Add(1)
		}
	}
	return len(p), nil
}

// write writes what is queued, until a line that is none. A sink that cannot be written
// has no better place to be reported than itself.
func (s *logSink) write() {
	for l := range s.lineC {
		if l.writtenC != nil {
			close(l.writtenC)
			if l.end {
				return
			}
			continue
		}
		if _, err := s.w.Write(l.text); err != nil {
			continue // w counts it: see failed
		}
		if n := s.missed.Swap(0); n > 0 {
			s.lost(n)
		}
	}
}

// failed counts a line that could not be written, as on a disk that is full.
func (s *logSink) failed() { s.missed.Add(1) }

// flush returns when what is queued is written, or nobody reads it.
func (s *logSink) flush() { s.ask(logLine{writtenC: make(chan struct{})}, logLinger) }

// flushBriefly is flush while the service stands still.
func (s *logSink) flushBriefly() { s.ask(logLine{writtenC: make(chan struct{})}, logBrief) }

func (s *logSink) ask(question logLine, limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case s.lineC <- question:
	case <-timer.C:
		return
	}
	select {
	case <-question.writtenC:
	case <-timer.C:
	}
}

// close is flush, and nothing is written after it. It is called once.
func (s *logSink) close() {
	s.closed.Store(true)
	s.ask(logLine{writtenC: make(chan struct{}), end: true}, logLinger)
}

// writeInTime writes the last error of a process, and to the journal with that priority.
// If the pipe is not read, writeInTime waits as long as the log does: the process ends
// anyway.
func writeInTime(w io.Writer, text string) {
	doneC := make(chan struct{})
	go writeText(forJournal(os.Environ(), w, zerolog.ErrorLevel), text, doneC) // ends with its write, or with the process
	timer := time.NewTimer(logLinger)
	defer timer.Stop()
	select {
	case <-doneC:
	case <-timer.C:
	}
}

func writeText(w io.Writer, text string, doneC chan<- struct{}) {
	_, _ = io.WriteString(steady(w), text)
	close(doneC)
}
