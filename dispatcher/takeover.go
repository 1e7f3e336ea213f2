package dispatcher

import (
	"slices"
	"syscall"

	"rrd/dispatcher/internal/aside"
	"rrd/handoff"
)

// Under reuseport the kernel goes on hashing clients to the socket of a slot
// whose worker is dead. After a second without a successor the loop accepts them
// itself and hands them to the other slots' workers, as under rr. The socket of
// a slot that is no more is emptied like that, and then closed.

// orphanAfter is how long a slot may have no worker.
const orphanAfter = closeWait

// slotSock is one slot's socket under reuseport.
type slotSock struct {
	*socket
	slot     int
	unserved int64 // since when no ready worker has it; 0: one has
	taken    bool  // the loop accepts from it, by a helper
	asking   bool  // a helper accepts just now
	retiring bool  // the slot is no more
	closeBy  int64
}

// served says whether a ready worker of the slot accepts from ln.
func (l *loop) served(ln *listener, slot int) bool {
	for _, k := range l.links {
		if k != nil && k.slot == slot && k.ready && !k.gone && k.state == handoff.Serving && l.table.serves(k.idx, ln.id) {
			return true
		}
	}
	return false
}

// canTakeOver says whether some worker can be handed what the loop accepts:
// programs that merely inherit their listeners cannot.
func (l *loop) canTakeOver(ln *listener) bool {
	for _, k := range l.links {
		if k != nil && k.ready && !k.gone && l.table.serves(k.idx, ln.id) {
			return true
		}
	}
	return false
}

// reviewSlots looks again which slots' sockets have a worker. Called when a
// worker becomes ready, drains or is gone.
func (l *loop) reviewSlots() {
	for _, ln := range l.listeners {
		if ln == nil {
			continue
		}
		for _, s := range ln.bySlot {
			switch {
			case s.retiring:
			case l.served(ln, s.slot):
				s.unserved = 0
				l.giveBack(s)
			case s.unserved == 0:
				s.unserved = max(l.now, 1)
			}
		}
	}
}

// dueOrphans takes over what has been without a worker for too long, and closes
// what is empty.
func (l *loop) dueOrphans() {
	for _, ln := range l.listeners {
		if ln == nil || len(ln.bySlot) == 0 {
			continue
		}
		for _, s := range ln.bySlot {
			if !s.taken && s.unserved != 0 && l.now >= s.unserved+orphanAfter && l.canTakeOver(ln) {
				l.takeOver(ln, s)
			}
		}
		ln.bySlot = slices.DeleteFunc(ln.bySlot, func(s *slotSock) bool {
			if !s.retiring || l.now < s.closeBy || s.asking || s.taken && isReadable(s.fd) && !ln.closing {
				return false
			}
			l.giveBack(s)
			l.closeSocket(ln, s.socket)
			if ln.asked != nil {
				l.askedSocks--
			}
			return true
		})
	}
}

func (l *loop) takeOver(ln *listener, s *slotSock) {
	// Not while accepting pauses: watch will, when it goes on.
	if err := l.poll.add(s.fd.Num(), ln.token, l.acceptAt == 0 && !l.queueFull, false); err != nil {
		l.fatal("poll listener", err)
		return
	}
	s.taken = true
}

func (l *loop) giveBack(s *slotSock) {
	if s.taken {
		_ = l.poll.remove(s.fd.Num())
		s.taken = false
	}
}

// askAccept asks a helper to accept from a slot's socket, because a worker can change the
// socket's flags. Until the answer the poller does not watch the socket.
func (l *loop) askAccept(ln *listener, s *slotSock) {
	switch {
	case s.asking || l.acceptAt != 0:
		return
	case l.table.waiting >= l.cfg.QueueLimit:
		l.pauseFull()
		return
	}
	s.asking = true
	l.watch(ln)
	n := min(aside.MaxAccept, l.cfg.QueueLimit-l.table.waiting)
	l.askHelper(aside.Request{Call: aside.Accept, FD: s.fd, Arg: n, Key: s.key(), Done: func(a *aside.Answer) { l.accepted(ln, s, a) }})
}

// accepted takes the connections that a helper has accepted.
func (l *loop) accepted(ln *listener, s *slotSock, a *aside.Answer) {
	s.asking = false
	if l.listeners[ln.id] != ln {
		for i := range a.FDs {
			_ = a.FDs[i].Close()
		}
		return
	}
	for _, d := range a.FDs {
		l.arrive(ln, d)
	}
	switch a.Errno {
	case 0, syscall.EAGAIN, syscall.EINVAL: // EINVAL: it was shut down; see isDead
	default:
		l.acceptFailed(ln, a.Errno)
	}
	l.watch(ln)
}

// hasBeside says whether the listener has a socket besides s that stays.
func (ln *listener) hasBeside(s *slotSock) bool {
	return slices.ContainsFunc(ln.bySlot, func(o *slotSock) bool { return o != s && !o.retiring })
}

// retireSlot empties and closes the sockets of a slot that is no more: new
// clients are turned away, and find another slot's socket when they try again a
// second later.
func (l *loop) retireSlot(slot int) {
	for _, ln := range l.listeners {
		if ln == nil || ln.closing {
			continue
		}
		for _, s := range ln.bySlot {
			if s.slot != slot || s.retiring || !ln.hasBeside(s) {
				continue
			}
			s.retiring, s.closeBy, s.unserved = true, l.now+closeWait, max(l.now-orphanAfter, 1)
			l.refuseNew(ln, s.socket, func() {})
		}
	}
}

// orphanDeadline returns when dueOrphans has something to do; 0: never.
func (l *loop) orphanDeadline() int64 {
	next := int64(0)
	for _, ln := range l.listeners {
		if ln == nil {
			continue
		}
		for _, s := range ln.bySlot {
			at := int64(0)
			switch {
			case s.retiring:
				at = max(s.closeBy, l.now+closeCheck)
			case s.unserved != 0 && !s.taken && l.canTakeOver(ln):
				at = s.unserved + orphanAfter
			}
			if at != 0 && (next == 0 || at < next) {
				next = at
			}
		}
	}
	return next
}
