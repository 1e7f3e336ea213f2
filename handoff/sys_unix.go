//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package handoff

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"rrd/handoff/internal/unixmsg"
)

func sendmsg(fd int, p, oob []byte) (int, syscall.Errno) { return unixmsg.Send(fd, p, oob) }

func recvmsg(fd int, p, oob []byte) (n, oobn, flags int, errno syscall.Errno) {
	return unixmsg.Recv(fd, p, oob)
}

func closeFD(fd int) syscall.Errno { return unixmsg.Close(fd) }

func dupFD(fd int) (int, syscall.Errno) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return -1, errno
	}
	return n, 0
}
