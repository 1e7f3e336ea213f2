package dispatcher

import (
	"syscall"
	"time"

	"rrd/handoff"
)

// Accepting pauses when the process, the system or the kernel's memory has no
// descriptor left, never spins and never accepts only to close. The pause
// doubles; an accepted connection ends that.
const (
	pauseMin = 5 * time.Millisecond
	pauseMax = 160 * time.Millisecond // with the time to catch up, below 250 ms
)

// acceptFrom takes what one turn may from a listener. It reports whether there
// may be more.
func (l *loop) acceptFrom(ln *listener) (more bool) {
	if ln.sock != nil {
		if !ln.watching {
			return true
		}
		more := l.acceptLeaving(ln)
		return l.acceptSome(ln, ln.sock.fd) || more
	}
	for _, s := range ln.bySlot {
		switch {
		case !s.taken:
		case isDead(s.fd):
			l.giveBack(s)
			s.unserved = max(l.now, 1) // looked at again in orphanAfter
			l.revive(ln, s.socket, errShutDown)
		case isReadable(s.fd):
			l.askAccept(ln, s)
		}
	}
	return more
}

func (l *loop) acceptSome(ln *listener, from handoff.FD) (more bool) {
	fd := from.Num()
	for range acceptBatch {
		if l.acceptAt != 0 {
			return true
		}
		if l.table.waiting >= l.cfg.QueueLimit {
			l.pauseFull()
			return true
		}
		d, errno := accept(fd)
		if errno != 0 {
			if errno == syscall.EAGAIN || errno == syscall.EINVAL && ln.closing {
				return false // EINVAL: a unix listener that was shut down, and is empty
			}
			if errno == syscall.EINVAL && ln.sock != nil && from != ln.sock.fd {
				return false // as EAGAIN: it is one of those that leave
			}
			if errno == syscall.EINVAL && ln.sock != nil {
				ln.stats.AcceptErrors[AcceptOther]++
				l.startClosing(ln) // somebody else who has it has shut it down
				ln.shaking = false // with nobody any more
				return false
			}
			l.acceptFailed(ln, errno)
			continue
		}
		l.arrive(ln, d)
	}
	return true
}

// arrive takes a connection that was accepted.
func (l *loop) arrive(ln *listener, d handoff.FD) {
	l.pause = 0
	c := l.table.arrive(ln.id)
	if int(c) == len(l.socks) {
		l.socks = append(l.socks, sock{})
	}
	l.socks[c] = sock{fd: d, accepted: l.now, prev: none, next: none}
	ln.stats.Accepted++
}

// acceptFailed counts an error and, unless it belongs to one connection
// (accept(2), "Error handling"), stops accepting for a while.
func (l *loop) acceptFailed(ln *listener, errno syscall.Errno) {
	class := AcceptOther
	switch errno {
	case syscall.EMFILE:
		class = AcceptEMFILE
	case syscall.ENFILE:
		class = AcceptENFILE
	case syscall.ENOBUFS:
		class = AcceptNobufs
	case syscall.ENOMEM:
		class = AcceptNomem
	case syscall.ECONNABORTED, syscall.EPROTO, syscall.EINTR:
		class = AcceptAborted
	}
	ln.stats.AcceptErrors[class]++
	switch class {
	case AcceptAborted:
		return
	case AcceptEMFILE, AcceptENFILE, AcceptNobufs, AcceptNomem:
		ln.stats.Pauses[PauseFDLimit]++
	case AcceptOther:
		// ENETDOWN and the like belong to one connection, but an error that is
		// not known could stay: it must not spin.
	}
	l.pause = min(max(2*l.pause, pauseMin), pauseMax)
	l.acceptAt = l.now + int64(l.pause)
	l.watchAll()
	if hook := l.cfg.Hooks.AcceptPaused; hook != nil && l.reports.due(&l.reports.pauseAt, l.now) {
		name, pause := ln.conf.Name, l.pause
		l.event(func() { hook(name, errno, pause) })
	}
}

// pauseFull stops accepting while the waiting queue is full.
func (l *loop) pauseFull() {
	if l.queueFull {
		return
	}
	l.queueFull = true
	for _, ln := range l.listeners {
		if ln != nil && ln.accepts() {
			ln.stats.Pauses[PauseQueueFull]++
		}
	}
	l.watchAll()
}

// resumeBelow is where accepting goes on: some way below the limit, so that at
// the limit not every connection costs two changes of what is polled.
func (l *loop) resumeBelow() int { return l.cfg.QueueLimit - max(1, l.cfg.QueueLimit/8) }
