//go:build linux

package test

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// ptraceThread stops one thread of another process until thaw is closed. ptrace(2)
// belongs to the thread that attaches, so this goroutine keeps one.
func ptraceThread(tid int, frozen chan<- error, thaw <-chan struct{}, thawed chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(tid); err != nil {
		frozen <- fmt.Errorf("seize thread %d: %w", tid, err)
		return
	}
	err := unix.PtraceInterrupt(tid)
	if err == nil {
		_, err = unix.Wait4(tid, nil, unix.WALL, nil)
	}
	frozen <- err
	<-thaw
	thawed <- unix.PtraceDetach(tid)
}
