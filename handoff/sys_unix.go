//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package handoff

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

func dupFD(fd int) (int, syscall.Errno) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return -1, errno
	}
	return n, 0
}
