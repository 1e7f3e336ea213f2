//go:build darwin || freebsd

package control

import (
	"net"
	"syscall"
)

// bind makes the socket file. fchmod(2) of a socket is not possible here, so the
// umask sees to its mode; a file that another goroutine makes at the same time
// gets a narrower one than it should, never a wider.
func bind(path string) (*net.UnixListener, error) {
	old := syscall.Umask(0o777 &^ socketMode)
	defer syscall.Umask(old)
	return net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
}
