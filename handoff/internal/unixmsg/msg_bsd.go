//go:build darwin || freebsd || netbsd || openbsd || dragonfly

package unixmsg

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// The same calls through x/sys: these systems are compiled and vetted, not
// measured.

// Send is one sendmsg(2): it returns how many bytes of p were taken.
func Send(fd int, p, oob []byte) (int, syscall.Errno) {
	n, err := unix.SendmsgN(fd, p, oob, nil, unix.MSG_DONTWAIT)
	return n, errnoOf(err)
}

// Recv is one recvmsg(2) into p and oob.
func Recv(fd int, p, oob []byte) (n, oobn, flags int, errno syscall.Errno) {
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

// Close is one close(2).
func Close(fd int) syscall.Errno { return errnoOf(unix.Close(fd)) }

// Socketpair makes a pair of unix sockets of that kind, both close-on-exec.
func Socketpair(kind int) ([2]int, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fds, err := unix.Socketpair(unix.AF_UNIX, kind, 0)
	if err != nil {
		return fds, os.NewSyscallError("socketpair", err)
	}
	unix.CloseOnExec(fds[0])
	unix.CloseOnExec(fds[1])
	return fds, nil
}

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
