package pool

import "fmt"

// BootFailure is how the only start of a slot ended before any worker was ready:
// either Err (no process, or one that does not end) or Exit is set.
type BootFailure struct {
	Slot int
	Err  error
	Exit *Exit

	pr *proc // or nil
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

// failBoot notes the end of the only start of a slot, once.
func (p *Pool) failBoot(pr *proc) {
	if pr.bootFailed {
		return
	}
	pr.bootFailed = true
	f := BootFailure{Slot: pr.s.index, pr: pr}
	if pr.ended {
		x := pr.exit
		f.Exit = &x
	} else {
		f.Err = fmt.Errorf("process %d was killed (%s) and does not end", pr.w.PID, pr.reason)
	}
	p.boot = append(p.boot, f)
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
		case f.Slot >= p.desired || s.spawning || !s.startAt.IsZero():
			// Resized since, or failed twice.
		case s.cur != nil:
			p.supersede(s) // if it does not end
		case f.pr == nil:
			p.plan(s, spawnRetry, s.why)
		default:
			p.succeed(f.pr)
		}
	}
}
