package handoff

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Who reads the worker's end need not be the process that the master started:
// under "sh -c COMMAND" it is the shell's child. The kernel says who sent a
// message (SCM_CREDENTIALS, unix(7)), and a worker without CAP_SYS_ADMIN cannot lie
// about it.

// WatchSender makes Receive note who sent each message, until IgnoreSender.
func (c *Conn) WatchSender() error {
	if err := c.passCredentials(1); err != nil {
		return err
	}
	// Room for credentials and nothing else, so that a descriptor that a kernel
	// without SO_PASSRIGHTS lets through is cut off and closed there.
	c.creds = make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	return nil
}

// IgnoreSender ends WatchSender.
func (c *Conn) IgnoreSender() error {
	c.creds = nil
	return c.passCredentials(0)
}

// Sender returns the process that sent the last message under WatchSender, as a
// pid in the master's namespace; 0 if it is not known.
func (c *Conn) Sender() int { return c.reader }

func (c *Conn) passCredentials(on int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(c.fd.Num(), unix.SOL_SOCKET, unix.SO_PASSCRED, on))
}

func (c *Conn) noteSender(oob []byte) {
	if len(oob) < unix.CmsgLen(unix.SizeofUcred) {
		return
	}
	h := (*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(oob)))
	if h.Level != unix.SOL_SOCKET || h.Type != unix.SCM_CREDENTIALS || int(h.Len) < unix.CmsgLen(unix.SizeofUcred) {
		return
	}
	u := (*unix.Ucred)(unsafe.Pointer(unsafe.SliceData(oob[unix.CmsgLen(0):])))
	c.reader = int(u.Pid)
}
