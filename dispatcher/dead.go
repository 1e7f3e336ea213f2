package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"rrd/dispatcher/internal/aside"
)

// A shared listening socket belongs to every worker that has it, and each can end it for
// all: by shutdown(2), as some programs do to end their own accept, or by connect(2) with
// AF_UNSPEC. The service is then over although every process lives. So the sockets are
// looked at when a worker dies, before one is started, and with each look for ignored
// listeners. TCP can listen again on the same socket, and then every worker's descriptor
// works again. Otherwise a new socket takes the address, and the workers are replaced.

const (
	// reviveRetry is the pause before a dead socket is tried again.
	reviveRetry = int64(2 * time.Second)
	// reviveWait bounds how long the start of a worker waits for dead sockets.
	reviveWait = time.Second
	// anyBacklog is for listen(2) where the backlog is the kernel's maximum, to which it
	// cuts any other.
	anyBacklog = 1 << 30
)

var (
	errShutDown = errors.New("a process that shares its socket has shut it down")
	errLocked   = errors.New("a process that shares its socket has locked a socket filter on it")
)

// revival is the state of the attempts to revive a dead socket.
type revival struct {
	busy    bool  // a helper or a bind is at it
	asked   bool  // a helper is
	retryAt int64 // when it is tried again; 0: at once
}

// revivals counts the sockets that are being revived, for those who wait.
type revivals struct {
	busy    int
	binds   int
	waiting []chan struct{} // closed when busy is 0
}

// live returns the sockets of ln that serve: not those of slots that are no more.
func (ln *listener) live() (out []*socket) {
	if ln.sock != nil {
		return []*socket{ln.sock}
	}
	for _, s := range ln.bySlot {
		if !s.retiring {
			out = append(out, s.socket)
		}
	}
	return out
}

// has reports whether ln still has the socket s and is not ending.
func (l *loop) has(ln *listener, s *socket) bool {
	return l.listeners[ln.id] == ln && !ln.ending() && !l.draining && slices.Contains(ln.live(), s)
}

// fixedPort reports whether the socket stays bound when it no longer listens. The kernel
// gives up a port that it has chosen itself (tcp_disconnect in net/ipv4/tcp.c).
func (ln *listener) fixedPort() bool {
	return ln.inherited() || !strings.HasSuffix(ln.conf.Address, ":0")
}

// backlog is that of listen(2).
func (ln *listener) backlog() int {
	n := ln.conf.Backlog
	if ln.asked != nil {
		n = ln.asked.backlog
	}
	if n <= 0 {
		return anyBacklog
	}
	return n
}

// reviveAll looks at all shared sockets.
func (l *loop) reviveAll() {
	if l.draining || l.stopping {
		return
	}
	for _, ln := range l.listeners {
		if ln != nil && ln.shared && !ln.ending() {
			l.reviveDead(ln)
		}
	}
}

// reviveDead looks at the sockets of a shared listener.
func (l *loop) reviveDead(ln *listener) {
	alive := true
	for _, s := range ln.live() {
		if s.isDead() {
			alive = false
			l.revive(ln, s, errShutDown)
		}
	}
	if alive {
		l.reachable(ln, causeDead)
	}
}

// awaitRevival returns when no shared socket is dead, or after reviveWait.
func (d *Dispatcher) awaitRevival() {
	doneC := make(chan struct{})
	if d.do(context.Background(), func(l *loop) {
		l.reviveAll()
		if l.revivals.busy == 0 {
			close(doneC)
			return
		}
		l.revivals.waiting = append(l.revivals.waiting, doneC)
	}) != nil {
		return
	}
	timeout := time.NewTimer(reviveWait)
	defer timeout.Stop()
	select {
	case <-doneC:
	case <-timeout.C:
	case <-d.ended:
	}
}

func (l *loop) beginRevival(s *socket) {
	s.revival.busy = true
	l.revivals.busy++
}

// endRevival ends the revival of s, if it has not ended: when s closed, a helper may have
// been at it still.
func (l *loop) endRevival(s *socket) {
	if !s.revival.busy {
		return
	}
	s.revival.busy, s.revival.asked = false, false
	if l.revivals.busy--; l.revivals.busy > 0 {
		return
	}
	for _, c := range l.revivals.waiting {
		close(c)
	}
	l.revivals.waiting = nil
}

// revive makes a dead socket listen again, or begins to replace it.
func (l *loop) revive(ln *listener, s *socket, why error) {
	switch {
	case s.revival.busy || s.revival.retryAt > l.now:
	case s.packet():
		l.setUnreachable(ln, causeDead, fmt.Errorf("%w, and a datagram socket cannot be made again while workers have it: restart rrd", why))
	case s.tcp() && ln.fixedPort():
		l.beginRevival(s)
		s.revival.asked = true
		l.askHelper(aside.Request{Call: aside.Listen, FD: s.fd, Arg: ln.backlog(), Key: s.key(),
			Done: func(a *aside.Answer) { l.listensAgain(ln, s, why, a) }})
	default:
		l.rebind(ln, s, why)
	}
}

// listensAgain is the answer of a helper.
func (l *loop) listensAgain(ln *listener, s *socket, why error, a *aside.Answer) {
	l.endRevival(s)
	switch {
	case !l.has(ln, s):
	case !a.Known:
		s.revival.retryAt = l.now + reviveRetry
	case a.Errno != 0:
		l.rebind(ln, s, fmt.Errorf("%w (listen: %w)", why, a.Errno))
	case !s.isDead(): // if it is dead, the next look finds it
		l.rearmed(ln, causeDead, why, false)
	}
}

// rebind starts a bind of a new socket at the address of s.
func (l *loop) rebind(ln *listener, s *socket, why error) {
	if s.revival.busy || s.revival.retryAt > l.now {
		return
	}
	if ln.inherited() {
		s.revival.retryAt = l.now + reviveRetry
		l.setUnreachable(ln, causeDead, fmt.Errorf("%w: restart the service that has opened it, such as its socket unit", why))
		return
	}
	l.beginRevival(s)
	l.revivals.binds++
	o := bindOptions{replaceStale: ln.asked == nil, backlog: ln.conf.Backlog, mode: ln.conf.Mode, uid: ln.conf.UID, gid: ln.conf.GID,
		reuseport: ln.sock == nil}
	if a := ln.asked; a != nil {
		o.backlog, o.addMode = a.backlog, a.mode
	}
	l.d.helpers.Add(1)
	go l.d.rebind(ln, s, s.file, o, why) // Close waits for it
}

// rebind runs off the loop; ln and s are only passed on.
func (d *Dispatcher) rebind(ln *listener, s *socket, file *socketFile, o bindOptions, why error) {
	defer d.helpers.Done()
	var next *socket
	var err error
	network, address, id := s.network, s.addr, ln.id // never change
	if file != nil {
		next, err = d.gates.bindInTime(gateOf(id), bindLimit, func() (*socket, error) {
			file.remove()
			return bindWithRights(network, address, o, file.rights)
		})
	} else {
		next, err = bindSocket(network, address, o)
	}
	took := false
	if d.do(context.Background(), func(l *loop) { took = l.rebound(ln, s, next, why, err) }) == nil && took || next == nil {
		return
	}
	_ = next.close()
}

// rebound ends a rebind. It reports whether it has taken next.
func (l *loop) rebound(ln *listener, s, next *socket, why, err error) bool {
	l.revivals.binds--
	l.endRevival(s)
	if !l.has(ln, s) {
		return false
	}
	if err == nil {
		err = l.replaceShared(ln, s, next, why)
	}
	if err != nil {
		s.revival.retryAt = l.now + reviveRetry
		l.setUnreachable(ln, causeDead, fmt.Errorf("%w, and its address cannot be bound again: %w", why, err))
	}
	return err == nil
}

// replaceShared makes next the socket of ln in place of s.
func (l *loop) replaceShared(ln *listener, s, next *socket, why error) error {
	if ln.sock == s {
		return l.replaceSocket(ln, next, causeDead, why)
	}
	i := slices.IndexFunc(ln.bySlot, func(o *slotSock) bool { return o.socket == s })
	if ln.waits {
		if err := waitInAccept(next.fd); err != nil {
			return err
		}
	}
	l.giveBack(ln.bySlot[i])
	ln.bySlot[i].socket, ln.bySlot[i].asking = next, false // what was asked is forgotten with s
	l.closeSocket(ln, s)
	l.rearmed(ln, causeDead, why, true)
	l.reviewSlots()
	return nil
}

// isDead reports whether a listening socket was shut down or disconnected. Neither poll(2)
// nor SO_ACCEPTCONN takes the lock of the socket, which a worker may hold (tcp_poll in
// net/ipv4/tcp.c, unix_poll in net/unix/af_unix.c, sk_getsockopt in net/core/sock.c).
func (s *socket) isDead() bool { return isDead(s.fd) || !s.packet() && !listens(s.fd) }
