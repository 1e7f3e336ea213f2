package pool

import (
	"os"

	"golang.org/x/sys/unix"
)

// ownProgram is the running binary, also when its file was replaced or removed.
func ownProgram() (string, error) { return "/proc/self/exe", nil }

// awaitExit returns when the child has ended and leaves it a zombie, so that its
// process group can be killed while nobody else can get its number. It parks in
// the runtime's poller on a pidfd; where there is none (before Linux 5.3, some
// sandboxes) it takes a thread.
func awaitExit(pid int) {
	if fd, err := unix.PidfdOpen(pid, 0); err == nil {
		// Non-blocking is what makes os.NewFile use the poller.
		_ = unix.SetNonblock(fd, true)
		f := os.NewFile(uintptr(fd), "pidfd")
		defer f.Close()
		if rc, err := f.SyscallConn(); err == nil {
			if rc.Read(func(uintptr) bool { return peekExit(pid, unix.WNOHANG) }) == nil {
				return
			}
		}
	}
	peekExit(pid, 0)
}

// peekExit says whether the child has ended.
func peekExit(pid, options int) bool {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT|options, nil)
		if err != unix.EINTR {
			return err != nil || info.Signo != 0
		}
	}
}
