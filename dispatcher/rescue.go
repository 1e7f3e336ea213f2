package dispatcher

import "rrd/dispatcher/internal/aside"

// Rescue: a connection that a worker has acked and not touched is still whole
// when the worker dies. While a worker that promised to say TOUCHED has not said
// it, the loop keeps its copy; at the worker's death the kernel tells whether a
// byte was read or written, and what is untouched goes to another. At most
// RescueLimit copies are kept, the oldest goes first. A worker shuts a
// connection down before it closes it, so that our copy delays no FIN.

// keepable says whether c, acked by k, may be rescued: TCP only, as only there
// the kernel tells what was read.
func (l *loop) keepable(k *link, ln *listener) bool {
	return l.cfg.RescueLimit > 0 && k.touches && isTCP(ln.network)
}

// keep keeps the copy of a connection that has just been acked.
func (l *loop) keep(c connID) {
	l.flight.remove(l.socks, c)
	l.table.keep(c)
	l.kept.push(l.socks, c)
	l.keptLen++
	l.limitKept()
}

// limitKept closes the oldest copies beyond the limit. It skips copies that a helper is
// asked about.
func (l *loop) limitKept() {
	for l.keptLen > l.cfg.RescueLimit && l.kept.head != none {
		l.letGo(l.kept.head)
	}
}

// letGo closes a kept copy.
func (l *loop) letGo(c connID) {
	s := &l.socks[c]
	l.kept.remove(l.socks, c)
	l.keptLen--
	s.seq = 0
	l.table.forget(c)
	l.closeConn(s)
}

// touched: the worker has begun with a connection, or closed it. One that is
// not kept was too old to be.
func (l *loop) touched(k *link, seq uint64) {
	c := seq & (1<<connBits - 1)
	if seq == 0 || c >= uint64(len(l.socks)) || l.socks[c].seq != seq {
		return
	}
	if e := &l.table.conns[c]; e.state == connKept && e.worker == k.idx {
		l.letGo(connID(c))
	}
}

// rescue asks the kernel about each copy of a dead worker. Untouched connections come
// back, and the other copies are closed.
func (l *loop) rescue(k *link) {
	for c, next := l.kept.head, connID(0); c != none; c = next {
		next = l.socks[c].next
		switch e := &l.table.conns[c]; {
		case e.worker != k.idx:
		case l.listeners[e.listener].dropQueue:
			l.letGo(c)
		default:
			l.kept.remove(l.socks, c) // limitKept must not close it now
			l.askConn(k, c, func(a *aside.Answer) { l.rescueOne(k, c, a) })
		}
	}
}

// rescueOne judges one copy. Without an answer the connection counts as touched.
func (l *loop) rescueOne(k *link, c connID, a *aside.Answer) {
	s := &l.socks[c]
	ln := l.listeners[l.table.conns[c].listener]
	if !isUntouched(a) || ln.dropQueue {
		l.letGo(c)
		return
	}
	k.removal.rescued++
	l.keptLen--
	s.seq = 0
	if k.removal.Blame {
		s.deaths++
	}
	ln.stats.Rescued++
	l.table.rescue(c)
	if s.deaths >= maxDeaths {
		l.drop(c, DropPoison)
		return
	}
	l.stats.Redispatches[RedispatchRescued]++
}

const (
	tcpEstablished = 1 // include/net/tcp_states.h
	tcpClose       = 7
	tcpCloseWait   = 8
)

// isUntouched reports whether no process has read from or written to a TCP
// connection: all that was received is still in its buffer, and nothing was ever
// sent. A FIN counts as one byte received that the buffer does not have.
func isUntouched(a *aside.Answer) bool {
	f, ok := a.Conn()
	if !ok || f.Sent != 0 || f.Unsent != 0 {
		return false
	}
	switch f.State {
	case tcpEstablished:
		return f.Received == uint64(f.Unread)
	case tcpCloseWait:
		return f.Received == uint64(f.Unread)+1
	}
	return false
}

// touchedOrUnknown reports whether some process has read from or written to a
// connection, or the kernel did not answer in time. If the client has reset a
// connection, the kernel no longer knows, and the connection counts as untouched.
func touchedOrUnknown(a *aside.Answer) bool {
	f, ok := a.Conn()
	return !a.Known || ok && f.State != tcpClose && !isUntouched(a)
}
