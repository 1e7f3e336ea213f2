package pool

import (
	"fmt"
	"time"

	"rrd/handoff"
)

// slot is a worker's place, kept over respawns. The loop owns it.
type slot struct {
	index int
	tmpl  *template // its processes are started with
	cur   *proc     // the one that works here, or nil
	// next is to take the place of cur once it is ready; see replace.go.
	next         *proc
	nextTmpl     *template // nil: none is wanted
	nextSpawning bool
	nextWhy      StartReason
	// kept is the process that a roll has replaced and keeps until it has succeeded; see
	// kept.go.
	kept *proc
	// older are those whose place was taken and that have not ended, oldest first: they
	// drain, or are stuck or orphans, of which there are at most maxOlder.
	older    []*proc
	held     bool // DrainSlot: it is not started again
	spawning bool
	// startAt is when it is started next, why is the reason; zero for no plan.
	startAt time.Time
	why     StartReason
	pause   time.Duration // that led to startAt
	backoff backoff
	down    bool // left so by the restart policy

	starts        [startReasons]uint64
	exits         [exitCauses]uint64
	spawnFailures uint64
	lastExit      *Exit
}

// proc is one process until it is gone. The loop owns it.
type proc struct {
	w    Worker
	s    *slot
	p    process
	tmpl *template
	ran  time.Time // when the command itself began; zero: adopted
	lent []uint64  // inodes of the listening sockets that it was given, sorted

	output     *capture     // nil when raw
	notify     notifySource // or nil
	notifyLull *lull

	successor bool // started as its slot's next, and not promoted

	state     State // starting, ready or draining
	native    bool  // speaks on its channel, or has to
	said      bool  // has spoken
	wasReady  bool
	readyAt   time.Time
	requested bool   // was asked to end
	retired   string // why, by Retire
	leaves    bool   // of its own accord
	// drainLimit is what a worker gets that turns out to have been ready when it was
	// asked to drain.
	drainLimit time.Duration
	asked      bool // got its stop signal
	aborted    bool // got the signal of Abort
	killed     bool // by us
	killAsked  bool // as somebody had asked for
	killedAt   time.Time
	stuck      bool // killed for stuckAfter, and not ended
	// shellOnly: it was killed because its reader had ended before.
	shellOnly bool
	reason    string // why it was killed, when not as requested
	timers    timers

	reader *reader // who speaks on its channel, when that is not the leader

	// From the end of the leader on:
	reapC      chan struct{} // closed when its status may be taken
	reaping    bool          // that was said, and what the status is was not told yet
	ended      bool
	exit       Exit
	counted    bool          // among the exits of its slot
	releasedC  chan struct{} // closed when nobody can write to its output any more
	outputDone bool
	bootFailed bool // is among the failures of the boot
}

// orphan says whether only the reader is left.
func (pr *proc) orphan() bool { return pr.ended && pr.reader.alive() }

// timers are the deadlines of a process; zero is off.
type timers [timerCount]time.Time

const (
	startTimer  = iota // to be ready
	readyTimer         // ready without a word
	silentTimer        // to have spoken
	spreadTimer        // when to drain it, see setTurns
	termTimer          // to have drained
	killTimer          // to have ended
	readerTimer        // to have ended after its reader
	stuckTimer         // to have ended after a KILL
	timerCount
)

// clear switches all off but those that follow from an end.
func (t *timers) clear() {
	*t = timers{readerTimer: t[readerTimer], stuckTimer: t[stuckTimer]}
}

func (t *timers) set(i int, now time.Time, d time.Duration) {
	t[i] = time.Time{}
	if d >= 0 {
		t[i] = now.Add(d)
	}
}

// due says whether timer i is over, and then switches it off.
func (t *timers) due(i int, now time.Time) bool {
	if t[i].IsZero() || now.Before(t[i]) {
		return false
	}
	t[i] = time.Time{}
	return true
}

func (p *Pool) growSlots(n int) {
	for i := len(p.slots); i < n; i++ {
		p.slots = append(p.slots, &slot{
			index:   i,
			tmpl:    p.tmpl,
			backoff: backoff{min: p.cfg.RespawnMin, max: p.cfg.RespawnMax},
		})
	}
}

// start begins a start of the slot; its outcome comes as started or spawnFailed.
func (p *Pool) start(s *slot, why StartReason) {
	if p.freezing != nil { // as soon as it has gone on
		s.startAt, s.pause, s.why = time.Now(), 0, why
		return
	}
	s.startAt, s.pause, s.why = time.Time{}, 0, why
	s.spawning = true
	if !p.forceAt.IsZero() {
		p.putOffForce(time.Now())
	}
	p.spawning++
	t, limit := s.tmpl, p.cfg.StartTimeout
	p.tasks.Go(func() { p.live(p.spawnCtx, s, t, limit, false) })
}

// plan sets the next start of the slot.
func (p *Pool) plan(s *slot, d time.Duration, why StartReason) {
	if d <= 0 {
		p.start(s, why)
		return
	}
	s.startAt, s.pause, s.why = time.Now().Add(d), d, why
	if hook := p.cfg.Hooks.Backoff; hook != nil {
		p.hooks.post(func() { hook(s.index, d) })
	}
}

// started: the command of s runs. c is the master's end of its channel.
func (p *Pool) started(s *slot, pr *proc, c handoff.Channel) {
	p.spawning--
	surplus := false
	switch {
	case pr.successor && s.nextTmpl == pr.tmpl:
		s.nextSpawning = false
		s.next = pr
		s.starts[s.nextWhy]++
	case pr.successor: // given up while it was being spawned
		s.nextSpawning = false
		surplus = true
		s.older = append(s.older, pr)
		s.starts[s.nextWhy]++
	case s.cur != nil: // a successor was faster
		s.spawning = false
		surplus = true
		s.older = append(s.older, pr)
		s.starts[s.why]++
	default:
		s.spawning = false
		s.cur = pr
		s.starts[s.why]++
	}
	p.procs[pr.w.ID] = pr

	cfg, now := &p.cfg, time.Now()
	pr.state = StateStarting
	pr.native = cfg.Protocol == ProtocolNative || cfg.Protocol == ProtocolNode
	pr.timers.set(startTimer, pr.w.Started, cfg.StartTimeout)
	if cfg.mayBeListenFDs() {
		// From the exec on: that the helper is slow, on a busy machine, makes no
		// program ready.
		pr.timers.set(readyTimer, now, cfg.ReadyAfter)
	} else {
		pr.timers.set(silentTimer, now, cfg.SilentAfter)
	}
	if hook := cfg.Hooks.Started; hook != nil {
		p.hooks.post(func() { hook(pr.w, c) })
	} else if c != nil {
		c.Close() // nobody wants it
	}
	if p.stopping || s.index >= p.desired || surplus || s.held { // while it was being spawned
		p.drain(pr)
	}
}

// spawnFailed: there is no process.
func (p *Pool) spawnFailed(s *slot, err error) {
	s.spawning = false
	p.spawning--
	s.spawnFailures++
	if hook := p.cfg.Hooks.SpawnFailed; hook != nil {
		p.hooks.post(func() { hook(s.index, err) })
	}
	switch {
	case p.stopping || s.index >= p.desired || s.held || s.cur != nil:
	case p.booting:
		p.boot = append(p.boot, BootFailure{Slot: s.index, Err: err})
	default:
		p.plan(s, spawnRetry, s.why)
	}
}

func (p *Pool) spoke(pr *proc) {
	if p.cfg.hasChannel() {
		pr.native, pr.said = true, true
		pr.timers[silentTimer] = time.Time{}
		pr.timers[readyTimer] = time.Time{}
	}
}

func (p *Pool) becomeReady(pr *proc) {
	if pr.state == StateDraining && !pr.wasReady && pr.native && !pr.asked && !pr.killed && !pr.aborted && !pr.ended {
		// It was asked to drain in the moment that it became ready.
		pr.wasReady, pr.readyAt = true, time.Now()
		pr.timers.set(termTimer, time.Now(), pr.drainLeft(time.Now()))
		return
	}
	if pr.state != StateStarting || pr.killed || pr.aborted || pr.ended {
		return
	}
	now := time.Now()
	pr.state, pr.wasReady, pr.readyAt = StateReady, true, now
	pr.timers.clear()
	p.observeStart(now.Sub(pr.w.Started))
	if hook := p.cfg.Hooks.Ready; hook != nil {
		p.hooks.post(func() { hook(pr.w) })
	}
	if p.booting {
		p.endBoot()
	}
}

// setDesired changes the number of slots in use.
func (p *Pool) setDesired(n int) {
	old := p.desired
	p.desired = n
	p.growSlots(n)
	for i := old; i < n && p.phase == phaseRunning; i++ {
		// One that still drains, or is being spawned, goes on at its end.
		s := p.slots[i]
		p.supersede(s)
		if s.cur == nil && !s.spawning && s.startAt.IsZero() && !s.held {
			p.start(s, StartScale)
		}
	}
	if n > old {
		p.roll.grow(p.slots[old:n])
	}
	for i := n; i < old; i++ {
		p.vacate(p.slots[i])
	}
}

// nextDeadline returns the earliest of all; zero for none.
func (p *Pool) nextDeadline() (next time.Time) {
	consider := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	consider(p.leaveAt)
	consider(p.rollDeadline())
	for _, s := range p.slots {
		if p.freezing == nil {
			consider(s.startAt)
		}
	}
	if s, at := p.nextInTurn(); s != nil {
		consider(at)
	}
	for _, pr := range p.procs {
		for _, t := range pr.timers {
			consider(t)
		}
	}
	return next
}

// expire does what is due.
func (p *Pool) expire(now time.Time) {
	for _, s := range p.slots {
		if p.freezing == nil && !s.startAt.IsZero() && !now.Before(s.startAt) {
			p.start(s, s.why)
		}
	}
	if s, at := p.nextInTurn(); s != nil && !now.Before(at) {
		p.start(s, s.why)
	}
	for _, pr := range p.procs {
		if pr.timers.due(readyTimer, now) {
			p.becomeReady(pr)
		}
		if pr.timers.due(silentTimer, now) {
			if hook := p.cfg.Hooks.Silent; hook != nil {
				p.hooks.post(func() { hook(pr.w) })
			}
		}
		if pr.timers.due(startTimer, now) {
			p.kill(pr, fmt.Sprintf("not ready within %v", p.cfg.StartTimeout))
		}
		if pr.timers.due(spreadTimer, now) {
			if p.stopping {
				p.drainUntil(pr, p.drainEnd)
			} else {
				p.drain(pr)
			}
		}
		if pr.timers.due(termTimer, now) {
			p.terminate(pr, p.cfg.StopTimeout)
		}
		if pr.timers.due(killTimer, now) {
			p.kill(pr, "did not end when asked to")
		}
		if pr.timers.due(readerTimer, now) {
			p.killShell(pr)
		}
		if pr.timers.due(stuckTimer, now) {
			p.stick(pr)
		}
	}
}
