//go:build darwin || freebsd

package dispatcher

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

func accept(ln int) (handoff.FD, syscall.Errno) {
	syscall.ForkLock.RLock()
	fd, _, err := unix.Accept(ln)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		var errno syscall.Errno
		if !errors.As(err, &errno) {
			errno = syscall.EIO
		}
		return handoff.FD{}, errno
	}
	d := handoff.Own(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = d.Close()
		return handoff.FD{}, syscall.ECONNABORTED
	}
	return d, 0
}

func newSocket(family, kind int) (handoff.FD, error) {
	syscall.ForkLock.RLock()
	fd, err := unix.Socket(family, kind, 0)
	if err == nil {
		unix.CloseOnExec(fd)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return handoff.FD{}, os.NewSyscallError("socket", err)
	}
	d := handoff.Own(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = d.Close()
		return handoff.FD{}, os.NewSyscallError("fcntl", err)
	}
	return d, nil
}

// deadEvents: POLLHUP tells it.
const deadEvents = 0
