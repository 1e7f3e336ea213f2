//go:build unix && !linux

package pool

import "syscall"

// fdDir shows all descriptors on darwin. On FreeBSD without fdescfs it shows the first
// three only; master and workers are started with no others by rc.d.
const fdDir = "/dev/fd"

func closeRangeCloexec() error { return syscall.ENOSYS }
