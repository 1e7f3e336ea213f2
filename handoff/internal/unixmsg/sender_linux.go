package unixmsg

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sender notes which process sends the messages that a socket receives. The
// kernel says it (SCM_CREDENTIALS, unix(7)), and a sender without CAP_SYS_ADMIN
// cannot lie about it.
type Sender struct {
	buf []byte // control buffer for credentials; nil: not wanted
	pid int
}

// Watch begins to note who sends to fd.
func (s *Sender) Watch(fd int) error {
	if err := passCredentials(fd, 1); err != nil {
		return err
	}
	s.buf = newSenderBuf()
	return nil
}

// newSenderBuf makes room for credentials and nothing else, so that a descriptor
// that comes along is cut off and closed by the kernel.
func newSenderBuf() []byte { return make([]byte, unix.CmsgSpace(unix.SizeofUcred)) }

// RestoreSender makes the Sender of a socket whose option is as Watch or Ignore
// left it, as it is across exec(2). It does nothing to the socket.
func RestoreSender(watched bool, pid int) Sender {
	s := Sender{pid: pid}
	if watched {
		s.buf = newSenderBuf()
	}
	return s
}

// Watched reports whether Watch was called, and not Ignore after it.
func (s *Sender) Watched() bool { return s.buf != nil }

// Ignore ends Watch.
func (s *Sender) Ignore(fd int) error {
	s.buf = nil
	return passCredentials(fd, 0)
}

// PID is the process that sent the last message noted, in this process's
// namespace; 0 if it is not known.
func (s *Sender) PID() int { return s.pid }

// Buf is the control buffer to receive with; nil if nothing is to be noted.
func (s *Sender) Buf() []byte { return s.buf }

// Note reads the control data of a message that came, n bytes of Buf.
func (s *Sender) Note(n int) {
	if s.buf == nil || n < unix.CmsgLen(unix.SizeofUcred) {
		return
	}
	oob := s.buf[:n]
	h := (*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(oob)))
	if h.Level != unix.SOL_SOCKET || h.Type != unix.SCM_CREDENTIALS || int(h.Len) < unix.CmsgLen(unix.SizeofUcred) {
		return
	}
	u := (*unix.Ucred)(unsafe.Pointer(unsafe.SliceData(oob[unix.CmsgLen(0):])))
	s.pid = int(u.Pid)
}

func passCredentials(fd, on int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, on))
}
