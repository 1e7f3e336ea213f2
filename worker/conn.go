package worker

import (
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"
)

// Conn is a TCP connection that a listener of this package has accepted, under
// every policy. It is the *net.TCPConn that it embeds, with sendfile and splice,
// but that type assertions to *net.TCPConn fail (use NetConn) and that net.Buffers are
// written piece by piece.
//
// Whatever reads, writes or closes goes through Conn: the master must hear of the
// ack before and of the close after. Do not use the embedded field for that.
type Conn struct {
	*net.TCPConn
	*noBuffers //nolint:unused // by being there
	h          hold
}

// UnixConn is Conn for unix sockets.
type UnixConn struct {
	*net.UnixConn
	*noBuffers //nolint:unused // by being there
	h          hold
}

// noBuffers is always nil. It has the methods that package net's types have in common, so
// that none of them is promoted, also not the one without a name for others by which
// net.Buffers would write before the ack: to a Conn it writes piece by piece. The rest is
// spelled out.
type noBuffers net.IPConn //nolint:unused // embedded

// hold is what the master must still hear of a connection. Without a channel
// (outside rrd) it hears nothing.
type hold struct {
	ch    *channel
	seq   uint64 // of the handoff; meaningless if ack is 0
	ack   uint64 // number of the ack; 0 if this process has accepted it by itself
	state atomic.Uint32
	leash atomic.Pointer[leash] // nil: the connection is not served by Serve
}

// The bits of hold.state.
const (
	touched uint32 = 1 << iota // the ack has left, TOUCHED is written down
	told                       // TOUCHED is written down, or not wanted
	plain                      // Close does not shut down first
	closing                    // Close was called
	alone                      // no ack is near that TOUCHED could leave with: it does with Close
)

// ours is the state of a connection that this process has accepted by itself.
const ours = touched | plain

// wrap makes the connection that the program gets. state is that of its hold.
func wrap(c net.Conn, ch *channel, seq, ack uint64, state uint32) net.Conn {
	switch c := c.(type) {
	case *net.TCPConn:
		conn := &Conn{TCPConn: c}
		conn.h.init(ch, seq, ack, state)
		return conn
	case *net.UnixConn:
		conn := &UnixConn{UnixConn: c}
		conn.h.init(ch, seq, ack, state)
		return conn
	}
	return c
}

func (h *hold) init(ch *channel, seq, ack uint64, state uint32) {
	h.ch, h.seq, h.ack = ch, seq, ack
	h.state.Store(state)
}

// touch comes before everything that a client or the kernel's counters could
// notice. It returns when the ack has left.
func (h *hold) touch() {
	if h.state.Load()&touched == 0 {
		h.touchFirst()
	}
}

func (h *hold) touchFirst() {
	ch := h.ch
	if h.state.Or(told)&told == 0 {
		ch.mu.Lock()
		if ch.touches {
			ch.sayTouchedLocked(h.seq)
		}
		ch.unlock()
	}
	ch.ensureFlushed(h.ack)
	h.state.Or(touched)
}

// touchNow is touch for what must not wait for the next tick, because a reference
// may leave this package's sight: the master lets go of its copy at once. After
// that Close leaves the socket alone, which may still be in use.
func (h *hold) touchNow() {
	if h.ack == 0 || h.state.Load()&plain != 0 {
		return
	}
	h.touch()
	h.ch.flush()
	h.state.Or(plain)
}

// close closes c. While the master may still have its copy, close(2) alone sends
// no FIN, so the socket is shut down first.
func (h *hold) close(c interface {
	io.Closer
	syscall.Conn
}) error {
	if h.ch == nil || h.state.Or(closing)&closing != 0 {
		return c.Close()
	}
	h.touch()
	if h.state.Load()&plain == 0 {
		shutdown(c)
	}
	err := c.Close()
	ch := h.ch
	ch.mu.Lock()
	if h.ack != 0 {
		ch.closedLocked()
	}
	if h.state.Load()&alone != 0 {
		ch.urgent = ch.urgent || len(ch.out) > 0
	}
	if ch.starving {
		ch.roomLocked()
	}
	ch.doneLocked()
	ch.unlock()
	return err
}

func shutdown(c syscall.Conn) {
	if rc, err := c.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { _ = syscall.Shutdown(int(fd), syscall.SHUT_RDWR) })
	}
}

// ended makes what a shutdown shows to those who are just reading or writing look
// like the close that it belongs to.
func (h *hold) ended(op string, c net.Conn, err error) error {
	if err == nil || h.state.Load()&closing == 0 || errors.Is(err, net.ErrClosed) {
		return err
	}
	return &net.OpError{Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: net.ErrClosed}
}

// setDeadline sets a deadline of reads by set.
func (h *hold) setDeadline(t time.Time, set func(time.Time) error) error {
	if l := h.leash.Load(); l != nil {
		return l.setDeadline(t, set)
	}
	return set(t)
}

// bareReader and bareWriter return the connection in a Conn, touched, so that
// package net finds the types for which it has shortcuts.
func bareReader(r io.Reader) io.Reader {
	switch r := r.(type) {
	case *Conn:
		r.h.touch()
		return r.TCPConn
	case *UnixConn:
		r.h.touch()
		return r.UnixConn
	}
	return r
}

func bareWriter(w io.Writer) io.Writer {
	switch w := w.(type) {
	case *Conn:
		w.h.touch()
		return w.TCPConn
	case *UnixConn:
		w.h.touch()
		return w.UnixConn
	}
	return w
}

// NetConn returns the *net.TCPConn. It is lent: close the Conn, not this.
func (c *Conn) NetConn() net.Conn { c.h.touchNow(); return c.TCPConn }

func (c *Conn) Read(b []byte) (int, error) {
	c.h.touch()
	n, err := c.TCPConn.Read(b)
	if l := c.h.leash.Load(); l != nil {
		n, err = l.finish(b, n, err)
	}
	return n, c.h.ended("read", c.TCPConn, err)
}

func (c *Conn) Write(b []byte) (int, error) {
	c.h.touch()
	n, err := c.TCPConn.Write(b)
	return n, c.h.ended("write", c.TCPConn, err)
}

// ReadFrom writes what it reads from r, without copying it through this process
// where the system can.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	c.h.touch()
	if lr, ok := r.(*io.LimitedReader); ok {
		bare := &io.LimitedReader{R: bareReader(lr.R), N: lr.N}
		n, err := c.TCPConn.ReadFrom(bare)
		lr.N = bare.N
		return n, c.h.ended("readfrom", c.TCPConn, err)
	}
	n, err := c.TCPConn.ReadFrom(bareReader(r))
	return n, c.h.ended("readfrom", c.TCPConn, err)
}

// WriteTo writes what it reads to w, without copying it through this process
// where the system can.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	c.h.touch()
	n, err := c.TCPConn.WriteTo(bareWriter(w))
	return n, c.h.ended("writeto", c.TCPConn, err)
}

// CloseRead is that of *net.TCPConn.
func (c *Conn) CloseRead() error { c.h.touch(); return c.TCPConn.CloseRead() }

// CloseWrite is that of *net.TCPConn: the client sees the end at once.
func (c *Conn) CloseWrite() error { c.h.touch(); return c.TCPConn.CloseWrite() }

// SetLinger is that of *net.TCPConn. The reset of SetLinger(0) and Close leaves
// when the master has let go of its copy, which it is asked to do here.
func (c *Conn) SetLinger(sec int) error { c.h.touchNow(); return c.TCPConn.SetLinger(sec) }

// SyscallConn is that of *net.TCPConn. After it, Close no longer shuts the
// connection down for everyone, as the descriptor may have been passed on.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	c.h.touchNow()
	return c.TCPConn.SyscallConn()
}

// File is that of *net.TCPConn; see SyscallConn.
func (c *Conn) File() (*os.File, error) { c.h.touchNow(); return c.TCPConn.File() }

// Close ends the connection. A Read or Write that is under way returns an error
// for which errors.Is finds net.ErrClosed.
func (c *Conn) Close() error { return c.h.close(c.TCPConn) }

// What package net's types have in common, see noBuffers.

func (c *Conn) LocalAddr() net.Addr           { return c.TCPConn.LocalAddr() }
func (c *Conn) RemoteAddr() net.Addr          { return c.TCPConn.RemoteAddr() }
func (c *Conn) SetDeadline(t time.Time) error { return c.h.setDeadline(t, c.TCPConn.SetDeadline) }
func (c *Conn) SetReadDeadline(t time.Time) error {
	return c.h.setDeadline(t, c.TCPConn.SetReadDeadline)
}
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.TCPConn.SetWriteDeadline(t) }
func (c *Conn) SetReadBuffer(bytes int) error      { return c.TCPConn.SetReadBuffer(bytes) }
func (c *Conn) SetWriteBuffer(bytes int) error     { return c.TCPConn.SetWriteBuffer(bytes) }
