package dispatcher

import (
	"rrd/dispatcher/internal/aside"
	"rrd/handoff"
)

// kernelQueue is the kernel's last answer about the queue of a listening TCP socket.
type kernelQueue struct {
	aside.QueueFacts
	known  bool
	asking bool
}

// askQueue asks the kernel about s. Of a socket that workers have too a helper asks,
// and the answer counts from the next look on.
func (l *loop) askQueue(ln *listener, s *socket) {
	if !ln.shared {
		s.noteQueue()
		return
	}
	if s.kernel.asking || l.stopping {
		return
	}
	s.kernel.asking = true
	l.askHelper(aside.Request{Call: aside.Queue, FD: s.fd, Key: s.key(), Done: func(a *aside.Answer) {
		s.kernel.asking = false
		if f, ok := a.Queue(); ok {
			s.kernel.QueueFacts, s.kernel.known = f, true
		}
	}})
}

// noteQueue asks about a socket that no worker has.
func (s *socket) noteQueue() {
	if f, errno := aside.QueueInline(s.fd); errno == 0 {
		s.kernel.QueueFacts, s.kernel.known = f, true
	}
}

// queueLength returns how many clients wait in the kernel for an accept. It returns 1 if it
// only knows that some clients wait.
func (l *loop) queueLength(ln *listener) uint32 {
	var sum uint32
	for _, s := range ln.sockets() {
		switch {
		case s.packet() || !isReadable(s.fd):
			s.kernel.Length = 0
		case !s.tcp():
			sum++
		default:
			l.askQueue(ln, s)
			sum += max(s.kernel.Length, 1)
		}
	}
	return sum
}

// changeBacklog changes the backlog of a socket that listens already: listen(2) again
// does that.
func (l *loop) changeBacklog(ln *listener, s *socket, backlog int) {
	if ln.shared {
		l.askHelper(aside.Request{Call: aside.Listen, FD: s.fd, Arg: backlog, Key: s.key()})
		return
	}
	setBacklog(s.fd, backlog)
}

// refuseNew turns new clients of a TCP socket away, and then calls done. Without a helper's
// answer, or on a system without filters, it never calls done.
func (l *loop) refuseNew(ln *listener, s *socket, done func()) {
	if !ln.shared {
		if aside.RefuseNewInline(s.fd) == 0 {
			done()
		}
		return
	}
	l.askHelper(aside.Request{Call: aside.RefuseNew, FD: s.fd, Key: s.key(), Done: func(a *aside.Answer) {
		if a.Known && a.Errno == 0 {
			done()
		}
	}})
}

// closeSocket closes a socket and keeps the kernel's counts of it, so that no counter falls.
func (l *loop) closeSocket(ln *listener, s *socket) {
	if !ln.shared {
		l.askQueue(ln, s)
	}
	ln.stats.KernelDrops += s.kernel.Drops
	l.aside.Forget(s.fd)
	if s.revival.asked {
		l.endRevival(s)
	}
	if !ln.shared || !s.kept {
		_ = s.close()
		return
	}
	// A process that holds it may go on listening.
	key := s.key()
	l.askHelper(aside.Request{Call: aside.DetachFilter, FD: handoff.Own(s.fd.Release()), Key: key, Given: true})
}
