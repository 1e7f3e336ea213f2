//go:build linux || darwin || freebsd

package dispatcher

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// look polls one descriptor for what is so now.
func look(d handoff.FD, events int16) int16 {
	p := []unix.PollFd{{Fd: int32(d.Num()), Events: events}}
	if n, err := unix.Poll(p, 0); err != nil || n == 0 {
		return 0
	}
	return p[0].Revents
}

// inodeOf returns the number by which /proc names a socket, or 0 if there is none.
func inodeOf(d handoff.FD) uint64 {
	var st unix.Stat_t
	if err := unix.Fstat(d.Num(), &st); err != nil {
		return 0
	}
	return uint64(st.Ino)
}

// isReset reports whether the peer of a connection has reset it. A FIN is none.
func isReset(d handoff.FD) bool { return look(d, 0)&unix.POLLERR != 0 }

// isReadable reports whether a listening socket has somebody in its queue.
func isReadable(d handoff.FD) bool { return look(d, unix.POLLIN)&unix.POLLIN != 0 }

// isDead reports whether a listening socket was shut down, as anyone who has it can
// do. A poller reports that whether it was asked to or not.
func isDead(d handoff.FD) bool { return look(d, deadEvents)&(deadEvents|unix.POLLHUP) != 0 }

// listens reports whether a socket listens.
func listens(d handoff.FD) bool {
	on, err := unix.GetsockoptInt(d.Num(), unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	return err != nil || on != 0
}

// setBacklog changes the backlog of a socket that listens already: listen(2)
// again does that.
func setBacklog(d handoff.FD, backlog int) { _ = unix.Listen(d.Num(), backlog) }

// refuseUnix makes connecting to a listening unix socket fail, while who is in
// its queue can still be accepted.
func refuseUnix(d handoff.FD) { _ = unix.Shutdown(d.Num(), unix.SHUT_RD) }

// waitInAccept makes a socket block.
func waitInAccept(d handoff.FD) error {
	return os.NewSyscallError("fcntl", unix.SetNonblock(d.Num(), false))
}

// findFile finds the file of a unix socket again. Without it nobody can connect.
func (s *socket) findFile(path string) error {
	if s.addr != path {
		return errOtherSocket
	}
	if strings.HasPrefix(path, "@") {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return errOtherSocket
	}
	s.file = &socketFile{path: path, dev: uint64(st.Dev), ino: st.Ino} //nolint:unconvert // Dev is int32 on darwin
	return nil
}

// state returns errFileRemoved or errFileReplaced. It returns nil if the file is there or
// cannot be looked at.
func (f *socketFile) state() (err error) {
	_ = withRights(f.rights, func() {
		var st unix.Stat_t
		switch e := unix.Lstat(f.path, &st); {
		case e == unix.ENOENT || e == unix.ENOTDIR:
			err = errFileRemoved
		case e == nil && (uint64(st.Dev) != f.dev || st.Ino != f.ino): //nolint:unconvert // Dev is int32 on darwin
			err = errFileReplaced
		}
	})
	return err
}
