//go:build unix

package control

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// hungUp says whether the peer has closed its end. One that has only ended its
// own side (shutdown(2), as nc -N does) still waits for an answer: that is no
// POLLHUP, which takes both sides (unix_poll in net/unix/af_unix.c).
func hungUp(c net.Conn) bool {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false // no socket, so there are no sides: a write will tell
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	gone := true
	if err := raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, 0)
		gone = err == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
	}); err != nil {
		return true // closed by us
	}
	return gone
}
