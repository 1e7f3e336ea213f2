package pool

import "time"

// A worker of some protocols ends its conversation by itself: Node's closes its
// end of the channel when it has finished what it was asked to finish, and also
// when the program wants to go. It then ends its process by itself, in its own
// time, unless something (a timer, a connection to a database) keeps it.

// Leaves says that the worker is about to end of its own accord. Its exit, if
// it is clean, is no failure: the backoff does not grow.
func (p *Pool) Leaves(id uint64) {
	p.report(Report{Kind: reportLeaves, ID: id})
}

// HungUp says that the worker has closed its channel, which in its protocol is
// no fault. It gets StopTimeout to end by itself, then its signal.
func (p *Pool) HungUp(id uint64) { p.report(Report{Kind: reportHungUp, ID: id}) }

func (p *Pool) hungUp(pr *proc) {
	if pr.killed || pr.aborted || pr.ended || pr.asked {
		return
	}
	if pr.state == StateReady {
		pr.state = StateDraining
	}
	patience := p.cfg.StopTimeout
	if patience < 0 {
		patience = p.cfg.DrainTimeout
	}
	end := pr.timers[termTimer] // of the drain
	pr.timers.clear()
	pr.timers.set(termTimer, time.Now(), patience)
	if t := &pr.timers[termTimer]; !end.IsZero() && (t.IsZero() || end.Before(*t)) {
		*t = end
	}
}

// pauseAfterLeaving keeps a slot whose worker always leaves from being started
// more often than once in RespawnMin.
func (p *Pool) pauseAfterLeaving(pr *proc) time.Duration {
	return p.cfg.RespawnMin - pr.exit.Uptime
}
