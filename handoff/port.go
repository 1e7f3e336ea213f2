package handoff

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Port is the worker's end of a channel. Receive waits in the runtime's poller.
// One goroutine may receive while others send.
type Port struct {
	f      *os.File
	rc     syscall.RawConn
	stream bool

	rest []byte // stream: bytes behind the message that was returned
	fds  []FD   // stream: descriptors whose frames have not come yet
}

// ErrNotAChannel says that a descriptor named by EnvChannelFD is not the socket
// that rrd makes.
var ErrNotAChannel = errors.New("not a channel of rrd")

// OpenPort takes ownership of the descriptor that the master passed to this
// process. It makes it close-on-exec, so that a grandchild does not hold it, and
// checks that it is a unix socket.
func OpenPort(fd int) (*Port, error) {
	unix.CloseOnExec(fd)
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
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("descriptor %d: set non-blocking: %w", fd, err)
	}
	f := os.NewFile(uintptr(fd), "rrd-channel")
	rc, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &Port{f: f, rc: rc, stream: kind == unix.SOCK_STREAM}, nil
}

// Close closes the channel and what is left of a half-read message. A Receive
// that waits returns os.ErrClosed.
func (p *Port) Close() error {
	for i := range p.fds {
		_ = p.fds[i].Close()
	}
	p.fds = nil
	return p.f.Close()
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
// has taken or closed before. io.EOF: the master is gone.
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
	var n int
	var rerr error
	err := p.rc.Control(func(fd uintptr) { n, rerr = p.read(m, int(fd)) })
	if err != nil {
		return err
	}
	if rerr != nil {
		return rerr
	}
	ok, err := p.parse(m, n)
	if !ok && err == nil {
		return unix.EAGAIN
	}
	return err
}

func (p *Port) fill(m *Message) (int, error) {
	var n int
	var rerr error
	err := p.rc.Read(func(fd uintptr) bool {
		n, rerr = p.read(m, int(fd))
		return !isErrno(rerr, unix.EAGAIN)
	})
	if err != nil {
		return 0, err
	}
	return n, rerr
}

// read does one recvmsg, behind what a stream has left over.
func (p *Port) read(m *Message, fd int) (int, error) {
	have := 0
	if p.stream {
		have = copy(m.buf[:], p.rest)
		if have >= FrameSize && have >= messageLen(m.buf[:]) {
			return have, nil
		}
	}
	n, oobn, flags, errno := recvmsg(fd, m.buf[have:], m.oob[:rightsSpace])
	if errno != 0 {
		return 0, errno
	}
	if oobn > 0 {
		m.NumFDs = takeRights(m.oob[:oobn], &m.FDs)
	}
	if p.stream && flags&unix.MSG_CTRUNC != 0 {
		p.noteMissing(m, m.buf[:have+n])
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
	if p.stream {
		end, ok := p.cut(m, b)
		if !ok {
			return false, nil
		}
		b = b[:end]
	}
	for first := true; len(b) > 0; first = false {
		if m.N == MaxFrames {
			m.Close()
			return false, ErrLength
		}
		rest, err := Decode(&m.Frames[m.N], b, first)
		if err != nil {
			m.Close()
			return false, err
		}
		m.N++
		b = rest
	}
	return true, nil
}

// cut finds the message at the front of a stream's bytes and keeps the rest. A
// descriptor may come before its frame is whole, so those are queued, and each
// frame that carries one takes the oldest.
func (p *Port) cut(m *Message, b []byte) (end int, ok bool) {
	for i := range m.NumFDs {
		p.fds = append(p.fds, Own(m.FDs[i].Release()))
	}
	m.NumFDs = 0
	if len(b) < FrameSize || len(b) < messageLen(b) {
		p.rest = append(p.rest[:0], b...)
		return 0, false
	}
	end = messageLen(b)
	p.rest = append(p.rest[:0], b[end:]...)
	if len(p.fds) > 0 && carriesFD(b) {
		if m.FDs[0] = p.fds[0]; m.FDs[0].Valid() {
			m.NumFDs = 1
		}
		p.fds = append(p.fds[:0], p.fds[1:]...)
	}
	return end, true
}

// noteMissing queues an empty FD for every descriptor that the kernel dropped,
// so that later frames do not take the wrong one. A read ends where the next
// message with descriptors begins, so what is dropped belongs to frames in b.
func (p *Port) noteMissing(m *Message, b []byte) {
	for i := range m.NumFDs {
		p.fds = append(p.fds, Own(m.FDs[i].Release()))
	}
	m.NumFDs = 0
	want := 0
	for len(b) >= FrameSize && len(b) >= messageLen(b) {
		if carriesFD(b) {
			want++
		}
		b = b[messageLen(b):]
	}
	for len(p.fds) < want {
		p.fds = append(p.fds, FD{})
	}
}

// carriesFD reports whether a descriptor comes with the encoded frame.
func carriesFD(b []byte) bool {
	switch Type(b[4]) {
	case Handoff:
		return true
	case Listening:
		return b[6]&byte(ListeningShared) != 0
	}
	return false
}

// Send sends encoded frames (Frame.Append), at most MaxFrames or one with a
// payload, as one message. It waits while the channel is full.
func (p *Port) Send(b []byte) error {
	for len(b) > 0 {
		var n int
		var errno syscall.Errno
		err := p.rc.Write(func(fd uintptr) bool {
			n, errno = sendmsg(int(fd), b, nil)
			return errno != unix.EAGAIN
		})
		if err != nil {
			return err
		}
		if errno != 0 {
			return os.NewSyscallError("sendmsg", errno)
		}
		b = b[n:] // all of it, but on a stream
	}
	return nil
}
