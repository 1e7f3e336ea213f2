//go:build darwin || freebsd || netbsd || openbsd || dragonfly

package handoff

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

const pollEnd = 0 // POLLHUP is always reported

// Pair makes a channel: a STREAM with the same frames, as darwin has no
// SEQPACKET. There is no duplicate of the worker's end, so nothing can be
// recalled here. child is to be inherited by the worker and closed by the caller
// once it was spawned.
func Pair() (master *Conn, child *os.File, err error) {
	syscall.ForkLock.RLock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err == nil {
		unix.CloseOnExec(fds[0])
		unix.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, fmt.Errorf("make channel: %w", os.NewSyscallError("socketpair", err))
	}
	c := newConn(Own(fds[0]), FD{}, true)
	child = os.NewFile(uintptr(fds[1]), "rrd-channel")
	for _, fd := range fds {
		if err := unix.SetNonblock(fd, true); err != nil {
			_, _ = c.Close(), child.Close()
			return nil, nil, fmt.Errorf("make channel: %w", os.NewSyscallError("fcntl", err))
		}
	}
	return c, child, nil
}
