package dispatcher

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// accept takes one connection off a listening socket that does not block. Raw:
// see handoff/sys_linux.go.
func accept(ln int) (handoff.FD, syscall.Errno) {
	fd, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(ln), 0, 0,
		unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return handoff.FD{}, errno
	}
	return handoff.Own(int(fd)), 0
}

// newSocket makes a close-on-exec, non-blocking socket. Not MPTCP, which net has
// made by default since Go 1.24: it costs 5 to 10 % per accepted connection.
func newSocket(family, kind int) (handoff.FD, error) {
	fd, err := unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return handoff.FD{}, os.NewSyscallError("socket", err)
	}
	return handoff.Own(fd), nil
}

const reusePort = unix.SO_REUSEPORT

// deadEvents are the events of a unix or datagram socket that was shut down for reading only.
const deadEvents = unix.POLLRDHUP
