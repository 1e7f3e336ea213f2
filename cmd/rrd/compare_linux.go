package main

import (
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// comparedAttr puts a master into a process group of its own. Should this process
// be killed, the kernel asks the master to stop (prctl(2), PR_SET_PDEATHSIG: when
// the thread that made it ends, which Go's do with the process only, as long as
// whoever locks one unlocks it).
func comparedAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
}

// columnsOf is the width of a terminal, 0 if that is unknown.
func columnsOf(f *os.File) int {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

// sleepExactly sleeps in the kernel: Go's own timers wake up to a millisecond
// late, since an idle runtime waits in epoll_wait, whose unit that is. A signal
// may end it early.
func sleepExactly(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&ts, nil)
}
