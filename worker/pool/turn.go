package pool

import "time"

// Backoff never stops the service: while no worker is ready, the slot whose turn is next is
// started every RespawnMin, whatever its backoff. A new process may serve where the ones
// before could not.

// minForcePause bounds such starts to ten a second.
const minForcePause = 100 * time.Millisecond

// canServe reports whether a worker is ready and nothing is known that will end that.
func (p *Pool) canServe() bool {
	for _, pr := range p.procs {
		if pr.state == StateReady && !pr.requested && !pr.killed && !pr.aborted && !pr.ended {
			return true
		}
	}
	return false
}

// watchService notes since when no worker is ready. Until the first one was, each slot is
// started once, and a pool that stops starts none.
func (p *Pool) watchService(now time.Time) {
	switch {
	case p.booting || p.stopping || p.canServe():
		p.forceAt = time.Time{}
	case p.forceAt.IsZero():
		p.putOffForce(now)
	}
}

// putOffForce is called at each start, too, so that starts do not come in bursts.
func (p *Pool) putOffForce(now time.Time) { p.forceAt = now.Add(max(p.cfg.RespawnMin, minForcePause)) }

// nextInTurn returns the slot that is forced next, and the time. It is the waiting slot
// whose turn comes first, or nil if no slot waits.
func (p *Pool) nextInTurn() (next *slot, at time.Time) {
	if p.forceAt.IsZero() || p.freezing != nil {
		return nil, time.Time{}
	}
	for _, s := range p.slots[:p.desired] {
		if !s.startAt.IsZero() && (next == nil || s.startAt.Before(next.startAt)) {
			next = s
		}
	}
	if next == nil {
		return nil, time.Time{}
	}
	at = p.forceAt
	if next.startAt.Before(at) {
		at = next.startAt
	}
	return next, at
}
