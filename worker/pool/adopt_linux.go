package pool

import "golang.org/x/sys/unix"

// isChild says whether pid is a child of this process that nobody has reaped. If so
// the number stays its own until we do.
func isChild(pid int) bool {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, nil)
		if err != unix.EINTR {
			return err == nil
		}
	}
}
