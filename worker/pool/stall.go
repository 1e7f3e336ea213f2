package pool

import "time"

// A master that stands still (SIGSTOP, a frozen machine) must not take its own absence for
// that of its workers, who may have stood still with it. So its deadlines for them move by
// the length of the stall. They do not start anew: a process that does not end would
// outlive a master that is stopped again and again.

const (
	// late separates a slow turn from a stall.
	late = time.Second
	// watchEvery is the time between looks at the clock while a process has a deadline. They
	// show when a stall began.
	watchEvery = 250 * time.Millisecond
)

// nextWake returns when the next turn is due; zero: when something happens. watched reports
// whether a process has a deadline. awake is when the turn before began.
func (p *Pool) nextWake(awake time.Time) (next time.Time, watched bool) {
	next = p.nextDeadline()
	for _, pr := range p.procs {
		if pr.timers != (timers{}) {
			if soon := awake.Add(watchEvery); next.IsZero() || soon.Before(next) {
				next = soon
			}
			return next, true
		}
	}
	return next, false
}

// postpone moves every deadline of a process by a stall. Planned starts stay.
func (p *Pool) postpone(stall time.Duration) {
	for _, pr := range p.procs {
		for i := range pr.timers {
			postponeTime(&pr.timers[i], stall)
		}
	}
	postponeTime(&p.drainEnd, stall)
	postponeTime(&p.leaveAt, stall)
}

// postponeTime moves a time that is not zero.
func postponeTime(t *time.Time, by time.Duration) {
	if !t.IsZero() {
		*t = t.Add(by)
	}
}
