package dispatcher

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

const (
	tcpEstablished = 1 // include/net/tcp_states.h
	tcpCloseWait   = 8
)

// untouched reports whether nobody has read from or written to a TCP connection:
// all that was received is still in its buffer, and nothing was ever sent. A FIN
// counts as one byte received that the buffer does not have.
func untouched(d handoff.FD) bool {
	ti, err := unix.GetsockoptTCPInfo(d.Num(), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return false
	}
	unread, err := unix.IoctlGetInt(d.Num(), unix.TIOCINQ)
	if err != nil {
		return false
	}
	unsent, err := unix.IoctlGetInt(d.Num(), unix.TIOCOUTQ)
	if err != nil || unsent != 0 || ti.Bytes_sent != 0 || ti.Notsent_bytes != 0 {
		return false
	}
	switch ti.State {
	case tcpEstablished:
		return ti.Bytes_received == uint64(unread)
	case tcpCloseWait:
		return ti.Bytes_received == uint64(unread)+1
	}
	return false
}

// touched reports whether somebody has read from or written to a connection, as far as
// that can be told: of TCP, and not once the client has reset it.
func touched(d handoff.FD) bool {
	const tcpClose = 7
	ti, err := unix.GetsockoptTCPInfo(d.Num(), unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && ti.State != tcpClose && !untouched(d)
}

// doNotLinger makes closing a socket never wait. What is still to be sent is sent
// all the same.
func doNotLinger(d handoff.FD) {
	_ = unix.SetsockoptLinger(d.Num(), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{})
}

// lingers reports whether SO_LINGER is set. Raw: see handoff/sys_linux.go.
func lingers(d handoff.FD) bool {
	var v struct{ on, seconds int32 }
	size := uint32(unsafe.Sizeof(v))
	_, _, errno := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(d.Num()), unix.SOL_SOCKET, unix.SO_LINGER,
		uintptr(unsafe.Pointer(&v)), uintptr(unsafe.Pointer(&size)), 0)
	return errno == 0 && v.on != 0 && v.seconds != 0
}
