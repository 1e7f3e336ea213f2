package pool

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ownProgram is the running binary, also when its file was replaced or removed.
func ownProgram() (string, error) { return "/proc/self/exe", nil }

// awaitExit returns true when the child has ended and leaves it a zombie, so that its
// process group can be killed while nobody else can get its number; it returns false
// when ctx ends first. It parks in the runtime's poller on a pidfd; where there is none
// (before Linux 5.3, some sandboxes) it takes a thread.
func awaitExit(ctx context.Context, pid int) bool {
	if f, err := openPidfd(pid); err == nil {
		if park(ctx, f, func(uintptr) bool { return peekExit(pid, unix.WNOHANG) }) {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
	}
	endedC := make(chan struct{})
	go func() { // nobody waits for it after ctx: it ends with the child
		peekExit(pid, 0)
		close(endedC)
	}()
	select {
	case <-endedC:
		return true
	case <-ctx.Done():
		return false
	}
}

// pidfdOpen is replaced in a test.
var pidfdOpen = unix.PidfdOpen

// openPidfd returns a handle of any process, in a form that the poller takes. The
// caller closes it.
func openPidfd(pid int) (*os.File, error) {
	fd, err := pidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	// Non-blocking is what makes os.NewFile use the poller.
	_ = unix.SetNonblock(fd, true)
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// park returns true as soon as ended does, and false when ctx ends or the poller
// cannot be used. It closes f.
func park(ctx context.Context, f *os.File, ended func(fd uintptr) bool) bool {
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	rc, err := f.SyscallConn()
	return err == nil && rc.Read(ended) == nil
}

// watch opens a handle of a process that need not be ours.
func watch(pid int) watched {
	f, err := openPidfd(pid)
	switch err {
	case nil:
		return pidfdWatch{pid, f}
	case unix.ESRCH:
		return endedWatch{}
	default:
		return polledWatch(pid)
	}
}

// pidfdWatch owns f.
type pidfdWatch struct {
	pid int
	f   *os.File
}

// wait: a pidfd becomes readable when the last thread has ended, reaped or not
// (pidfd_open(2)).
func (w pidfdWatch) wait(ctx context.Context) bool {
	if park(ctx, w.f, readable) {
		return true
	}
	return polledWatch(w.pid).wait(ctx)
}

func readable(fd uintptr) bool {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if err != unix.EINTR {
			return n > 0
		}
	}
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
