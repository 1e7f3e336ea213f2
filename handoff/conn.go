package handoff

import (
	"errors"
	"io"
	"syscall"

	"golang.org/x/sys/unix"

	"rrd/handoff/internal/unixmsg"
)

// Conn is the master's end of a channel. It never blocks. It is not safe for
// concurrent use: the dispatch loop owns it.
//
// Handoffs are gathered with Add and leave together with Flush, many
// descriptors in one message. What the worker said is read with Receive, a
// message at a time, and taken apart with Next.
type Conn struct {
	fd     FD
	peer   FD   // our duplicate of the worker's end, for Unread
	stream bool // SOCK_STREAM: message boundaries are ours to keep

	// The batch.
	frames int
	out    [MaxFrames * FrameSize]byte
	rights unixmsg.Rights

	// The message being read.
	in    [MaxMessage]byte
	have  int // stream: so much of it has come
	next  int // where Next goes on
	end   int // where the message ends
	first bool

	unsent []byte // stream: the rest of a message that left in part

	sender unixmsg.Sender
}

// What ends a conversation, besides the errors of Decode. All mean that this
// worker is to be ended, and nothing else.
var (
	// ErrEmpty: a message of no bytes. On SEQPACKET it looks like an end of file.
	ErrEmpty = errors.New("empty message")
	// ErrTruncated: a message longer than any legal one.
	ErrTruncated = errors.New("message too long")
	// ErrRights: a descriptor came from the worker. The master takes none; the
	// kernel has closed it.
	ErrRights = errors.New("descriptor from a worker")
)

// newConn takes ownership of both descriptors; peer may be empty.
func newConn(fd, peer FD, stream bool) *Conn {
	return &Conn{fd: fd, peer: peer, stream: stream, rights: unixmsg.NewRights(MaxFrames)}
}

// Traits are those of rrd's own protocol.
func (c *Conn) Traits() Traits { return Traits{} }

// Num lends the number of the descriptor, for a poller.
func (c *Conn) Num() int { return c.fd.Num() }

// Close closes both descriptors. Handoffs in a batch that was not flushed are
// forgotten: their connections are still the caller's.
func (c *Conn) Close() error {
	err := c.fd.Close()
	if perr := c.peer.Close(); err == nil {
		err = perr
	}
	return err
}

// Add puts a handoff of d at the end of the batch. d stays the caller's and must
// stay open until the worker has answered seq. It reports whether the batch is
// now full: then Flush before the next Add.
func (c *Conn) Add(seq uint64, listener, deaths uint32, d FD) (full bool) {
	f := Frame{Type: Handoff, Seq: seq, Listener: listener, Arg: deaths}
	f.Put(c.out[c.frames*FrameSize:])
	c.rights.Put(c.frames, d.Num())
	c.frames++
	return c.frames == MaxFrames
}

// Flush sends the batch in one message. On an error nothing was sent and the
// batch is empty: all of it is the caller's to place again. EAGAIN says that the
// channel is full, ETOOMANYREFS that too many descriptors are under way
// (unix(7)), ENOBUFS and ENOMEM that the kernel is short; anything else that the
// worker is gone.
//
// With an empty batch Flush sends what a stream took only in part (Unsent).
func (c *Conn) Flush() error {
	n := c.frames
	if n == 0 {
		return c.writeRest()
	}
	c.frames = 0
	return c.write(c.out[:n*FrameSize], c.rights.Set(n))
}

// Send sends one frame that is not a handoff, with its payload. share, if valid,
// rides along (a Listening with ListeningShared) and stays the caller's. On an
// error nothing was sent.
func (c *Conn) Send(f *Frame, share FD) error {
	var raw [FrameSize]byte
	b := raw[:]
	if len(f.Payload) > 0 {
		b = f.Append(nil)
	} else {
		f.Put(b)
	}
	if !share.Valid() {
		return c.write(b, nil)
	}
	r := unixmsg.NewRights(1)
	r.Put(0, share.Num())
	return c.write(b, r.Set(1))
}

// Unsent reports whether the end of a message that Flush or Send has taken is
// still here, because a stream had room for a part only: when the channel can be
// written to, call Flush. Never so on SEQPACKET.
func (c *Conn) Unsent() bool { return len(c.unsent) > 0 }

func (c *Conn) write(b, oob []byte) error {
	if err := c.writeRest(); err != nil {
		return err
	}
	n, errno := sendmsg(c.fd.Num(), b, oob)
	if errno != 0 {
		return errno
	}
	if n < len(b) {
		// Only a stream cuts; the descriptors went with the first byte.
		c.unsent = append(c.unsent, b[n:]...)
	}
	return nil
}

func (c *Conn) writeRest() error {
	if len(c.unsent) == 0 {
		return nil
	}
	n, errno := sendmsg(c.fd.Num(), c.unsent, nil)
	if errno != 0 {
		return errno
	}
	c.unsent = append(c.unsent[:0], c.unsent[n:]...)
	if len(c.unsent) > 0 {
		return unix.EAGAIN
	}
	return nil
}

// Receive reads one message for Next. EAGAIN says that there is none, io.EOF
// that the worker has shut its end down; every other error ends the
// conversation.
func (c *Conn) Receive() error {
	if c.stream {
		return c.receiveStream()
	}
	n, oobn, flags, errno := recvmsg(c.fd.Num(), c.in[:], c.sender.Buf())
	if errno != 0 {
		return errno
	}
	c.next, c.end, c.first = 0, n, true
	c.sender.Note(oobn)
	switch {
	case flags&unix.MSG_CTRUNC != 0:
		c.end = 0
		return ErrRights
	case flags&unix.MSG_TRUNC != 0:
		c.end = 0
		return ErrTruncated
	case n == 0:
		return c.emptyOrEOF()
	}
	return nil
}

// emptyOrEOF tells an empty message from the end of the conversation: both read
// as 0 bytes, only the end hangs up.
func (c *Conn) emptyOrEOF() error {
	p := []unix.PollFd{{Fd: int32(c.fd.Num()), Events: pollEnd}}
	_, err := unix.Poll(p, 0)
	for err == unix.EINTR {
		_, err = unix.Poll(p, 0)
	}
	if err != nil || p[0].Revents&(pollEnd|unix.POLLHUP|unix.POLLERR) != 0 {
		return io.EOF
	}
	return ErrEmpty
}

// receiveStream reads one message, which is one frame with its payload there,
// and not a byte more: what is left stays in the kernel, where a poller sees it.
func (c *Conn) receiveStream() error {
	if c.end > 0 {
		c.have = 0
	}
	c.next, c.end, c.first = 0, 0, true
	for {
		want := FrameSize
		if c.have >= FrameSize {
			want = messageLen(c.in[:])
			if c.have == want {
				c.end = want
				return nil
			}
		}
		n, _, flags, errno := recvmsg(c.fd.Num(), c.in[c.have:want], nil)
		switch {
		case errno != 0:
			return errno
		case flags&unix.MSG_CTRUNC != 0:
			return ErrRights
		case n == 0:
			return io.EOF
		}
		c.have += n
	}
}

// Next decodes the next frame of the message that Receive read. It reports false
// at the end of the message. f.Payload is good until the next Receive.
func (c *Conn) Next(f *Frame) (bool, error) {
	if c.next == c.end {
		return false, nil
	}
	rest, err := Decode(f, c.in[c.next:c.end], c.first)
	if err == nil && c.first && c.end > MaxFrames*FrameSize && len(f.Payload) == 0 {
		err = ErrLength
	}
	if err != nil {
		c.next = c.end
		return false, err
	}
	c.first = false
	c.next = c.end - len(rest)
	return true, nil
}

// Unread lends the worker's end of the channel if a message lies there that the
// worker has not received. It never waits: the kernel counts the bytes without the
// lock that a receiver holds (tried on Linux 6.18). On a stream Unread reports
// false, as the worker may have read half of a message.
func (c *Conn) Unread() (end FD, some bool) {
	return c.peer, c.peer.Valid() && !c.stream && unreadBytes(c.peer.Num()) > 0
}

// Recall receives from the worker's end of a channel, in the worker's place, and
// calls each with every message. The kernel closes the descriptors in a message:
// they were copies. N.B. Recall waits while a process of the worker is inside
// recvmsg(2) there, whatever the flags of the socket. It is for a process that may
// wait.
func Recall(end FD, each func(msg []byte)) error {
	buf := make([]byte, MaxMessage)
	for {
		n, _, _, errno := recvmsg(end.Num(), buf, nil)
		switch {
		case errno == unix.EAGAIN || errno == 0 && n == 0:
			return nil
		case errno != 0:
			return errno
		}
		each(buf[:n])
	}
}

// Frames calls each for the frames of a message that was recalled. An error says
// that the rest of the message cannot be decoded: the worker has tampered with it.
func Frames(msg []byte, each func(*Frame)) error {
	var f Frame
	for first := true; len(msg) > 0; first = false {
		rest, err := Decode(&f, msg, first)
		if err != nil {
			return err
		}
		each(&f)
		msg = rest
	}
	return nil
}

// isErrno reports whether err is that errno, without the allocation of errors.Is.
func isErrno(err error, want syscall.Errno) bool {
	e, ok := err.(syscall.Errno) //nolint:errorlint // errors of this package's calls are bare errnos
	return ok && e == want
}
