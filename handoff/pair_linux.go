package handoff

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const pollEnd = unix.POLLRDHUP

// Pair makes a channel. The master's end owns itself and the duplicate of the
// worker's end that Unread lends; child is the worker's end, to be inherited by
// the worker and closed by the caller once it was spawned.
//
// SEQPACKET keeps the boundaries of messages. Where the kernel has SO_PASSRIGHTS
// (6.16) the master's end refuses descriptors outright. Elsewhere receiving
// without a control buffer makes the kernel close them.
func Pair() (master *Conn, child *os.File, err error) {
	return pair(unix.SOCK_SEQPACKET)
}

// refuseRights makes a sender of descriptors to fd get EPERM. A variable for
// tests: older kernels say ENOPROTOOPT.
var refuseRights = func(fd int) error {
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 0)
}

func pair(kind int) (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make channel: %w", os.NewSyscallError("socketpair", err))
	}
	c := newConn(Own(fds[0]), FD{}, kind == unix.SOCK_STREAM)
	child := os.NewFile(uintptr(fds[1]), "rrd-channel")
	_ = refuseRights(fds[0]) // ENOPROTOOPT before 6.16, EPERM in some sandboxes: it works without
	dup, err := unix.FcntlInt(uintptr(fds[1]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		_, _ = c.Close(), child.Close()
		return nil, nil, fmt.Errorf("duplicate channel: %w", os.NewSyscallError("fcntl", err))
	}
	c.peer = Own(dup)
	return c, child, nil
}

// unreadBytes returns how many bytes at a socket were not received: SIOCINQ of
// unix(7), which has the number of TIOCINQ.
func unreadBytes(fd int) int {
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return n
}
