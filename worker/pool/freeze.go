package pool

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// A frozen pool stands still so that its State can be taken, for an upgrade of the
// master in place: exec(2) in the same process, whose children and descriptors stay.
//
//	running --Freeze--> settling --nothing under way--> frozen --Thaw--> running
//	                       \--Stop, end of ctx--> running   \--exec, Restore, Run
//
// Settling begins no start and waits for those that are under way, and for the output
// of those that have ended. Frozen, the loop waits for Thaw. Nobody is reaped then: the
// exit status of a child is taken only when the loop says so, so that it is either in
// the State or still with the kernel.

// freeze is one call of Freeze.
type freeze struct {
	doneC      chan error    // buffered: the loop's answer
	thawC      chan struct{} // closed by Thaw
	deliveredC chan struct{} // closed when the hooks that were queued have returned
	at         time.Time     // when it was frozen
}

// Freeze brings the pool to a point where State can be called: no start is under way,
// the output of workers is read no further, and all hooks that were due have returned.
// It waits for starts that are under way, and begins none; how long that may take is
// for ctx to say. From then on nothing is started, killed or timed out until Thaw. What
// is told of workers, Stop and StopNow are kept until then, or cross in the State;
// changes that return an error are refused with ErrBusy; Snapshot goes on. The end of
// Run's context is noticed after Thaw.
//
// The error tells what is in the way, and the pool goes on: it wraps ErrBusy for a pool
// that does not run yet, where no worker was ready yet, in a roll, or frozen already,
// ErrStopping for one that is being stopped or is over, and the cause of ctx's end.
// It is not to be called by a hook.
func (p *Pool) Freeze(ctx context.Context) error {
	f := &freeze{doneC: make(chan error, 1), thawC: make(chan struct{}), deliveredC: make(chan struct{})}
	if err := p.requestFreeze(f); err != nil {
		return fmt.Errorf("freeze pool: %w", err)
	}
	var err error
	select {
	case err = <-f.doneC:
	case <-ctx.Done():
		err = p.cancelFreeze(f, context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("freeze pool: %w", err)
	}
	select {
	case <-f.deliveredC:
	case <-ctx.Done():
		p.Thaw()
		return fmt.Errorf("freeze pool: hooks have not returned: %w", context.Cause(ctx))
	}
	if p.out != nil {
		p.out.flush()
		p.out.rest() // what is left crosses
	}
	return nil
}

// Thaw lets a frozen pool go on. Deadlines are moved by the time it was frozen if that
// was long, since those who report to it may have been held up too.
func (p *Pool) Thaw() {
	p.phaseMu.Lock()
	defer p.phaseMu.Unlock()
	p.thawLocked()
}

func (p *Pool) thawLocked() {
	if p.phase == phaseFrozen {
		p.phase = phaseRunning
		close(p.frozen.thawC)
		p.frozen = nil
	}
}

func (p *Pool) requestFreeze(f *freeze) error {
	p.phaseMu.Lock()
	defer p.phaseMu.Unlock()
	switch p.phase {
	case phaseNew:
		return fmt.Errorf("it does not run: %w", ErrBusy)
	case phaseFrozen:
		return fmt.Errorf("it is frozen already: %w", ErrBusy)
	case phaseOver:
		return ErrStopping
	}
	p.inbox.post(func() { p.beginFreeze(f) })
	return nil
}

// cancelFreeze undoes what the loop has done for f and returns why it had to.
func (p *Pool) cancelFreeze(f *freeze, cause error) error {
	p.phaseMu.Lock()
	if p.frozen == f {
		p.thawLocked()
		p.phaseMu.Unlock()
		return cause
	}
	// Under phaseMu: before it freezes the loop looks into the inbox under it.
	p.inbox.post(func() {
		if p.freezing == f {
			if why := p.inTheWay(); why != "" {
				cause = fmt.Errorf("%s: %w", why, cause)
			}
			p.endFreeze(cause)
		}
	})
	p.phaseMu.Unlock()
	if err := <-f.doneC; err != nil {
		return err
	}
	return cause
}

func (p *Pool) beginFreeze(f *freeze) {
	switch {
	case p.stopping || p.phase == phaseOver:
		f.doneC <- ErrStopping
	case p.booting:
		f.doneC <- fmt.Errorf("no worker was ready yet: %w", ErrBusy)
	case p.roll != nil:
		f.doneC <- fmt.Errorf("a roll is under way: %w", ErrBusy)
	case p.freezing != nil:
		f.doneC <- fmt.Errorf("it is being frozen already: %w", ErrBusy)
	default:
		p.freezing = f
	}
}

// endFreeze answers a Freeze that comes to nothing.
func (p *Pool) endFreeze(err error) {
	if f := p.freezing; f != nil {
		p.freezing = nil
		f.doneC <- err
	}
}

// inTheWay names what a freeze waits for; "" is nothing.
func (p *Pool) inTheWay() string {
	if p.spawning > 0 {
		return fmt.Sprintf("%d starts are under way", p.spawning)
	}
	for _, pr := range p.procs {
		if pr.reaping || pr.released() && !pr.outputDone {
			return fmt.Sprintf("process %d has ended and its output is being read", pr.w.PID)
		}
	}
	return ""
}

// settle freezes the pool as soon as it can be, and returns true after it was.
func (p *Pool) settle() bool {
	f := p.freezing
	for {
		switch {
		case f == nil || p.freezing != f:
			return false
		case p.stopping:
			p.endFreeze(ErrStopping)
			return false
		case p.inTheWay() != "":
			return false
		}
		p.phaseMu.Lock()
		news, _ := p.inbox.take()
		if len(news) == 0 { // and from now on reports are kept
			p.phase, p.frozen, f.at = phaseFrozen, f, time.Now()
			p.phaseMu.Unlock()
			break
		}
		p.phaseMu.Unlock()
		for _, g := range news {
			g()
		}
	}
	if err := p.holdReaders(); err == nil {
		p.hooks.post(func() { close(f.deliveredC) })
		f.doneC <- nil
		<-f.thawC
	} else {
		p.Thaw()
		f.doneC <- err
	}
	p.goOn(f)
	return true
}

// goOn is what follows a Thaw. What was reported came before whatever the inbox holds.
func (p *Pool) goOn(f *freeze) {
	p.freezing = nil
	p.phaseMu.Lock()
	kept := p.kept
	p.kept = nil
	p.phaseMu.Unlock()
	if d := time.Since(f.at); d > late {
		p.postpone(d)
	}
	if p.out != nil {
		p.out.goOn()
	}
	for _, pr := range p.procs {
		pr.releaseReaders()
	}
	for _, r := range kept {
		p.handle(r)
	}
}

// holdReaders stops all that read from workers.
func (p *Pool) holdReaders() error {
	if p.out != nil {
		p.out.hurry() // a reader that waits for room is to rest
	}
	for _, pr := range p.procs {
		if err := pr.holdReaders(); err != nil {
			return fmt.Errorf("hold output of process %d: %w", pr.w.PID, err)
		}
	}
	return nil
}

func (pr *proc) holdReaders() error {
	if pr.released() {
		return nil // all was read, or is never to be
	}
	var err error
	if c := pr.output; c != nil {
		err = errors.Join(c.stdout.hold(), c.stderr.hold())
	}
	if pr.notify != nil {
		err = errors.Join(err, pr.notifyLull.hold(pr.notify.SetReadDeadline))
	}
	return err
}

func (pr *proc) releaseReaders() {
	if c := pr.output; c != nil {
		c.stdout.lull.release(c.stdout.f.SetReadDeadline)
		c.stderr.lull.release(c.stderr.f.SetReadDeadline)
	}
	if pr.notify != nil {
		pr.notifyLull.release(pr.notify.SetReadDeadline)
	}
}

// unchangeable says why nothing may be changed now. Preconditions: called by ask.
func (p *Pool) unchangeable() error {
	switch {
	case p.phase == phaseFrozen:
		return fmt.Errorf("pool is frozen: %w", ErrBusy)
	case p.phase == phaseNew && p.restored != nil:
		return fmt.Errorf("pool is restored and does not run yet: %w", ErrBusy)
	}
	return nil
}
