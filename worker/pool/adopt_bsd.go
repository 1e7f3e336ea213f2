//go:build unix && !linux

package pool

import "syscall"

// isChild says whether pid is there. Package syscall has no waitid(2) here to look at a
// child without reaping it, but the number of one that nobody has reaped is its own.
func isChild(pid int) bool { return syscall.Kill(pid, 0) != syscall.ESRCH }
