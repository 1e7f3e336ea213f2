//go:build unix && !freebsd

package pool

import "syscall"

// limited returns lim with the soft limit n, and a hard one that is not below it.
func limited(lim syscall.Rlimit, n uint64) *syscall.Rlimit {
	return &syscall.Rlimit{Cur: n, Max: max(lim.Max, n)}
}
