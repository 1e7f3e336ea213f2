//go:build darwin || freebsd || netbsd || openbsd || dragonfly

package handoff

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// The same calls through x/sys: these systems are compiled and vetted, not
// measured.

func sendmsg(fd int, p, oob []byte) (int, syscall.Errno) {
	n, err := unix.SendmsgN(fd, p, oob, nil, unix.MSG_DONTWAIT)
	return n, errnoOf(err)
}

func recvmsg(fd int, p, oob []byte) (n, oobn, flags int, errno syscall.Errno) {
	n, oobn, flags, _, err := unix.Recvmsg(fd, p, oob, unix.MSG_DONTWAIT)
	if err == nil && oobn > 0 {
		// There is no MSG_CMSG_CLOEXEC on darwin: between the two calls a spawn
		// may inherit the descriptor. Workers spawn rarely, and the pool closes
		// what a new process should not have.
		setCloexec(oob[:oobn])
	}
	return n, oobn, flags, errnoOf(err)
}

func setCloexec(oob []byte) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
		}
	}
}

func closeFD(fd int) syscall.Errno { return errnoOf(unix.Close(fd)) }

func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return syscall.EIO
}
