package pool

import (
	"fmt"
	"syscall"
	"time"

	"rrd/handoff"
)

// slot is a worker's place, kept over respawns. The loop owns it.
type slot struct {
	index    int
	cur      *proc // newest process, or nil
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

// proc is one process until it was reaped. The loop owns it.
type proc struct {
	w Worker
	s *slot
	p process

	state     State // starting, ready or draining
	native    bool  // speaks on its channel, or has to
	said      bool  // has spoken
	wasReady  bool
	readyAt   time.Time
	requested bool // was asked to end
	asked     bool // got its stop signal
	killed    bool // by us
	stuckAt   time.Time
	reason    string // why it was killed, when not as requested
	timers    timers
}

// timers are the deadlines of a process; zero is off.
type timers [timerCount]time.Time

const (
	startTimer  = iota // to be ready
	readyTimer         // ready without a word
	silentTimer        // to have spoken
	termTimer          // to have drained
	killTimer          // to have ended
	timerCount
)

// stuckAfter is how long a killed process may take to end before it is reported as
// stuck (a frozen cgroup, a dead network file system). It is waited for all the same.
const stuckAfter = 2 * time.Second

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
			backoff: backoff{min: p.cfg.RespawnMin, max: p.cfg.RespawnMax},
		})
	}
}

// start begins a start of the slot; its outcome comes as started or spawnFailed.
func (p *Pool) start(s *slot, why StartReason) {
	s.startAt, s.pause, s.why = time.Time{}, 0, why
	s.spawning = true
	p.spawning++
	generation := 1 // rolls will raise it
	p.tasks.Go(func() { p.live(p.spawnCtx, s, generation) })
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
func (p *Pool) started(s *slot, pr *proc, c *handoff.Conn) {
	s.spawning = false
	p.spawning--
	s.cur = pr
	s.starts[s.why]++
	p.procs[pr.w.ID] = pr

	cfg, now := &p.cfg, time.Now()
	pr.state = StateStarting
	pr.native = cfg.Protocol == ProtocolNative || cfg.Protocol == ProtocolNode
	pr.timers.set(startTimer, pr.w.Started, cfg.StartTimeout)
	if cfg.mayBeListenFDs() {
		pr.timers.set(readyTimer, pr.w.Started, cfg.ReadyAfter)
	} else {
		pr.timers.set(silentTimer, now, cfg.SilentAfter)
	}
	if hook := cfg.Hooks.Started; hook != nil {
		p.hooks.post(func() { hook(pr.w, c) })
	} else if c != nil {
		c.Close() // nobody wants it
	}
	if p.stopping || s.index >= p.desired { // while it was being spawned
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
	case p.stopping || s.index >= p.desired:
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
	if pr.state != StateStarting || pr.killed {
		return
	}
	now := time.Now()
	pr.state, pr.wasReady, pr.readyAt = StateReady, true, now
	pr.timers = timers{}
	p.observeStart(now.Sub(pr.w.Started))
	if hook := p.cfg.Hooks.Ready; hook != nil {
		p.hooks.post(func() { hook(pr.w) })
	}
	if p.booting {
		p.endBoot()
	}
}

// drain asks the worker to end, in the way of its kind.
func (p *Pool) drain(pr *proc) {
	if pr.requested {
		return
	}
	serving := pr.state == StateReady
	pr.requested = true
	pr.state = StateDraining
	pr.timers = timers{}
	if hook := p.cfg.Hooks.Drain; hook != nil {
		p.hooks.post(func() { hook(pr.w) })
	}
	switch {
	case serving && pr.native:
		pr.timers.set(termTimer, time.Now(), p.cfg.DrainTimeout)
	case serving:
		p.terminate(pr, addTimeouts(p.cfg.DrainTimeout, p.cfg.StopTimeout))
	default: // it has nothing to finish
		p.terminate(pr, p.cfg.StopTimeout)
	}
}

func (p *Pool) drained(pr *proc) {
	if pr.state == StateDraining && pr.native {
		p.terminate(pr, p.cfg.StopTimeout)
	}
}

// terminate sends the stop signal once, and allows d for its effect.
func (p *Pool) terminate(pr *proc, d time.Duration) {
	if pr.asked {
		return
	}
	pr.asked = true
	pr.timers[termTimer] = time.Time{}
	pr.timers.set(killTimer, time.Now(), d)
	sig := p.cfg.StopSignal
	if pr.native {
		sig = syscall.SIGTERM
	}
	// A leader that is gone is reported by its exit; no other error is possible
	// for a child of ours, and the kill timer is set.
	_ = pr.p.signal(sig)
}

// kill ends the process group. An empty reason is for a kill that was asked for.
func (p *Pool) kill(pr *proc, reason string) {
	if pr.killed {
		return
	}
	pr.killed, pr.reason = true, reason
	pr.stuckAt = time.Now().Add(stuckAfter)
	pr.timers = timers{}
	pr.p.kill()
}

// exited: the process is reaped, its group was killed before.
func (p *Pool) exited(pr *proc, status exitStatus, lastWords string) {
	s := pr.s
	delete(p.procs, pr.w.ID)
	if s.cur == pr {
		s.cur = nil
	}
	now := time.Now()
	x := Exit{
		Code:      status.code,
		Signal:    status.signal,
		Core:      status.core,
		Requested: pr.requested,
		Cause:     p.cause(pr, status),
		Uptime:    now.Sub(pr.w.Started),
		WasReady:  pr.wasReady,
		Spoke:     pr.said,
		LastWords: lastWords,
	}
	if x.Cause == CauseKilledStuck {
		x.Reason = pr.reason
	}
	s.exits[x.Cause]++
	s.lastExit = &x
	if hook := p.cfg.Hooks.Exited; hook != nil {
		p.hooks.post(func() { hook(pr.w, x) })
	}
	switch {
	case p.stopping || s.index >= p.desired:
	case pr.requested: // its slot was taken away and given back
		p.start(s, StartScale)
	case p.booting:
		p.boot = append(p.boot, BootFailure{Slot: s.index, Exit: &x})
	default:
		p.replace(s, x, pr.wasReady && now.Sub(pr.readyAt) >= p.cfg.HealthyAfter)
	}
}

// replace plans the successor of a process nobody asked to end.
func (p *Pool) replace(s *slot, x Exit, healthy bool) {
	if p.cfg.Restart == RestartNever || p.cfg.Restart == RestartOnFailure && x.clean() {
		s.down = true
		return
	}
	p.plan(s, s.backoff.next(healthy, p.sys.jitter()), StartCrash)
}

// cause judges an exit. What was asked for is only "requested" if it ended as asked:
// a worker that crashes while it drains has crashed.
func (p *Pool) cause(pr *proc, status exitStatus) Cause {
	killed := status.signal == syscall.SIGKILL
	switch {
	case killed && pr.killed && pr.reason != "":
		return CauseKilledStuck
	case killed && pr.killed:
		return CauseRequested
	case pr.requested && (status.signal == 0 ||
		status.signal == syscall.SIGTERM || status.signal == p.cfg.StopSignal):
		return CauseRequested
	case killed && p.outOfMemory():
		return CauseOOM
	case status.signal != 0:
		return CauseSignal
	default:
		return CauseCode
	}
}

// outOfMemory says whether our cgroup has seen a kill since the last look. With
// several KILLs at once it may name the wrong one; there is no better source.
func (p *Pool) outOfMemory() bool {
	n := p.sys.oomKills()
	more := n > p.oomSeen
	p.oomSeen = n
	return more
}

// setDesired changes the number of slots in use.
func (p *Pool) setDesired(n int) {
	old := p.desired
	p.desired = n
	p.growSlots(n)
	for i := old; i < n && p.phase == phaseRunning; i++ {
		// One that still drains, or is being spawned, goes on at its end.
		if s := p.slots[i]; s.cur == nil && !s.spawning {
			p.start(s, StartScale)
		}
	}
	for i := n; i < old; i++ {
		p.retire(p.slots[i])
	}
}

// retire ends a slot's worker and forgets its plans.
func (p *Pool) retire(s *slot) {
	s.startAt, s.pause, s.down = time.Time{}, 0, false
	s.backoff.failures = 0
	if s.cur != nil {
		p.drain(s.cur)
	}
}

func (p *Pool) stop() {
	p.stopping = true
	for _, s := range p.slots {
		p.retire(s)
	}
}

func (p *Pool) stopNow() {
	p.stop()
	p.killSpawn()
	for _, pr := range p.procs {
		p.kill(pr, "")
	}
}

// nextDeadline returns the earliest of all; zero for none.
func (p *Pool) nextDeadline() (next time.Time) {
	consider := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for _, s := range p.slots {
		consider(s.startAt)
	}
	for _, pr := range p.procs {
		for _, t := range pr.timers {
			consider(t)
		}
	}
	return next
}

// postpone moves every deadline of a process by lag. Planned starts stay.
func (p *Pool) postpone(lag time.Duration) {
	for _, pr := range p.procs {
		for i, t := range pr.timers {
			if !t.IsZero() {
				pr.timers[i] = t.Add(lag)
			}
		}
	}
}

// expire does what is due.
func (p *Pool) expire(now time.Time) {
	for _, s := range p.slots {
		if !s.startAt.IsZero() && !now.Before(s.startAt) {
			p.start(s, s.why)
		}
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
		if pr.timers.due(termTimer, now) {
			p.terminate(pr, p.cfg.StopTimeout)
		}
		if pr.timers.due(killTimer, now) {
			p.kill(pr, "did not end when asked to")
		}
	}
}

// addTimeouts adds two time-outs of which each may be off.
func addTimeouts(a, b time.Duration) time.Duration {
	if a < 0 || b < 0 {
		return NoTimeout
	}
	return a + b
}
