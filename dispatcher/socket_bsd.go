//go:build darwin || freebsd

package dispatcher

import (
	"os"

	"golang.org/x/sys/unix"
)

func backlogOr(asked int) int {
	if asked > 0 {
		return asked
	}
	return Somaxconn()
}

// Somaxconn is the kernel's cap on every backlog (listen(2)).
func Somaxconn() int {
	for _, name := range []string{"kern.ipc.soacceptqueue", "kern.ipc.somaxconn"} {
		if n, err := unix.SysctlUint32(name); err == nil && n > 0 {
			return int(n)
		}
	}
	return unix.SOMAXCONN
}

func (f *socketFile) adopt(_ *filePlace, o bindOptions) error {
	if o.uid >= 0 || o.gid >= 0 {
		if err := os.Lchown(f.path, o.uid, o.gid); err != nil {
			return err
		}
	}
	if o.mode != nil {
		return unix.Fchmodat(unix.AT_FDCWD, f.path, uint32(o.mode.Perm()), unix.AT_SYMLINK_NOFOLLOW)
	}
	return nil
}

// bindThroughDirectory refuses: there is no short name for a directory here.
func bindThroughDirectory(int, string) error { return unix.ENAMETOOLONG }

// mayHaveFilters reports false: this system has no socket filters.
func mayHaveFilters(int) bool { return false }
