package dispatcher

import "time"

// A program that inherits its listeners may not use them: then clients connect,
// the kernel queues them, and nothing ever happens. The loop cannot see who
// accepts from a shared socket, only that its queue never gets shorter.

// A queue is looked at every so often; one that was never empty and never got
// shorter for so long is ignored.
const (
	ignoredEvery = int64(500 * time.Millisecond)
	ignoredAfter = int64(3 * time.Second)
)

// neglect is what the looks at a shared listener's queue have found.
type neglect struct {
	length uint32 // at the last look
	since  int64  // when it was empty or got shorter last
	told   bool   // and it has not been empty since
}

// lookForIgnored tells once of each shared listener that nobody accepts from.
func (l *loop) lookForIgnored() {
	l.ignoredAt = l.now + ignoredEvery
	hook := l.cfg.Hooks.Ignored
	for _, ln := range l.listeners {
		if ln == nil || !ln.shared || ln.ending() {
			continue
		}
		l.tellRearmed(ln)
		l.reviveDead(ln)
		l.lookForFilters(ln)
		n, queue := &ln.neglect, l.queueLength(ln)
		if queue == 0 {
			n.told = false
		}
		if queue == 0 || queue < n.length {
			n.since = l.now
		}
		n.length = queue
		if n.since != 0 && l.now-n.since >= ignoredAfter && !n.told {
			n.told = true
			if hook != nil {
				info := ln.info()
				l.event(func() { hook(info) })
			}
		}
	}
}
