//go:build darwin || freebsd || netbsd || openbsd || dragonfly

package handoff

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"rrd/handoff/internal/unixmsg"
)

const pollEnd = 0 // POLLHUP is always reported

// Pair makes a channel: a STREAM with the same frames, as darwin has no
// SEQPACKET. There is no duplicate of the worker's end, so nothing can be
// recalled here. child is to be inherited by the worker and closed by the caller
// once it was spawned.
func Pair() (master *Conn, child *os.File, err error) {
	fds, err := unixmsg.Socketpair(unix.SOCK_STREAM)
	if err != nil {
		return nil, nil, fmt.Errorf("make channel: %w", err)
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

// unreadBytes is not asked on a stream.
func unreadBytes(int) int { return 0 }
