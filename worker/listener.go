package worker

import (
	"errors"
	"net"
	"net/netip"
	"syscall"

	"rrd/handoff"
)

// listener is one net.Listener of this program on an endpoint.
type listener struct {
	ch   *channel
	ep   *endpoint
	addr net.Addr

	inner       sharedListener // none and reuseport: we accept by ourselves
	closed      bool           // guarded by ch.mu, as is
	interrupted bool           // inner's deadline is in the past
}

// listen asks the master for a listener.
func (ch *channel) listen(network, addr string) (net.Listener, error) {
	a, err := ch.ask(network, addr)
	if err != nil {
		return nil, listenError(network, addr, err)
	}
	ln := &listener{ch: ch, ep: a.ep}
	switch {
	case a.flags&handoff.ListeningPacket != 0:
		err = errWrongKind
	case a.flags&handoff.ListeningShared != 0:
		if ln.inner, err = newSharedListener(a.fd.Release()); err == nil {
			ln.addr = ln.inner.Addr()
		}
	default:
		ln.addr, err = parseAddr(a.bound)
	}
	ch.mu.Lock()
	defer ch.unlock()
	if err != nil {
		_ = a.fd.Close()
		a.ep.listeners--
		ch.sweepLocked()
		return nil, listenError(network, addr, err)
	}
	if ln.inner != nil {
		a.ep.shared = append(a.ep.shared, ln)
		switch {
		case ch.gaveUp:
			_ = ln.inner.Close()
		case ch.draining:
			interruptShared(a.ep)
		}
	}
	ch.sweepLocked()
	return ln, nil
}

// ask sends LISTEN and waits for the answer. Without an error the answer's
// endpoint counts one listener more and its descriptor is the caller's.
func (ch *channel) ask(network, addr string) (*ask, error) {
	ch.mu.Lock()
	if before := ch.beforeListen; before != nil {
		ch.beforeListen = nil
		before()
	}
	ch.listened = true
	if ch.gone {
		ch.unlock()
		return nil, errGone
	}
	ch.funnel.open()
	ch.nextAsk++
	f := handoff.Frame{Type: handoff.Listen, Seq: ch.nextAsk, Payload: []byte(network + "\x00" + addr)}
	if len(f.Payload) > handoff.MaxPayload {
		ch.unlock()
		return nil, syscall.EINVAL
	}
	a := new(ask)
	ch.asks[f.Seq] = a
	ch.unlock()
	// If this fails the master is gone, which awaitLocked finds as well.
	_ = ch.send(&f)
	ch.mu.Lock()
	defer ch.unlock()
	ch.awaitLocked(&waiter{ask: a})
	if a.err != nil {
		ch.sweepLocked()
		return nil, a.err
	}
	return a, nil
}

// parseAddr reads the address that the master has bound.
func parseAddr(a address) (net.Addr, error) {
	if a.network == "unix" {
		return &net.UnixAddr{Name: a.text, Net: "unix"}, nil
	}
	ap, err := netip.ParseAddrPort(a.text)
	if err != nil {
		return nil, err
	}
	return net.TCPAddrFromAddrPort(ap), nil
}

func (ln *listener) Addr() net.Addr { return ln.addr }

func (ln *listener) Accept() (net.Conn, error) {
	ch := ln.ch
	ch.mu.Lock()
	ch.readyLocked()
	if ln.inner != nil {
		return ln.acceptShared()
	}
	w := waiter{ep: ln.ep, ln: ln}
	for {
		ch.awaitLocked(&w)
		if ln.closed {
			if len(ln.ep.queue) > 0 {
				ch.wakeForLocked(ln.ep) // in place of this one
			}
			ch.unlock()
			return nil, ln.closedError()
		}
		if c := ln.takeLocked(); c != nil {
			ch.unlock()
			return c, nil
		}
	}
}

// readyLocked says READY with the first Accept: handoffs may come.
func (ch *channel) readyLocked() {
	if !ch.ready && !ch.draining {
		ch.ready = true
		f := handoff.Frame{Type: handoff.Ready}
		if ch.touches {
			f.Flags = handoff.ReadyTouches
		}
		ch.sayLocked(f)
	}
}

// takeLocked makes the oldest connection in the queue the program's: it is acked,
// unless a drain or a close came in between, or it cannot be used; then nil is
// returned. Preconditions: the queue is not empty; mu is held, and is again
// afterwards.
func (ln *listener) takeLocked() net.Conn {
	ch, ep := ln.ch, ln.ep
	h := ep.popLocked()
	ch.open++ // holds back DRAINED and the exit while mu is not held
	ch.unlock()
	c, err := ch.funnel.conn(&h.fd)
	ch.mu.Lock()
	if err == nil && !ln.closed && !ch.draining {
		ack := ch.ackLocked(h.seq, len(ep.queue) == 0)
		state := uint32(0)
		if h.at.Sub(ch.tookAt) >= touchTime {
			state = alone
		}
		ch.tookAt = h.at
		if c.RemoteAddr() != nil {
			return wrap(c, ch, h.seq, ack, state)
		}
		// The client has reset it before we asked who it is. Nobody else could do
		// more with it, so it is ours, and over.
		_ = c.Close()
		if ch.touches {
			ch.sayTouchedLocked(h.seq)
		}
		ch.closedLocked()
		ch.doneLocked()
		return nil
	}
	if c != nil {
		_ = c.Close()
	}
	switch {
	case ch.draining:
		ch.rejectLocked(h.seq, handoff.ReasonDraining)
	case ln.closed && ep.listeners == 0:
		ch.rejectLocked(h.seq, handoff.ReasonClosed)
	case ln.closed:
		// Another listener of the endpoint is served on.
		ch.rejectLocked(h.seq, handoff.ReasonBusy)
		ch.sayNowLocked(handoff.Frame{Type: handoff.Again, Listener: ep.id})
	case isFDLimit(err):
		ch.rejectLocked(h.seq, handoff.ReasonFDLimit)
		ch.starveLocked(ep)
	default:
		// Of the kernel, as ENOMEM: another time it may do.
		ch.rejectLocked(h.seq, handoff.ReasonOther)
		ch.starveLocked(ep)
	}
	ch.doneLocked()
	return nil
}

// doneLocked counts a connection out.
func (ch *channel) doneLocked() {
	ch.open--
	ch.drainedLocked()
	ch.exitIfDoneLocked()
}

func isFDLimit(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno) && (errno == syscall.EMFILE || errno == syscall.ENFILE)
}

// Close leaves the endpoint with its last listener.
func (ln *listener) Close() error {
	ch := ln.ch
	ch.mu.Lock()
	defer ch.unlock()
	if ln.closed {
		return &net.OpError{Op: "close", Net: ln.addr.Network(), Addr: ln.addr, Err: net.ErrClosed}
	}
	ln.closed = true
	ep := ln.ep
	ep.listeners--
	var err error
	if ln.inner != nil {
		ep.forgetLocked(ln)
		if err = ln.inner.Close(); ch.gaveUp {
			err = nil // it was closed before
		}
	}
	for ch.wakeLocked(func(w *waiter) bool { return w.ln == ln }) {
	}
	ch.interruptLocked()
	if ep.listeners == 0 {
		ch.refuseAllLocked(ep, handoff.ReasonClosed)
	}
	ch.sweepLocked()
	ch.exitIfDoneLocked()
	return err
}

func (ln *listener) closedError() error {
	return &net.OpError{Op: "accept", Net: ln.addr.Network(), Addr: ln.addr, Err: net.ErrClosed}
}
