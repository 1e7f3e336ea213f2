package worker

import (
	"errors"
	"net"
	"os"
	"slices"
	"syscall"
	"time"

	"rrd/handoff"
)

// Under none and reuseport the listening socket itself is here and Accept is
// accept(2). Single connections may be handed off all the same: the master takes
// them from the socket of a slot that has no worker. They go to the endpoint's
// queue, and whoever is in accept(2) is interrupted by a deadline to look there.

// sharedListener is what *net.TCPListener and *net.UnixListener have in common.
type sharedListener interface {
	net.Listener
	SetDeadline(t time.Time) error
}

// deafTime is the pause after accept(2) has found a socket that does not listen (EINVAL).
// Another process that has it has shut it down, as some programs do to end their own
// accept. The master makes it listen again, or replaces this worker. An error would end the
// program, and cut its open connections.
const deafTime = 50 * time.Millisecond

var errWrongKind = errors.New("socket is not of the kind that was asked for")

// newSharedListener takes ownership of fd.
func newSharedListener(fd int) (sharedListener, error) {
	if fd < 0 {
		return nil, os.NewSyscallError("recvmsg", syscall.EMFILE) // dropped on arrival
	}
	f := os.NewFile(uintptr(fd), "listener")
	ln, err := net.FileListener(f)
	_ = f.Close()
	if err != nil {
		return nil, err
	}
	if shared, ok := ln.(sharedListener); ok {
		return shared, nil
	}
	_ = ln.Close()
	return nil, errWrongKind
}

// interruptShared makes every accept(2) of ep return. Preconditions: mu is held.
func interruptShared(ep *endpoint) {
	for _, ln := range ep.shared {
		if !ln.interrupted {
			ln.interrupted = true
			_ = ln.inner.SetDeadline(longAgo)
		}
	}
}

// forgetLocked removes ln from those to be interrupted.
func (ep *endpoint) forgetLocked(ln *listener) {
	for i, other := range ep.shared {
		if other == ln {
			ep.shared = append(ep.shared[:i:i], ep.shared[i+1:]...)
			return
		}
	}
}

// acceptShared is Accept of a listener that this process accepts from. It
// releases mu, which the caller has taken.
func (ln *listener) acceptShared() (net.Conn, error) {
	ch, ep := ln.ch, ln.ep
	w := waiter{ep: ep, ln: ln}
	for {
		ch.againLocked(ep)
		switch {
		case ln.closed:
			ch.unlock()
			return nil, ln.closedError()
		case len(ep.queue) > 0:
			if c := ln.takeLocked(); c != nil {
				ch.unlock()
				return c, nil
			}
			continue
		case ch.draining || ch.gaveUp:
			ch.awaitLocked(&w)
			continue
		}
		if c, err := ln.acceptOnceLocked(); c != nil || err != nil {
			ch.unlock()
			return c, err
		}
	}
}

// acceptOnceLocked does one accept(2); nothing at all is returned after an
// interruption. Preconditions: mu is held, and is again afterwards.
func (ln *listener) acceptOnceLocked() (net.Conn, error) {
	ch := ln.ch
	if ln.interrupted {
		ln.interrupted = false
		_ = ln.inner.SetDeadline(time.Time{})
	}
	ch.accepting++
	ch.hurryLocked() // acks leave before Accept blocks
	ch.unlock()
	c, err := ln.inner.Accept()
	ch.mu.Lock()
	ch.accepting--
	if err == nil {
		// Also after a drain has begun: nobody else can serve it.
		ch.open++
		return wrap(c, ch, 0, 0, ours), nil
	}
	ch.drainedLocked()
	ch.exitIfDoneLocked()
	if ln.closed {
		return nil, ln.closedError()
	}
	switch {
	case ch.gaveUp || errors.Is(err, os.ErrDeadlineExceeded):
		return nil, nil
	case errors.Is(err, syscall.EINVAL):
		ch.unlock()
		time.Sleep(deafTime)
		ch.mu.Lock()
		return nil, nil
	}
	return nil, err
}

// packetConn is a datagram socket; the master hears when it is closed.
type packetConn struct {
	*net.UDPConn
	ln *listener // nil outside rrd
}

// listenPacket asks the master for a datagram socket. Having one is enough to be
// ready: nothing is handed off.
func (ch *channel) listenPacket(network, addr string) (net.PacketConn, error) {
	a, err := ch.ask(network, addr)
	if err != nil {
		return nil, listenError(network, addr, err)
	}
	c, err := newPacketConn(a)
	ch.mu.Lock()
	defer ch.unlock()
	if err != nil {
		a.ep.listeners--
		ch.sweepLocked()
		return nil, listenError(network, addr, err)
	}
	if ch.gaveUp {
		_ = unbind(c)
	} else {
		a.ep.packets = append(a.ep.packets, c)
	}
	ch.sweepLocked()
	ch.readyLocked()
	ch.urgent = true
	return &packetConn{UDPConn: c, ln: &listener{ch: ch, ep: a.ep, addr: c.LocalAddr()}}, nil
}

// newPacketConn takes the descriptor of the answer.
func newPacketConn(a *ask) (*net.UDPConn, error) {
	fd := a.fd.Release()
	if fd < 0 {
		if a.flags&handoff.ListeningShared != 0 {
			return nil, os.NewSyscallError("recvmsg", syscall.EMFILE) // dropped on arrival
		}
		return nil, errWrongKind
	}
	f := os.NewFile(uintptr(fd), "packets")
	c, err := net.FilePacketConn(f)
	_ = f.Close()
	if err != nil {
		return nil, err
	}
	if udp, ok := c.(*net.UDPConn); ok {
		return udp, nil
	}
	_ = c.Close()
	return nil, errWrongKind
}

// Close closes the socket and leaves the listener.
func (c *packetConn) Close() error {
	if c.ln != nil {
		c.ln.forgetPackets(c.UDPConn)
	}
	err := c.UDPConn.Close()
	if c.ln != nil && err == nil {
		_ = c.ln.Close()
	}
	return err
}

// forgetPackets has c closed by the program only.
func (ln *listener) forgetPackets(c *net.UDPConn) {
	ln.ch.mu.Lock()
	defer ln.ch.unlock()
	ln.ep.packets = slices.DeleteFunc(ln.ep.packets, func(o *net.UDPConn) bool { return o == c })
}
