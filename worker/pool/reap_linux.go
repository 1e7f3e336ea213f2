package pool

import (
	"os"
	"os/signal"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// run reaps strangers until close, if this process is PID 1.
func (r *reaper) run() {
	if os.Getpid() != 1 {
		<-r.stopC
		return
	}
	chldC := make(chan os.Signal, 1)
	signal.Notify(chldC, syscall.SIGCHLD)
	defer signal.Stop(chldC)
	for {
		r.reapStrangers()
		select {
		case <-chldC:
		case <-r.kickC:
		case <-r.stopC:
			r.reapStrangers()
			return
		}
	}
}

// reapStrangers looks at whoever has ended without taking the status, and takes it if
// the pid is not one of ours. The kernel shows one child at a time: one of
// ours hides those behind it until its own goroutine reaps it and kicks us.
func (r *reaper) reapStrangers() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		pid := peekAny()
		if pid == 0 {
			return
		}
		if _, ours := r.own[pid]; ours {
			return
		}
		if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil && err != unix.EINTR {
			return
		}
	}
}

// peekAny returns the pid of a child that has ended, or 0.
func peekAny() int {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT|unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || info.Signo == 0 {
			return 0
		}
		// si_pid begins the union behind the three ints, which is aligned like a
		// pointer (siginfo.h).
		const align = unsafe.Sizeof(uintptr(0))
		const offset = (3*unsafe.Sizeof(int32(0)) + align - 1) / align * align
		return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), offset)))
	}
}
