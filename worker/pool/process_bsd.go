//go:build unix && !linux

package pool

import (
	"os"
	"syscall"
)

func ownProgram() (string, error) { return os.Executable() }

// awaitExit returns when the child has ended and leaves it a zombie, so that its
// process group can be killed while nobody else can get its number. It takes a thread
// in kevent(2) for each worker, which Linux does without. An error means that the
// process can be no more than a zombie (ESRCH, on darwin).
func awaitExit(pid int) {
	kq, err := syscall.Kqueue()
	if err != nil {
		return
	}
	defer syscall.Close(kq)
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
