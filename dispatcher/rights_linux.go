package dispatcher

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// withRights runs fn with r's rights in the file system: on a thread of its own
// that takes on its user, group and groups (setfsuid(2); credentials are a
// thread's on Linux) and ends with fn, so that no other goroutine ever runs with
// them.
func withRights(r *Rights, fn func()) error {
	if !r.differ() {
		fn()
		return nil
	}
	done := make(chan error)
	go runWithRights(r, fn, done) // waited for below
	return <-done
}

func runWithRights(r *Rights, fn func(), done chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	err := takeRights(r)
	if err == nil {
		fn()
	}
	done <- err
}

// takeRights changes this thread only, so it cannot use syscall.Setgroups, which
// changes all.
func takeRights(r *Rights) error {
	groups := make([]uint32, 0, len(r.Groups))
	for _, g := range r.Groups {
		groups = append(groups, uint32(g))
	}
	if _, _, errno := syscall.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)),
		uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0); errno != 0 {
		return fmt.Errorf("take the worker's groups: %w", os.NewSyscallError("setgroups", errno))
	}
	// setfsuid and setfsgid tell no error, only what was before: ask again.
	for _, c := range []struct {
		name string
		nr   uintptr
		id   int
	}{{"setfsgid", unix.SYS_SETFSGID, r.GID}, {"setfsuid", unix.SYS_SETFSUID, r.UID}} {
		_, _, _ = syscall.RawSyscall(c.nr, uintptr(c.id), 0, 0)
		if now, _, _ := syscall.RawSyscall(c.nr, ^uintptr(0), 0, 0); int(now) != c.id {
			return fmt.Errorf("take the worker's rights: %s %d: %w", c.name, c.id, unix.EPERM)
		}
	}
	return nil
}
