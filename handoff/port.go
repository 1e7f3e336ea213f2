package handoff

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Port is the worker's end of a channel. Receive waits in the runtime's poller.
// One goroutine may receive while others send. Close may come at any time.
type Port struct {
	f      *os.File
	rc     syscall.RawConn
	stream bool

	rest []byte // stream: the beginning of a message that has not all come

	mu     sync.Mutex
	fds    []FD // stream: descriptors whose frames have not come yet
	closed bool
}

// ErrNotAChannel says that a descriptor named by EnvChannelFD is not the socket
// that rrd makes.
var ErrNotAChannel = errors.New("not a channel of rrd")

// OpenPort takes ownership of the descriptor that the master passed to this
// process. It checks that it is one end of a pair of unix sockets and makes it
// close-on-exec, so that a grandchild does not hold it. On an error the descriptor
// is as it was and still the caller's: a wrong number may name anything.
func OpenPort(fd int) (*Port, error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w: %w", fd, ErrNotAChannel, err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w: %w", fd, ErrNotAChannel, err)
	}
	if _, ok := sa.(*unix.SockaddrUnix); !ok || (kind != unix.SOCK_SEQPACKET && kind != unix.SOCK_STREAM) {
		return nil, fmt.Errorf("descriptor %d: %w: a socket of another kind", fd, ErrNotAChannel)
	}
	if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && v != 0 {
		return nil, fmt.Errorf("descriptor %d: %w: a listening socket", fd, ErrNotAChannel)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("descriptor %d: set non-blocking: %w", fd, err)
	}
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "rrd-channel")
	rc, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &Port{f: f, rc: rc, stream: kind == unix.SOCK_STREAM}, nil
}

// Close closes the channel and what is left of a half-read message. A Receive or
// Send that waits returns os.ErrClosed, and so does every later one.
func (p *Port) Close() error {
	p.mu.Lock()
	p.closed = true
	for i := range p.fds {
		_ = p.fds[i].Close()
	}
	p.fds = nil
	p.mu.Unlock()
	return p.f.Close()
}

// closedErr puts os.ErrClosed in the place of the error that a RawConn gives
// after Close, which has no name outside of the standard library.
func (p *Port) closedErr(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return os.ErrClosed
	}
	return err
}

// SetReadDeadline ends a waiting Receive with os.ErrDeadlineExceeded at t; the
// zero time removes it.
func (p *Port) SetReadDeadline(t time.Time) error { return p.f.SetReadDeadline(t) }

// Message is what one Receive brought: 1 to 16 frames, and the descriptors of
// the handoffs (or of the one Listening) among them.
type Message struct {
	Frames [MaxFrames]Frame
	N      int // frames
	// FDs[k] belongs to the k-th frame that carries one. The receiver owns them.
	// What came without a frame of its own has been closed.
	FDs [MaxFrames]FD
	// NumFDs is how many came. Fewer than there should be: this process is at its
	// limit of open files and the kernel has dropped the rest; those handoffs
	// are to be rejected with ReasonFDLimit.
	NumFDs int

	buf [MaxMessage]byte
	oob [256]byte
}

// Close closes the descriptors that are still in the message.
func (m *Message) Close() {
	for i := range m.FDs {
		_ = m.FDs[i].Close()
	}
	m.NumFDs = 0
}

// Receive waits for a message and reads it into m, whose descriptors the caller
// has taken or closed before. io.EOF: the master is gone, and everything that it
// had sent has been received.
func (p *Port) Receive(m *Message) error {
	m.N, m.NumFDs = 0, 0
	for {
		n, err := p.fill(m)
		if err != nil {
			return err
		}
		ok, err := p.parse(m, n)
		if ok || err != nil {
			return err
		}
	}
}

// TryReceive is Receive without waiting: EAGAIN if there is no message.
func (p *Port) TryReceive(m *Message) error {
	m.N, m.NumFDs = 0, 0
	for {
		var n int
		var rerr error
		err := p.rc.Control(func(fd uintptr) { n, rerr = p.read(m, int(fd)) })
		if err != nil {
			return p.closedErr(err)
		}
		if rerr != nil {
			return rerr
		}
		ok, err := p.parse(m, n)
		if ok || err != nil {
			return err
		}
	}
}

func (p *Port) fill(m *Message) (int, error) {
	var n int
	var rerr error
	err := p.rc.Read(func(fd uintptr) bool {
		n, rerr = p.read(m, int(fd))
		return !isErrno(rerr, unix.EAGAIN)
	})
	if err != nil {
		return 0, p.closedErr(err)
	}
	return n, rerr
}

// read does one recvmsg, on a stream behind what the last one brought and no
// further than to the end of the message. So the descriptors that a read brings
// belong to the frame that it began with and those after it, and frames whose
// descriptors were dropped cannot take those of the next message.
func (p *Port) read(m *Message, fd int) (int, error) {
	have, want := 0, len(m.buf)
	if p.stream {
		have, want = copy(m.buf[:], p.rest), FrameSize
		if have >= FrameSize {
			want = messageLen(m.buf[:])
		}
	}
	n, oobn, flags, errno := recvmsg(fd, m.buf[have:want], m.oob[:rightsSpace])
	if errno == unix.ECONNRESET {
		// The master is gone and left something of ours unread. Linux says so
		// before it gives out what the master had sent: handoffs that nobody else
		// has any more. It says it once.
		n, oobn, flags, errno = recvmsg(fd, m.buf[have:want], m.oob[:rightsSpace])
	}
	if errno != 0 {
		return 0, errno
	}
	if oobn > 0 {
		m.NumFDs = takeRights(m.oob[:oobn], &m.FDs)
	}
	if flags&unix.MSG_TRUNC != 0 {
		m.Close()
		return 0, ErrTruncated
	}
	if n == 0 {
		m.Close()
		return 0, io.EOF
	}
	return have + n, nil
}

// parse decodes the message of n bytes in m.buf; false: a stream has not brought
// all of it yet.
func (p *Port) parse(m *Message, n int) (bool, error) {
	b := m.buf[:n]
	if p.stream && !p.complete(m, b) {
		return false, nil
	}
	carriers := 0
	for first := true; len(b) > 0; first = false {
		if m.N == MaxFrames {
			m.Close()
			return false, ErrLength
		}
		f := &m.Frames[m.N]
		rest, err := Decode(f, b, first)
		if err != nil {
			m.Close()
			return false, err
		}
		if carriesFD(f) {
			carriers++
		}
		m.N++
		b = rest
	}
	for m.NumFDs > carriers {
		m.NumFDs--
		_ = m.FDs[m.NumFDs].Close()
	}
	return true, nil
}

// complete reports whether b, from a stream, is a whole message. The descriptors
// of a batch all come with its first byte, so they are queued, and each frame
// that carries one takes the oldest.
func (p *Port) complete(m *Message, b []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range m.NumFDs {
		if p.closed {
			_ = m.FDs[i].Close()
		} else {
			p.fds = append(p.fds, Own(m.FDs[i].Release()))
		}
	}
	m.NumFDs = 0
	if len(b) < FrameSize || len(b) < messageLen(b) {
		p.rest = append(p.rest[:0], b...)
		return false
	}
	p.rest = p.rest[:0]
	var f Frame
	if _, err := Decode(&f, b, true); err == nil && carriesFD(&f) && len(p.fds) > 0 {
		m.FDs[0], m.NumFDs = p.fds[0], 1
		p.fds = append(p.fds[:0], p.fds[1:]...)
	}
	return true
}

// carriesFD reports whether a descriptor comes with the frame.
func carriesFD(f *Frame) bool {
	return f.Type == Handoff || f.Type == Listening && f.Flags&ListeningShared != 0
}

// Send sends encoded frames (Frame.Append), at most MaxFrames or one with a
// payload, as one message. It waits while the channel is full.
func (p *Port) Send(b []byte) error {
	var errno syscall.Errno
	// All of it inside one Write, which keeps other senders out: a stream may
	// take a part.
	err := p.rc.Write(func(fd uintptr) bool {
		for len(b) > 0 {
			var n int
			if n, errno = sendmsg(int(fd), b, nil); errno != 0 {
				return errno != unix.EAGAIN
			}
			b = b[n:]
		}
		return true
	})
	if err != nil {
		return p.closedErr(err)
	}
	if errno != 0 {
		return os.NewSyscallError("sendmsg", errno)
	}
	return nil
}
