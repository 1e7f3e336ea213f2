package dispatcher

import "time"

// A listener can be open although no client can connect to it: a worker has shut down the
// shared socket, or the file of a unix socket was removed.

// rearmEvery is the shortest time between calls of Hooks.Rearmed for one listener.
const rearmEvery = int64(time.Second)

// Rearm tells that clients can connect to a listener again.
type Rearm struct {
	Listener ListenerInfo
	// Why is the reason why they could not, the last time.
	Why string
	// At is the last time that it began to work again.
	At time.Time
	// Times is how often that has happened since the last call.
	Times int
	// Replaced is set if it has a new socket. Workers that share the old one get no
	// clients from it, so they must be replaced.
	Replaced bool
}

// rearms are the rearms of a listener that were not reported yet.
type rearms struct {
	Rearm
	toldAt int64 // time of the last report; 0: never
}

// cause is a cause that keeps clients from a listener.
type cause uint8

const (
	causeFile cause = iota // the file of its socket
	causeDead              // its socket
	numCauses
)

// rearmed notes that clients can connect again.
func (l *loop) rearmed(ln *listener, c cause, why error, replaced bool) {
	ln.stats.Rearmed++
	ln.rearms.Times++
	ln.rearms.Why, ln.rearms.At = why.Error(), time.Now()
	ln.rearms.Replaced = ln.rearms.Replaced || replaced && ln.shared
	l.reachable(ln, c)
	l.tellRearmed(ln)
}

// tellRearmed calls the hook if there is something to report and the last call is long
// enough ago. The next look at the shared listeners tries again.
func (l *loop) tellRearmed(ln *listener) {
	r := &ln.rearms
	if r.Times == 0 || r.toldAt != 0 && l.now-r.toldAt < rearmEvery {
		return
	}
	told := r.Rearm
	told.Listener = ln.info()
	*r = rearms{toldAt: max(l.now, 1)}
	if hook := l.cfg.Hooks.Rearmed; hook != nil {
		l.event(func() { hook(told) })
	}
}

// setUnreachable notes that no client can connect to ln, and the reason. It ignores a nil
// ln, as reachable does.
func (l *loop) setUnreachable(ln *listener, c cause, err error) {
	if ln == nil || ln.unreachable[c] == err.Error() {
		return
	}
	ln.unreachable[c] = err.Error()
	if hook := l.cfg.Hooks.Unreachable; hook != nil {
		info := ln.info()
		l.event(func() { hook(info, err) })
	}
}

// reachable notes that c no longer keeps clients from ln.
func (l *loop) reachable(ln *listener, c cause) {
	if ln != nil {
		ln.unreachable[c] = ""
	}
}

// replaceSocket makes s the socket of ln, at the same address, and takes s if there is no
// error. The loop accepts the queued clients of the old socket. If workers share that
// socket, the workers accept them until they are replaced.
func (l *loop) replaceSocket(ln *listener, s *socket, c cause, why error) error {
	old := ln.sock
	if ln.shared {
		if ln.waits {
			if err := waitInAccept(s.fd); err != nil {
				return err
			}
		}
	} else if err := l.poll.add(s.fd.Num(), ln.token, ln.watching, false); err != nil {
		return err
	}
	old.file = nil // it belongs to s, or to another process
	ln.sock = s
	if ln.shared {
		l.closeSocket(ln, old)
	} else {
		ln.leaving = append(ln.leaving, old)
		l.ready = append(l.ready, ln)
	}
	l.rearmed(ln, c, why, true)
	return nil
}

// acceptLeaving empties and closes the sockets that ln had before. It reports whether
// there may be more.
func (l *loop) acceptLeaving(ln *listener) (more bool) {
	left := ln.leaving[:0]
	for _, s := range ln.leaving {
		if l.acceptSome(ln, s.fd) && isReadable(s.fd) {
			left, more = append(left, s), true
			continue
		}
		_ = l.poll.remove(s.fd.Num())
		l.closeSocket(ln, s)
	}
	clear(ln.leaving[len(left):])
	ln.leaving = left
	return more
}
