package dispatcher

import (
	"time"

	"rrd/handoff"
)

// lateTurn separates a slow turn from a stall. If a turn begins later than this, the whole
// master was stopped.
const lateTurn = int64(time.Second)

// noticeStall is called at the start of a turn. last is when the turn before began, and
// expected when this one should have begun. If the master stood still in between, the
// deadlines of workers move: a worker that stood still with it has not been late.
func (l *loop) noticeStall(last, expected int64) {
	if expected == 0 {
		return // no worker has a deadline
	}
	if stall := l.now - max(expected, last); stall > lateTurn {
		l.postpone(last, stall)
	}
}

// stoodUntil ends a pause of the loop that began at l.now.
func (l *loop) stoodUntil(now int64) {
	last := l.now
	l.now = now
	l.noticeStall(last, last)
}

// postpone moves the deadlines of workers by a stall. It does not start them anew, or a
// worker that hangs would outlive a master that is stopped again and again. The stall
// ended now and began after last, at most a tenth of HangTimeout later: a heartbeat was
// due by then.
func (l *loop) postpone(last, stall int64) {
	l.aside.Postpone(stall)
	for _, k := range l.links {
		if k == nil {
			continue
		}
		for c := l.table.workers[k.idx].flying.head; c != none; c = l.table.conns[c].next {
			if s := &l.socks[c]; s.listed {
				s.sent += l.now - last // as old as before the stall: not late yet
			} else {
				s.sent += stall // a late worker has it
			}
		}
		k.lateSince += stall
		if k.pinged != 0 {
			k.pinged += stall
		}
		if k.settleAt != 0 {
			k.settleAt += l.now - last
		}
		if k.releaseAt != 0 {
			k.releaseAt += l.now - last
		}
	}
}

// rewind sets the loop's time to the time at which s was written. catchUp brings it to the
// present.
func (l *loop) rewind(s *State) (catchUp func()) {
	gone := int64(handoff.SinceSaved(time.Duration(s.SavedAt)))
	l.now -= gone
	if s.BeatIn > 0 {
		l.beatAt = l.now + min(s.BeatIn, l.beatEvery())
	}
	return func() { l.stoodUntil(l.now + gone) }
}
