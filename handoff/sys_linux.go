package handoff

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of the dispatch path, raw: they do not block (MSG_DONTWAIT) and so
// need not tell the scheduler, which x/sys' wrappers do at twice the price, and
// they allocate nothing. EINTR cannot come from a call that does not wait.

const recvFlags = unix.MSG_DONTWAIT | unix.MSG_CMSG_CLOEXEC

func sendmsg(fd int, p, oob []byte) (int, syscall.Errno) {
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

func recvmsg(fd int, p, oob []byte) (n, oobn, flags int, errno syscall.Errno) {
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

func closeFD(fd int) syscall.Errno {
	_, _, errno := syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
	return errno
}
