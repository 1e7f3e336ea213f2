package unixmsg

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of the dispatch path, raw: they do not block (MSG_DONTWAIT) and so
// need not tell the scheduler, which x/sys' wrappers do at twice the price, and
// they allocate nothing. EINTR cannot come from a call that does not wait.

const recvFlags = unix.MSG_DONTWAIT | unix.MSG_CMSG_CLOEXEC

// Send is one sendmsg(2): it returns how many bytes of p were taken.
func Send(fd int, p, oob []byte) (int, syscall.Errno) {
	var iov unix.Iovec
	iov.Base = unsafe.SliceData(p)
	iov.SetLen(len(p))
	var h unix.Msghdr
	h.Iov = &iov
	h.SetIovlen(1)
	if len(oob) > 0 {
		h.Control = unsafe.SliceData(oob)
		h.SetControllen(len(oob))
	}
	n, _, errno := syscall.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&h)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return int(n), errno
}

// Recv is one recvmsg(2) into p and oob.
func Recv(fd int, p, oob []byte) (n, oobn, flags int, errno syscall.Errno) {
	var iov unix.Iovec
	iov.Base = unsafe.SliceData(p)
	iov.SetLen(len(p))
	var h unix.Msghdr
	h.Iov = &iov
	h.SetIovlen(1)
	if len(oob) > 0 {
		h.Control = unsafe.SliceData(oob)
		h.SetControllen(len(oob))
	}
	r, _, errno := syscall.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&h)), recvFlags)
	return int(r), int(h.Controllen), int(h.Flags), errno
}

// Close is one close(2).
func Close(fd int) syscall.Errno {
	_, _, errno := syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
	return errno
}

// Socketpair makes a pair of unix sockets of that kind, both close-on-exec.
func Socketpair(kind int) ([2]int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	return fds, os.NewSyscallError("socketpair", err)
}
