//go:build unix

package main

import (
	"context"
	"errors"
	"runtime"
	"runtime/trace"
	"sync"
	"time"

	"rrd/cmd/internal/control"
)

// maxStacks bounds the text of all stacks: some 100,000 goroutines.
const maxStacks = 64 << 20

// goroutines sends the stacks of all goroutines of the master.
func (c *call) goroutines() (any, error) {
	if err := c.noArgs(); err != nil {
		return nil, err
	}
	var text []byte
	for size := 1 << 20; ; size *= 2 {
		text = make([]byte, size)
		if n := runtime.Stack(text, true); n < size || size >= maxStacks {
			text = text[:n]
			break
		}
	}
	if err := c.emitText(string(text)); err != nil {
		return nil, err
	}
	return control.Goroutines{Goroutines: runtime.NumGoroutine()}, nil
}

// fds tells what each descriptor of the master is.
func (c *call) fds() (any, error) {
	if err := c.noArgs(); err != nil {
		return nil, err
	}
	fds, err := openDescriptors()
	if err != nil {
		return nil, err
	}
	return control.FDs{FDs: fds}, nil
}

// maxTrace is the longest trace, in seconds.
const maxTrace = 60

// tracing: there is one execution trace in a process.
var tracing sync.Mutex

// trace sends an execution trace (go tool trace) of the next seconds as it grows.
func (c *call) trace() (any, error) {
	var a control.TraceArgs
	if err := c.args(&a); err != nil {
		return nil, err
	}
	if a.Seconds < 1 || a.Seconds > maxTrace {
		return nil, control.Errorf(control.CodeUsage, "seconds: %d is not from 1 to %d", a.Seconds, maxTrace)
	}
	if !tracing.TryLock() {
		return nil, control.Errorf(control.CodeBusy, "another trace is being taken")
	}
	defer tracing.Unlock()
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	w := &traceWriter{emit: c.emit, failed: cancel}
	began := time.Now()
	if err := trace.Start(w); err != nil {
		return nil, control.Errorf(control.CodeBusy, "%v", err)
	}
	timer := time.NewTimer(time.Duration(a.Seconds) * time.Second)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.op.Over():
	case <-ctx.Done():
	}
	trace.Stop() // returns when the last was written
	if w.err != nil {
		return nil, w.err
	}
	if c.ctx.Err() != nil {
		return nil, errors.New("nobody waits for the trace any more")
	}
	return control.Traced{Bytes: w.n, Seconds: time.Since(began).Seconds()}, nil
}

// traceWriter sends what the runtime writes, from a goroutine of the runtime's
// that trace.Stop waits for.
type traceWriter struct {
	emit   func(any) error
	failed func()
	n      int
	err    error
}

func (w *traceWriter) Write(p []byte) (int, error) {
	const piece = 32 << 10
	for at := 0; at < len(p) && w.err == nil; at += piece {
		w.err = w.emit(control.Data{Data: p[at:min(at+piece, len(p))]})
	}
	if w.err != nil {
		w.failed()
		return 0, w.err
	}
	w.n += len(p)
	return len(p), nil
}
