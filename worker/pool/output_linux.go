package pool

import (
	"os"

	"golang.org/x/sys/unix"
)

// givePipe makes the worker's user the owner of an output pipe. Otherwise a program that
// opens /dev/stdout, as nginx and php-fpm do for their logs, is refused: opening
// /proc/self/fd/1 checks the pipe's owner and its mode, 0600. A terminal, a socket, a file
// or a named pipe is not ours to give away. Without CAP_CHOWN all stays as it was.
func givePipe(f *os.File, c *Credential) {
	rc, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Control(func(fd uintptr) {
		var fs unix.Statfs_t
		if unix.Fstatfs(int(fd), &fs) == nil && fs.Type == unix.PIPEFS_MAGIC {
			_ = unix.Fchown(int(fd), int(c.UID), int(c.GID))
		}
	})
}
