package pool

import (
	"sync"
	"syscall"
)

// OriginalNoFile returns the soft RLIMIT_NOFILE that this program was started with,
// before Go's start raised it to the hard one. The first call should come early
// in main: it lowers the limit for a moment, and from then on processes started
// through os/exec get the raised limit; those of a Pool always get Config.NoFile.
//
// Go keeps the number to itself, but syscall.Exec puts it back before it calls
// execve(2) and does not undo that when there is nothing to execute.
func OriginalNoFile() uint64 { return originalNoFile() }

var originalNoFile = sync.OnceValue(func() uint64 {
	var raised, original syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &raised) != nil {
		return 0
	}
	_ = syscall.Exec("", []string{""}, nil) // ENOENT
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &original) != nil {
		return 0
	}
	if original != raised {
		// The same process could set it a moment ago.
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised)
	}
	return uint64(original.Cur)
})
