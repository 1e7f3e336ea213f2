package pool

import (
	"fmt"
	"syscall"
	"time"
)

// newsLimit bounds how long it is waited for the word, of who gives out connections, that
// a worker which is not known to be ready has any, or has none. It comes at once but for a
// worker that accepts by itself and has said something already: that one is asked.
const newsLimit = 5 * time.Second

// abortPatience replaces a StopTimeout that is off for Abort: what is aborted was not
// asked to end in its own time.
const abortPatience = 5 * time.Second

// drain asks the worker to end, in the way of its kind.
func (p *Pool) drain(pr *proc) { p.drainWithin(pr, p.cfg.DrainTimeout) }

// drainUntil is drain with what is left of the drain timeout; end is zero where that is
// off.
func (p *Pool) drainUntil(pr *proc, end time.Time) {
	left := NoTimeout
	if !end.IsZero() {
		left = max(time.Until(end), 0)
	}
	p.drainWithin(pr, left)
}

// drainWithin is drain with another drain timeout.
func (p *Pool) drainWithin(pr *proc, timeout time.Duration) {
	if pr.requested || p.procs[pr.w.ID] != pr { // it is gone
		return
	}
	pr.requested = true
	if hook := p.cfg.Hooks.Drain; hook != nil {
		p.hooks.post(func() { hook(pr.w) })
	}
	if pr.killed || pr.aborted { // there is no politer way any more
		return
	}
	serving := pr.state == StateReady
	pr.state = StateDraining
	pr.timers.clear()
	switch {
	case serving && pr.native:
		pr.timers.set(termTimer, time.Now(), timeout)
	case serving:
		p.terminate(pr, addTimeouts(timeout, p.cfg.StopTimeout))
	case p.cfg.hasChannel():
		// It may be ready, and have connections, and the news be on its way here. Drained
		// comes after it, and alone if there is nothing to finish. A Node worker closes its
		// channel instead.
		pr.drainLimit = timeout
		pr.timers.set(termTimer, time.Now(), pr.newsLimit())
	default: // it has nothing to finish
		p.terminate(pr, p.cfg.StopTimeout)
	}
}

// newsLimit is how long pr may let us wait for the news: that counts as draining.
func (pr *proc) newsLimit() time.Duration {
	if pr.drainLimit < 0 {
		return newsLimit
	}
	return min(newsLimit, pr.drainLimit)
}

// drainLeft is what pr has left of its drain timeout when the news has come.
func (pr *proc) drainLeft(now time.Time) time.Duration {
	if pr.drainLimit < 0 {
		return NoTimeout
	}
	waited := pr.newsLimit() - pr.timers[termTimer].Sub(now)
	return max(pr.drainLimit-max(waited, 0), 0)
}

func (p *Pool) drained(pr *proc) {
	if pr.state == StateDraining && !pr.killed && !pr.aborted {
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

// retire drains one process whose slot goes on. If a roll does not trust the process yet,
// the roll fails.
func (p *Pool) retire(pr *proc, reason string) {
	if pr.requested || pr.killed || pr.aborted || pr.ended {
		return
	}
	if p.roll.tries(pr) {
		p.rollFailed(pr.s, fmt.Errorf("process %d is replaced: %s", pr.w.PID, reason))
	}
	if !pr.requested { // by the roll
		pr.retired = reason
		p.drain(pr)
	}
}

// abort sends sig to the leader, and kills the group if that did not end it.
func (p *Pool) abort(pr *proc, sig syscall.Signal, reason string) {
	if pr.killed || pr.aborted || pr.ended {
		return
	}
	pr.aborted, pr.reason = true, reason
	pr.timers.clear()
	d := p.cfg.StopTimeout
	if d < 0 {
		d = abortPatience
	}
	pr.timers.set(killTimer, time.Now(), d)
	_ = pr.p.signal(sig) // as in terminate
}

// kill ends the process group. An empty reason is for a kill that was asked for.
func (p *Pool) kill(pr *proc, reason string) {
	if pr.killed {
		return
	}
	if !pr.aborted { // its first reason is the better one
		pr.reason = reason
	}
	pr.killed, pr.killedAt = true, time.Now()
	pr.timers = timers{}
	pr.timers.set(stuckTimer, pr.killedAt, stuckAfter)
	pr.p.kill()
}

// vacate ends a slot's worker and forgets its plans.
func (p *Pool) vacate(s *slot) {
	s.startAt, s.pause, s.down, s.held = time.Time{}, 0, false, false
	s.backoff.failures = 0
	p.dropKept(s)
	for _, pr := range s.older {
		p.drainInTurn(pr)
	}
	p.dropNext(s)
	if s.cur != nil {
		p.drainInTurn(s.cur)
	}
}

func (p *Pool) stop() {
	if !p.stopping {
		p.spread()
	}
	p.stopping = true
	for _, s := range p.slots {
		p.vacate(s)
	}
	now := time.Now()
	for _, pr := range p.procs {
		p.hasten(pr, now)
	}
}

// hasten has one that drains already, by limits of another time, end within those of a
// stop: they may have been longer, or off.
func (p *Pool) hasten(pr *proc, now time.Time) {
	if !pr.requested || pr.killed {
		return
	}
	i, limit := termTimer, p.cfg.DrainTimeout
	switch {
	case pr.aborted, pr.asked && pr.native:
		i, limit = killTimer, p.cfg.StopTimeout
	case pr.asked:
		i, limit = killTimer, addTimeouts(p.cfg.DrainTimeout, p.cfg.StopTimeout)
	}
	if limit < 0 {
		return
	}
	if t := pr.timers[i]; t.IsZero() || t.After(now.Add(limit)) {
		pr.timers.set(i, now, limit)
	}
}

// spread has the workers that serve told to drain one after the other: the first now,
// each of the others its share of DrainSpread later. vacate leaves those alone.
func (p *Pool) spread() {
	now := time.Now()
	if p.cfg.DrainTimeout >= 0 {
		p.drainEnd = now.Add(p.cfg.DrainTimeout)
	}
	var serving []*proc
	for _, s := range p.slots {
		for _, pr := range s.processes() {
			pr.timers[spreadTimer] = time.Time{} // of a roll
			if pr != s.next && pr.serves() {
				serving = append(serving, pr)
			}
		}
	}
	p.setTurns(serving, now)
}

func (p *Pool) stopNow() {
	p.cfg.DrainSpread = 0
	for _, pr := range p.procs {
		pr.timers[spreadTimer] = time.Time{}
	}
	p.stop()
	p.killSpawn()
	for _, pr := range p.procs {
		p.kill(pr, "")
	}
}

// addTimeouts adds two time-outs of which each may be off.
func addTimeouts(a, b time.Duration) time.Duration {
	if a < 0 || b < 0 {
		return NoTimeout
	}
	return a + b
}
