package dispatcher

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// lingers reports whether SO_LINGER is set. Raw: see handoff/sys_linux.go.
func lingers(d handoff.FD) bool {
	var v struct{ on, seconds int32 }
	size := uint32(unsafe.Sizeof(v))
	_, _, errno := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(d.Num()), unix.SOL_SOCKET, unix.SO_LINGER,
		uintptr(unsafe.Pointer(&v)), uintptr(unsafe.Pointer(&size)), 0)
	return errno == 0 && v.on != 0 && v.seconds != 0
}
