package pool

import (
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// resetThread gives the calling thread, which is to call exec, no_new_privs, default
// dispositions and an empty signal mask. exec itself resets handlers, but
// what is ignored stays ignored (a master under nohup) and what is blocked, blocked.
func resetThread() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return &SpawnError{"set no_new_privs", "", err}
	}
	for sig := 1; sig <= 64; sig++ {
		if err := unignore(sig); err != nil {
			return &SpawnError{"reset signal", strconv.Itoa(sig), err}
		}
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil); err != nil {
		return &SpawnError{"empty signal mask", "", err}
	}
	return nil
}

// dropCapabilities empties all sets of the calling thread, which is to call exec.
// setuid from root to another user has emptied all but the inheritable one
// (capabilities(7), "Effect of user ID changes on capabilities").
func dropCapabilities() error {
	var none [2]unix.CapUserData
	return unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0])
}

// sigaction is the kernel's, not libc's, as on amd64, 386, arm64 and most others. Only
// the first field is looked at, and SIG_DFL is all zeros.
type sigaction struct {
	handler uintptr
	_       [7]uint64
}

// unignore sets sig to SIG_DFL if it is ignored. Package signal cannot: it leaves
// what was ignored from the start. Handlers are left alone, as the runtime still
// works with them until the exec. KILL and STOP cannot be ignored.
func unignore(sig int) error {
	const sigIgn = 1
	var old, dfl sigaction
	const setSize = 8 // bytes of a kernel sigset_t
	_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0, uintptr(unsafe.Pointer(&old)), setSize, 0, 0)
	if e == 0 && old.handler == sigIgn {
		_, _, e = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&dfl)), 0, setSize, 0, 0)
	}
	if e != 0 && e != syscall.EINVAL { // fewer signals than 64
		return e
	}
	return nil
}
