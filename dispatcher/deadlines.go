package dispatcher

import (
	"slices"
	"time"
)

// goneAfter is how long a connection waits before it is worth a look whether
// its client has left.
const goneAfter = int64(100 * time.Millisecond)

// nextDeadline returns when the next turn must begin at the latest; 0: whenever
// something happens.
func (l *loop) nextDeadline() int64 {
	next := int64(0)
	sooner := func(at int64) {
		if next == 0 || at < next {
			next = max(at, 1)
		}
	}
	if c := l.flight.head; c != none {
		sooner(l.socks[c].sent + int64(l.cfg.BusyAfter))
	}
	if at := l.aside.Next(); at != 0 {
		sooner(at)
	}
	if l.acceptAt != 0 {
		sooner(l.acceptAt)
	}
	if l.ignoredAt != 0 {
		sooner(l.ignoredAt)
	}
	if l.giveUpAt != 0 {
		sooner(l.giveUpAt)
	}
	if at := l.ticketsDue(); at != 0 {
		sooner(at)
	}
	if l.files.at != 0 && !l.files.looking {
		sooner(l.files.at)
	}
	for _, k := range l.healths {
		sooner(k.healthAt)
	}
	if l.cfg.HangTimeout > 0 && len(l.byID) > 0 {
		sooner(l.beatAt)
	}
	for _, k := range l.settling {
		sooner(k.settleAt)
	}
	for _, k := range l.releasing {
		sooner(k.releaseAt)
	}
	if len(l.retries) > 0 || l.refsUntil > l.now && l.table.waiting > 0 {
		sooner(l.refsUntil)
	}
	for _, p := range l.agains {
		sooner(p.at)
	}
	if l.cfg.HangTimeout > 0 {
		for _, k := range l.late {
			if !k.hung {
				sooner(k.lateSince + int64(l.cfg.HangTimeout))
			}
		}
	}
	if l.table.waiting > 0 {
		if l.cfg.QueueTimeout > 0 {
			for id := range l.listeners {
				if c := l.oldest(listenerID(id)); c != none {
					sooner(l.socks[c].accepted + int64(l.cfg.QueueTimeout))
				}
			}
		}
		if l.cfg.Hooks.Waiting != nil {
			sooner(l.reports.waitingAt)
		}
	}
	if l.reports.dropsPending {
		sooner(l.reports.dropsAt)
	}
	if l.cfg.Policy == SchedReuseport {
		if at := l.orphanDeadline(); at != 0 {
			sooner(at)
		}
	}
	if l.closing > 0 {
		for _, ln := range l.listeners {
			if ln == nil || !ln.closing {
				continue
			}
			if ln.looking {
				sooner(max(ln.checkAt, ln.closeBy)) // it ends also if the look does not
			} else {
				sooner(ln.checkAt)
			}
		}
	}
	return next
}

func (l *loop) oldest(id listenerID) connID {
	if l.listeners[id] == nil {
		return none
	}
	return l.table.listeners[id].waiting.head
}

// oldestWait returns the age of the connection that has waited the longest.
func (l *loop) oldestWait() (age time.Duration) {
	for id := range l.listeners {
		if c := l.oldest(listenerID(id)); c != none {
			age = max(age, time.Duration(l.now-l.socks[c].accepted))
		}
	}
	return age
}

// deadlines acts on what is due.
func (l *loop) deadlines() {
	for c := l.flight.head; c != none && l.socks[c].sent+int64(l.cfg.BusyAfter) <= l.now; c = l.flight.head {
		l.becomeLate(l.links[l.table.conns[c].worker])
	}
	if l.cfg.HangTimeout > 0 {
		for _, k := range l.late {
			if !k.hung && k.lateSince+int64(l.cfg.HangTimeout) <= l.now {
				l.reportHung(k, k.lateSince)
			}
		}
	}
	if l.cfg.HangTimeout > 0 && l.beatAt <= l.now && len(l.byID) > 0 {
		l.heartbeat()
	}
	if len(l.healths) > 0 {
		l.tellHealth()
	}
	if l.ignoredAt != 0 && l.ignoredAt <= l.now {
		l.lookForIgnored()
	}
	if l.giveUpAt != 0 && l.giveUpAt <= l.now {
		l.giveUpBinds()
	}
	if l.files.at != 0 && l.files.at <= l.now {
		l.lookAtFiles()
	}
	if l.acceptAt != 0 && l.acceptAt <= l.now {
		l.acceptAt = 0
		l.watchAll()
	}
	if at := l.ticketsDue(); at != 0 && at <= l.now {
		l.rotateTickets()
	}
	if len(l.releasing) > 0 {
		l.release()
	}
	if len(l.settling) > 0 {
		l.settle()
	}
	if len(l.agains) > 0 {
		l.dueAgains()
	}
	if len(l.retries) > 0 && l.refsUntil <= l.now {
		l.dueRetries()
	}
	if l.cfg.Policy == SchedReuseport {
		l.dueOrphans()
	}
	if l.cfg.QueueTimeout > 0 && l.table.waiting > 0 {
		for id := range l.listeners {
			for c := l.oldest(listenerID(id)); c != none && l.socks[c].accepted+int64(l.cfg.QueueTimeout) <= l.now; c = l.oldest(listenerID(id)) {
				l.drop(c, DropQueueTimeout)
				l.timeoutAt = max(l.now, 1)
			}
		}
	}
	l.report()
}

// becomeLate judges a worker whose oldest answer is overdue: first its channel is
// read to the end, then what it has not read yet is taken back. What is left
// stays with it.
func (l *loop) becomeLate(k *link) {
	for n := 0; n < allMessages && !k.gone && l.readMessage(k); n++ {
	}
	w := &l.table.workers[k.idx]
	if w.flying.head == none || l.socks[w.flying.head].sent+int64(l.cfg.BusyAfter) > l.now {
		return
	}
	for c := w.flying.head; c != none; c = l.table.conns[c].next {
		l.flight.remove(l.socks, c) // watched as the worker's from here on
	}
	if k.late {
		return
	}
	k.late, k.alive, k.hung, k.lateSince = true, false, false, l.socks[w.flying.head].sent
	l.late = append(l.late, k)
	l.review(k)
	if !k.gone {
		l.recall(k, RedispatchRecalled, true)
		l.ping(k)
	}
}

// recover lets a late worker have connections again once it has spoken and owes
// nothing overdue.
func (l *loop) recover(k *link) {
	w := &l.table.workers[k.idx]
	if !k.alive || k.gone {
		return
	}
	if c := w.flying.head; c != none {
		if l.socks[c].sent+int64(l.cfg.BusyAfter) <= l.now {
			k.lateSince = l.socks[c].sent
			return
		}
		for ; c != none; c = l.table.conns[c].next {
			if !l.socks[c].listed {
				l.flight.pushSent(l.socks, c)
			}
		}
	}
	l.forgetLate(k)
	l.review(k)
}

func (l *loop) forgetLate(k *link) {
	k.late, k.hung = false, false
	if i := slices.Index(l.late, k); i >= 0 {
		l.late = slices.Delete(l.late, i, i+1)
	}
}

// dropIfGone drops the clients at the head of a queue that have reset their
// connection while they waited. It reports false if nobody waits. A FIN is not
// gone: half-closed clients are served.
func (l *loop) dropIfGone(id listenerID) bool {
	for {
		c := l.table.listeners[id].waiting.head
		if c == none {
			return false
		}
		s := &l.socks[c]
		if l.now-s.accepted <= goneAfter {
			return true
		}
		if !isReset(s.fd) {
			return true
		}
		l.drop(c, DropClientGone)
	}
}

// reports keeps notices from flooding: each at most once a second.
type reports struct {
	pauseAt, waitingAt, dropsAt int64
	dropsPending                bool
	fatalAt                     int64
	fatals                      int // not reported yet
}

const reportEvery = int64(time.Second)

func (r *reports) due(at *int64, now int64) bool {
	if *at > now {
		return false
	}
	*at = now + reportEvery
	return true
}

// report tells of drops and of connections that wait.
func (l *loop) report() {
	l.reportDrops(false)
	if l.table.waiting == 0 {
		l.reports.waitingAt = l.now + reportEvery
		return
	}
	if hook := l.cfg.Hooks.Waiting; hook != nil && l.reports.due(&l.reports.waitingAt, l.now) {
		for _, ln := range l.listeners {
			if ln == nil || l.table.listeners[ln.id].waiting.len == 0 {
				continue
			}
			name, n, why := ln.conf.Name, l.table.listeners[ln.id].waiting.len, l.whyWaiting(ln.id)
			l.event(func() { hook(name, n, why) })
		}
	}
}

func (l *loop) whyWaiting(id listenerID) string {
	ready, serving, busy, rejected, full := 0, 0, 0, 0, 0
	for _, k := range l.links {
		if k == nil || !k.ready || k.gone {
			continue
		}
		ready++
		n := &l.table.listeners[id].nodes[k.idx]
		switch {
		case !n.serves || n.held:
			continue
		case n.rejected:
			rejected++
		case l.atLimit(k):
			full++
		case k.late || k.full:
			busy++
		}
		serving++
	}
	switch {
	case ready == 0:
		return "no worker is ready"
	case serving == 0:
		return "no ready worker serves this listener"
	case rejected == serving:
		return "every worker has rejected and can take no more yet"
	case full == serving:
		return "every worker has --worker-max-connections-active connections"
	case busy == serving:
		return "every worker owes answers for too long"
	}
	return "every worker has its window full"
}

// reportDrops tells of drops; at the end all that are left.
func (l *loop) reportDrops(last bool) {
	hook := l.cfg.Hooks.Dropped
	if hook == nil {
		return
	}
	pending := false
	due := last || l.reports.dropsAt <= l.now
	for _, n := range l.names {
		for r := range n.Dropped {
			fresh := n.Dropped[r] - n.dropsSeen[r]
			if fresh == 0 {
				continue
			}
			if !due {
				pending = true
				continue
			}
			l.reports.dropsAt = l.now + reportEvery
			n.dropsSeen[r] = n.Dropped[r]
			name, why := n.Name, DropReason(r)
			l.event(func() { hook(name, why, fresh) })
		}
	}
	l.reports.dropsPending = pending
}
