package dispatcher

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
	if l.keptLen++; l.keptLen > l.cfg.RescueLimit {
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

// rescue takes back what a dead worker acked and left untouched, and closes the
// copies of the rest.
func (l *loop) rescue(k *link, blame bool) (rescued int64) {
	for c := l.kept.head; c != none; {
		next := l.socks[c].next
		if l.table.conns[c].worker == k.idx && l.rescueOne(c, blame) {
			rescued++
		}
		c = next
	}
	return rescued
}

func (l *loop) rescueOne(c connID, blame bool) bool {
	s := &l.socks[c]
	ln := l.listeners[l.table.conns[c].listener]
	if !untouched(s.fd) || ln.dropQueue {
		l.letGo(c)
		return false
	}
	l.kept.remove(l.socks, c)
	l.keptLen--
	s.seq = 0
	if blame {
		s.deaths++
	}
	ln.stats.Rescued++
	l.table.rescue(c)
	if s.deaths >= maxDeaths {
		l.drop(c, DropPoison)
		return true
	}
	l.stats.Redispatches[RedispatchRescued]++
	return true
}
