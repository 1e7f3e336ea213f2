package pool

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// ErrBusy is returned (wrapped) when another roll or restart is under way, or the pool
// is frozen.
var ErrBusy = errors.New("pool is busy")

// RollConfig says how careful a roll is.
type RollConfig struct {
	// Surge is how many slots are replaced at a time; 0 is one.
	Surge int
	// Canary is for how long a successor must live to be trusted. The first of them
	// serve for so long beside those that they are to replace.
	Canary time.Duration
	// Keep is how many replaced processes run on until the roll has succeeded, so that
	// they can take their places back; 0: all, negative: none. Those beyond it drain at
	// once, and if the roll fails, their command lines are started again.
	Keep int
	// Size is the number of workers to grow to, if it is more than there are. Slots that
	// are added come last, and their workers must live for Canary too. If the roll fails,
	// the number is as before. MayResize is not asked.
	Size int
	// AtOnce drains the kept processes together, whatever DrainSpread is.
	AtOnce bool
	// BeforeDrain, if not nil, is called by Roll when the roll has succeeded, before the
	// kept processes are asked to drain.
	BeforeDrain func()
}

// RollStep is what happened to a slot in a roll.
type RollStep string

const (
	RollStarted    RollStep = "started"      // its successor
	RollReplaced   RollStep = "replaced"     // the successor serves, the old one is kept or drains
	RollAdded      RollStep = "added"        // the worker of a slot that was added serves
	RollFailed     RollStep = "failed"       // the successor; Err says how
	RollBack       RollStep = "rolling back" // from here on the old template is put back
	RollRolledBack RollStep = "rolled back"
)

// RollEvent is one step.
type RollEvent struct {
	Slot int
	Step RollStep
	Err  error
}

// roll replaces the workers of some slots, a few at a time. The replaced ones are kept
// until all of the new are trusted. If one of the new fails, the kept ones take their
// places back, and what was not kept is started again.
//
//	canary --the first have lived for Canary--> rolling --all replaced, all trusted--> closing --BeforeDrain--> done
//	   \------ a successor fails ------\-----------/
//	                                    `--> back --all put back--> failed
type roll struct {
	to, from *template // from is nil for a restart, which puts nothing back
	cfg      RollConfig
	why      StartReason
	reason   string // of the drain of the old ones
	size     int    // number of workers before
	grown    int    // that number after slots were added; 0: none were
	queue    []*slot
	active   []*slot // successor under way
	replaced []*slot
	trials   []trial
	canary   bool // the first are on trial beside the old ones
	back     bool
	closing  bool // succeeded: BeforeDrain runs
	failed   error
	progress func(RollEvent)
	closeC   chan struct{} // closed when it is closing
	doneC    chan error
}

// trial is a worker that is not trusted yet.
type trial struct {
	pr    *proc
	until time.Time
}

// Roll replaces all workers by those of t, which are of the next generation: order by
// slot, the successor first. If a successor cannot be started, does not get ready, or
// ends or is retired within the canary time, the roll stops, the processes that it has replaced take
// their places back, and the error tells why. It returns when that is done; progress, if
// not nil, is called like a hook.
func (p *Pool) Roll(t Template, c RollConfig, progress func(RollEvent)) error {
	if err := t.check(); err != nil {
		return fmt.Errorf("roll: %w", err)
	}
	return p.runRoll(func() (*roll, error) {
		p.generations++
		r := &roll{to: newTemplate(t, p.generations), from: p.tmpl, cfg: c, why: StartReload,
			reason: "replaced by a newer generation", canary: c.Canary > 0, progress: progress, size: p.desired}
		if c.Size > p.desired {
			r.grown, p.desired = c.Size, c.Size
			p.growSlots(c.Size)
		}
		r.queue = slices.Clone(p.slots[:p.desired])
		return r, nil
	})
}

// Restart replaces the worker of one slot by another of its kind, successor first.
func (p *Pool) Restart(index int, reason string, progress func(RollEvent)) error {
	return p.runRoll(func() (*roll, error) {
		if index < 0 || index >= p.desired {
			return nil, fmt.Errorf("restart slot %d: %w", index, ErrNoWorker)
		}
		s := p.slots[index]
		switch {
		case s.held:
			return nil, fmt.Errorf("restart slot %d: it was drained and is held empty, undrain it: %w", index, ErrNoWorker)
		case s.down:
			return nil, fmt.Errorf("restart slot %d: it is down, as the restart policy says: %w", index, ErrNoWorker)
		}
		return &roll{to: s.tmpl, why: StartRecycle, reason: reason, queue: []*slot{s}, progress: progress}, nil
	})
}

// runRoll starts what prepare makes and waits for its end.
func (p *Pool) runRoll(prepare func() (*roll, error)) error {
	doneC, closeC := make(chan error, 1), make(chan struct{})
	var before func() // set before closeC is closed
	var busy error
	p.ask(func() { busy = p.unchangeable() }) // or it would wait for Thaw
	if busy != nil {
		return fmt.Errorf("roll: %w", busy)
	}
	told := p.tell(func() {
		switch {
		case p.stopping:
			doneC <- fmt.Errorf("roll: %w", ErrStopping)
			return
		case p.booting:
			doneC <- fmt.Errorf("roll: no worker was ready yet: %w", ErrBusy)
			return
		case p.roll != nil:
			doneC <- fmt.Errorf("roll: another one is under way: %w", ErrBusy)
			return
		case p.freezing != nil:
			doneC <- fmt.Errorf("roll: pool is being frozen: %w", ErrBusy)
			return
		}
		r, err := prepare()
		if err != nil {
			doneC <- err
			return
		}
		r.doneC, r.closeC = doneC, closeC
		before = r.cfg.BeforeDrain
		p.roll = r
	})
	if !told {
		return fmt.Errorf("roll: %w", ErrStopping)
	}
	select {
	case err := <-doneC:
		return err
	case <-closeC:
		before()
		p.tell(func() {
			if p.roll != nil && p.roll.closeC == closeC {
				p.endRoll(nil)
			}
		})
		return <-doneC
	}
}

// advanceRoll brings the roll as far as it can go now.
func (p *Pool) advanceRoll(now time.Time) {
	r := p.roll
	switch {
	case r == nil:
		return
	case p.stopping:
		p.endRoll(ErrStopping)
		return
	case r.closing:
		return
	}
	r.active = slices.DeleteFunc(r.active, func(s *slot) bool { return p.advanceSlot(r, s, now) })
	r.trials = slices.DeleteFunc(r.trials, func(t trial) bool { return !now.Before(t.until) })
	if r.canary && len(r.active) == 0 && len(r.replaced) > 0 {
		r.canary = false
	}
	for n := len(r.queue); n > 0 && len(r.active) < max(r.cfg.Surge, 1) && !(r.canary && len(r.replaced) > 0); n-- {
		s := r.queue[0]
		r.queue = r.queue[1:]
		switch {
		case s.index >= p.desired:
		case s.down || s.held: // it stays so, and is of the new kind when it is started again
			s.tmpl = r.to
		case s.next != nil || s.nextSpawning: // one that was given up is still being spawned
			r.queue = append(r.queue, s)
		default:
			r.active = append(r.active, s)
			r.tell(p, RollEvent{Slot: s.index, Step: RollStarted})
			p.startNext(s, r.to, r.why)
		}
	}
	if len(r.queue) == 0 && len(r.active) == 0 && len(r.trials) == 0 {
		if r.failed == nil {
			p.rollSucceeded()
		} else {
			p.endRoll(r.failed)
		}
	}
}

// rollSucceeded ends a roll, or lets BeforeDrain end it.
func (p *Pool) rollSucceeded() {
	r := p.roll
	if r.from != nil {
		p.tmpl = r.to
		for _, s := range p.slots {
			s.tmpl = r.to
		}
	}
	if r.cfg.BeforeDrain == nil {
		p.endRoll(nil)
		return
	}
	r.closing = true
	p.hooks.post(func() { close(r.closeC) }) // after its events
}

// advanceSlot reports whether the slot's part is over.
func (p *Pool) advanceSlot(r *roll, s *slot, now time.Time) bool {
	switch {
	case s.index >= p.desired:
		return true
	case s.next == nil || !s.next.serves():
		if s.next != nil || s.nextSpawning {
			return false
		}
		s.tmpl = r.to // DrainSlot gave it up: it is of the new kind when it is started again
		return true
	case r.canary && now.Before(s.next.readyAt.Add(r.cfg.Canary)):
		return false
	}
	pr := s.next
	p.promote(s, r.reason, r.keeps(p))
	step := RollReplaced
	switch {
	case r.back:
		step = RollRolledBack
	case r.grown > 0 && s.index >= r.size:
		step = RollAdded
	}
	if !r.back {
		r.replaced = append(r.replaced, s)
		r.trials = append(r.trials, trial{pr, pr.readyAt.Add(r.cfg.Canary)})
	}
	r.tell(p, RollEvent{Slot: s.index, Step: step})
	return true
}

// rollDeadline returns when advanceRoll has something to do; zero: when something
// happens.
func (p *Pool) rollDeadline() (next time.Time) {
	r := p.roll
	if r == nil {
		return next
	}
	sooner := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for _, t := range r.trials {
		sooner(t.until)
	}
	for _, s := range r.active {
		if r.canary && s.next != nil && s.next.state == StateReady {
			sooner(s.next.readyAt.Add(r.cfg.Canary))
		}
	}
	return next
}

// rollEnded: a process has ended, or works in its slot no more.
func (p *Pool) rollEnded(pr *proc) {
	r := p.roll
	if r == nil {
		return
	}
	if pr.s.next != pr && (pr.requested || !r.tries(pr)) {
		return
	}
	err := fmt.Errorf("process %d was killed (%s) and does not end", pr.w.PID, pr.reason)
	if pr.ended {
		err = fmt.Errorf("process %d %s", pr.w.PID, &pr.exit)
	}
	p.rollFailed(pr.s, err)
}

// tries reports whether pr is on trial.
func (r *roll) tries(pr *proc) bool {
	return r != nil && slices.ContainsFunc(r.trials, func(t trial) bool { return t.pr == pr })
}

// rollFailed stops the roll and begins to put back what it has replaced.
func (p *Pool) rollFailed(s *slot, err error) {
	r := p.roll
	if r == nil {
		return
	}
	err = fmt.Errorf("slot %d: %w", s.index, err)
	r.tell(p, RollEvent{Slot: s.index, Step: RollFailed, Err: err})
	if r.back || r.from == nil {
		// Its worker, of whatever kind, goes on. If it dies the next is as before.
		if r.from == nil {
			r.failed = err
		} else {
			s.tmpl = r.to
			r.failed = fmt.Errorf("%w; and it could not be put back: %w", r.failed, err)
		}
		return
	}
	r.failed = err
	for _, a := range r.active {
		if a != s {
			p.dropNext(a)
		}
	}
	r.active, r.trials, r.queue = nil, nil, nil
	r.to, r.from, r.back, r.canary = r.from, r.to, true, false
	if r.grown > 0 && p.desired == r.grown { // no other request has changed the number since
		p.setDesired(r.size)
	}
	var kept []*slot
	for _, other := range p.slots {
		newer := other.tmpl == r.from // replaced, or emptied and filled again meanwhile
		other.tmpl = r.to
		switch {
		case p.takeBack(other):
			kept = append(kept, other)
		case newer && (other.cur != nil || other.spawning || !other.startAt.IsZero()):
			r.queue = append(r.queue, other)
		case other.index >= r.size && other.index < p.desired && !other.held && other.idle():
			p.start(other, StartScale) // it was added, and is wanted still
		}
	}
	if len(r.queue)+len(kept) > 0 {
		r.tell(p, RollEvent{Slot: s.index, Step: RollBack})
	}
	for _, other := range kept {
		r.tell(p, RollEvent{Slot: other.index, Step: RollRolledBack})
	}
}

// endRoll tells who waits for it.
func (p *Pool) endRoll(err error) {
	r := p.roll
	p.roll = nil
	if err == nil {
		p.drainKept(r)
	} else {
		err = fmt.Errorf("roll: %w", err)
	}
	p.hooks.post(func() { r.doneC <- err }) // after its events
}

func (r *roll) tell(p *Pool, e RollEvent) {
	if progress := r.progress; progress != nil {
		p.hooks.post(func() { progress(e) })
	}
}

// putsBack says whether the roll is going to start s again by itself.
func (r *roll) putsBack(s *slot) bool { return r != nil && r.back && slices.Contains(r.queue, s) }

// grow makes a roll go on to slots that were added meanwhile, each of them once.
func (r *roll) grow(slots []*slot) {
	if r == nil || r.from == nil || r.back || r.closing {
		return
	}
	for _, s := range slots {
		if !slices.Contains(r.queue, s) {
			r.queue = append(r.queue, s)
		}
	}
}
