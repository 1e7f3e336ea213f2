package pool

import (
	"fmt"
	"strings"
	"syscall"
	"time"
)

// Exit tells how a process ended.
type Exit struct {
	Code      int            // exit code; -1 when a signal ended it
	Signal    syscall.Signal // 0 when it exited itself
	Core      bool           // it left a core dump
	Requested bool           // the pool had asked it to end
	Cause     Cause
	// Reason says why the pool killed it: a time-out, or what Kill was told.
	Reason   string
	Uptime   time.Duration
	WasReady bool
	Spoke    bool // it said something on its channel
	// LastWords is the end of its output, when that is captured.
	LastWords string
}

// String continues a sentence that begins with the worker.
func (x Exit) String() string {
	var b strings.Builder
	if x.Signal == 0 {
		fmt.Fprintf(&b, "exited with code %d", x.Code)
	} else {
		fmt.Fprintf(&b, "was ended by signal %d (%v)", int(x.Signal), x.Signal)
	}
	if x.Core {
		b.WriteString(" and dumped core")
	}
	fmt.Fprintf(&b, " after %v", x.Uptime.Round(time.Millisecond))
	if x.Reason != "" {
		fmt.Fprintf(&b, ": %s", x.Reason)
	}
	return b.String()
}

func (x *Exit) clean() bool { return x.Signal == 0 && x.Code == 0 }

// BootFailure is how the only start of a slot ended before any worker was ready:
// either Err (no process) or Exit is set.
type BootFailure struct {
	Slot int
	Err  error
	Exit *Exit
}

// String is one line, without the last words.
func (f BootFailure) String() string {
	if f.Exit == nil {
		return fmt.Sprintf("slot %d: %v", f.Slot, f.Err)
	}
	return fmt.Sprintf("slot %d %s", f.Slot, f.Exit)
}

// BootError is what Run returns when each slot was started once and none became
// ready.
type BootError struct {
	Failures []BootFailure // in the order they came
}

// Error is one line that names the first failure, for the others are mostly the same.
func (e *BootError) Error() string {
	if len(e.Failures) == 0 {
		return "no worker became ready"
	}
	return fmt.Sprintf("no worker became ready: %v", e.Failures[0])
}

// Unwrap returns the error of the first failure, if it was one of spawning.
func (e *BootError) Unwrap() error {
	if len(e.Failures) == 0 {
		return nil
	}
	return e.Failures[0].Err
}

// LastWords returns the end of the output of the first worker that left some.
func (e *BootError) LastWords() string {
	for _, f := range e.Failures {
		if f.Exit != nil && f.Exit.LastWords != "" {
			return f.Exit.LastWords
		}
	}
	return ""
}

// endBoot: the first worker is ready, so the command works. The slots that failed
// until now are treated like any other from here on.
func (p *Pool) endBoot() {
	p.booting = false
	failures := p.boot
	p.boot = nil
	for _, f := range failures {
		s := p.slots[f.Slot]
		switch {
		case f.Slot >= p.desired || s.cur != nil || s.spawning || !s.startAt.IsZero():
			// Resized since, or failed twice.
		case f.Exit == nil:
			p.plan(s, spawnRetry, s.why)
		default:
			p.replace(s, *f.Exit, false)
		}
	}
}
