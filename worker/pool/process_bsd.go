//go:build unix && !linux

package pool

import (
	"context"
	"os"
	"syscall"
)

func ownProgram() (string, error) { return os.Executable() }

// awaitExit returns true when the child has ended and leaves it a zombie, so that its
// process group can be killed while nobody else can get its number; it returns false
// when ctx ends first. It takes a thread in kevent(2) for each worker, which Linux does
// without. An error means that the process can be no more than a zombie (ESRCH, on
// darwin).
func awaitExit(ctx context.Context, pid int) bool {
	endedC := make(chan struct{})
	go func() { // nobody waits for it after ctx: it ends with the process
		awaitEvent(pid)
		close(endedC)
	}()
	select {
	case <-endedC:
		return true
	case <-ctx.Done():
		return false
	}
}

func awaitEvent(pid int) {
	kq, err := syscall.Kqueue()
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(kq), "kqueue")
	defer f.Close()
	syscall.CloseOnExec(kq)
	change := make([]syscall.Kevent_t, 1)
	syscall.SetKevent(&change[0], pid, syscall.EVFILT_PROC, syscall.EV_ADD|syscall.EV_ONESHOT)
	change[0].Fflags = syscall.NOTE_EXIT
	events := make([]syscall.Kevent_t, 1)
	for {
		n, err := syscall.Kevent(kq, change, events, nil)
		if err != syscall.EINTR && (err != nil || n > 0) {
			return
		}
	}
}

// watch polls: kevent(2) may be refused for a process of another user, and readers other
// than the leader are rare.
func watch(pid int) watched { return polledWatch(pid) }
