package control

import (
	"context"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// bind makes the socket file. It gets the mode of the socket itself, less the
// umask (unix_bind in net/unix/af_unix.c): 0600 is not even for a moment more.
func bind(path string) (*net.UnixListener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if cerr := raw.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), socketMode) }); cerr != nil {
			return cerr
		}
		return err
	}}
	ln, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	return ln.(*net.UnixListener), nil
}
