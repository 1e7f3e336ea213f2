package node

import (
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"rrd/handoff"
	"rrd/handoff/internal/unixmsg"
)

// maxUnsent is how many bytes of our own answers may wait for a worker to read.
const maxUnsent = 64 << 10

// maxLost is how often a shared socket is sent again, as by Node.
const maxLost = 3

// Add makes the batch, which is one handoff: a worker that gets two descriptors
// in one message mixes them up. d stays the caller's and must stay open until the
// worker has answered seq. It always reports true: Flush comes next.
func (c *Conn) Add(seq uint64, listener, _ uint32, d handoff.FD) (full bool) {
	c.batch = handle{n: c.next, seq: seq, wire: listener}
	c.line = appendNewconn(c.line[:len(newconn)], listener, c.next)
	c.lent, c.filled = d.Num(), true
	return true
}

// Flush sends the batch. On an error nothing was sent and the batch is empty.
// EAGAIN says that the channel is full, or that the worker has to acknowledge
// something first (Held), EPIPE also that it is leaving and must be sent no
// connection any more; the other errors are those of handoff.Conn.
//
// With an empty batch Flush sends what is Unsent.
func (c *Conn) Flush() error {
	filled := c.filled
	c.filled = false
	if err := c.writeRest(); err != nil {
		return err
	}
	c.sendAgain()
	if c.fenceWaits {
		c.advanceDrain()
	}
	if !filled {
		if c.Unsent() {
			return unix.EAGAIN
		}
		return nil
	}
	if c.mute() {
		return unix.EPIPE
	}
	if err := c.writeHandle(c.line, c.lent, c.batch); err != nil {
		return err
	}
	c.next++
	return nil
}

// Unsent reports whether something is to be sent that the channel had no room
// for: when it can be written to, call Flush.
func (c *Conn) Unsent() bool {
	return len(c.unsent) > 0 || (len(c.again) > 0 || c.fenceWaits) && !c.window.shut()
}

// Held reports whether no handoff can be sent before the worker has acknowledged
// one: writing waits for reading then.
func (c *Conn) Held() bool {
	// What is half written the worker cannot acknowledge.
	return len(c.unsent) == 0 && c.window.shut()
}

// Send sends a Listening or a Drain. share, if valid, rides along (a Listening
// with ListeningShared) and stays the caller's. What must not be said any more is
// not sent, nor what Node has no word for. On an error nothing was sent.
func (c *Conn) Send(f *handoff.Frame, share handoff.FD) error {
	switch f.Type {
	case handoff.Listening:
		return c.answer(f, share)
	case handoff.Drain:
		if c.draining == notDraining {
			c.draining = waiting
			c.advanceDrain()
		}
	}
	return nil
}

// answer sends the answer to a queryServer.
func (c *Conn) answer(f *handoff.Frame, d handoff.FD) error {
	i := slices.IndexFunc(c.asked, func(a ask) bool { return a.seq == f.Seq })
	if i < 0 {
		return nil
	}
	a := c.asked[i]
	if c.mute() {
		c.asked = slices.Delete(c.asked, i, i+1)
		return nil
	}
	var err error
	opened := f.Arg == 0
	switch {
	case opened && slices.Contains(c.open, f.Listener):
		// Two servers of one key kill the worker.
		opened = false
		err = c.write(appendFailure(nil, addressInUse, a.seq, f.Data, c.next))
	case opened && f.Flags&handoff.ListeningShared != 0:
		err = c.writeShared(f, a, d)
	default:
		err = c.write(c.textOf(f, a))
	}
	if err != nil {
		return err
	}
	c.next++
	c.asked = slices.Delete(c.asked, i, i+1)
	if opened {
		c.open = append(c.open, f.Listener)
	}
	return nil
}

func (c *Conn) writeShared(f *handoff.Frame, a ask, d handoff.FD) error {
	dgram := f.Flags&handoff.ListeningPacket != 0
	s := &share{seq: a.seq, wire: f.Listener, text: appendShared(nil, dgram, f.Listener, a.seq, f.Data, c.next)}
	if err := c.writeRest(); err != nil {
		return err
	}
	if err := c.writeHandle(s.text, d.Num(), handle{n: c.next, wire: f.Listener, share: s}); err != nil {
		return err
	}
	if dup, err := d.Dup(); err == nil {
		s.fd = dup // without one the worker is told, should it be lost
	}
	return nil
}

// sendAgain sends the shared sockets that were lost, as far as there is room.
func (c *Conn) sendAgain() {
	for len(c.again) > 0 {
		s := c.again[0]
		if !c.mute() {
			err := c.writeHandle(s.text, s.fd.Num(), handle{n: c.next, wire: s.wire, share: s})
			if isErrno(err, unix.EAGAIN) {
				return
			}
			if err != nil {
				c.giveUp(s)
			} else {
				c.next++ // no handoff is to have the same number
			}
		} else {
			_ = s.fd.Close()
		}
		c.again = c.again[1:]
	}
	c.again = nil
}

// giveUp ends the sending of a shared socket: the program gets an error instead,
// and Next says that it has left the listener.
func (c *Conn) giveUp(s *share) {
	_ = s.fd.Close()
	if c.mute() {
		return
	}
	_ = c.tell(appendFailure(nil, tooManyOpened, s.seq, nil, c.next))
	c.next++
	if i := slices.Index(c.open, s.wire); i >= 0 {
		c.open = slices.Delete(c.open, i, i+1)
		c.left = append(c.left, s.wire)
	}
}

// writeHandle sends a message with its descriptor, and notes it as under way.
func (c *Conn) writeHandle(text []byte, fd int, h handle) error {
	if c.window.shut() || len(c.unsent) > 0 {
		return unix.EAGAIN
	}
	c.rights.Put(0, fd)
	n, errno := unixmsg.Send(c.fd.Num(), text, c.rights.Set(1))
	if errno != 0 {
		return errno
	}
	c.committed(text, n)
	h.end = c.window.pos
	c.window.push(h)
	return nil
}

// write sends a message without a descriptor, if what waits can be sent before.
func (c *Conn) write(text []byte) error {
	if err := c.writeRest(); err != nil {
		return err
	}
	n, errno := unixmsg.Send(c.fd.Num(), text, nil)
	if errno != 0 {
		return errno
	}
	c.committed(text, n)
	return nil
}

// committed notes that text was taken, the first n bytes of it by the kernel. The
// rest goes without the descriptor, which rides on the first byte.
func (c *Conn) committed(text []byte, n int) {
	c.window.pos += uint64(len(text))
	if n < len(text) {
		c.unsent = append(c.unsent, text[n:]...)
	}
}

func (c *Conn) writeRest() error {
	if len(c.unsent) == 0 {
		return nil
	}
	n, errno := unixmsg.Send(c.fd.Num(), c.unsent, nil)
	if errno != 0 {
		return errno
	}
	c.unsent = append(c.unsent[:0], c.unsent[n:]...)
	if len(c.unsent) > 0 {
		return unix.EAGAIN
	}
	return nil
}

// tell says something of Conn's own, now or when there is room. That the worker
// is gone is for Receive to see, which has its last words first.
func (c *Conn) tell(text []byte) error {
	err := c.write(text)
	if err == nil || isErrno(err, unix.EPIPE) || isErrno(err, unix.ECONNRESET) {
		return nil
	}
	if len(c.unsent)+len(text) > maxUnsent {
		return ErrUnread
	}
	c.committed(text, 0)
	return nil
}

// isErrno reports whether err is that errno, without the allocation of errors.Is.
func isErrno(err error, want syscall.Errno) bool {
	e, ok := err.(syscall.Errno) //nolint:errorlint // errors of this package's calls are bare errnos
	return ok && e == want
}
