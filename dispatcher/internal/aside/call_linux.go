package aside

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// The calls themselves. The loop makes those named Inline itself where no worker has
// ever had the socket.

// connFacts waits for the lock of the connection.
func connFacts(fd int) (f ConnFacts, errno syscall.Errno) {
	ti, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return f, errnoOf(err)
	}
	unread, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return f, errnoOf(err)
	}
	unsent, err := unix.IoctlGetInt(fd, unix.TIOCOUTQ)
	if err != nil {
		return f, errnoOf(err)
	}
	return ConnFacts{State: ti.State, Received: ti.Bytes_received, Unread: uint32(unread),
		Sent: ti.Bytes_sent, Unsent: max(uint32(unsent), ti.Notsent_bytes)}, 0
}

// queueFacts reads the accept queue of a listening TCP socket. TCP_INFO has its
// length in tcpi_unacked and its limit in tcpi_sacked (net/ipv4/tcp.c,
// tcp_get_info). The drops are the ninth number of SO_MEMINFO (linux/sock_diag.h,
// SK_MEMINFO_DROPS).
func queueFacts(fd int) (f QueueFacts, errno syscall.Errno) {
	ti, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return f, errnoOf(err)
	}
	f = QueueFacts{Length: ti.Unacked, Limit: ti.Sacked}
	const drops = 8
	var v [16]uint32
	size := uint32(unsafe.Sizeof(v))
	_, _, e := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&v)), uintptr(unsafe.Pointer(&size)), 0)
	if e == 0 && uintptr(size) > drops*unsafe.Sizeof(v[0]) {
		f.Drops = uint64(v[drops])
	}
	return f, 0
}

// ReuseportInline is Reuseport for a socket that no worker has.
func ReuseportInline(d handoff.FD, on int) syscall.Errno {
	return errnoOf(unix.SetsockoptInt(d.Num(), unix.SOL_SOCKET, unix.SO_REUSEPORT, on))
}

// QueueInline is Queue for a socket that no worker has.
func QueueInline(d handoff.FD) (QueueFacts, syscall.Errno) { return queueFacts(d.Num()) }

// acceptSome accepts at most n connections. It makes the socket nonblocking before,
// yet a worker may undo that at any moment: then accept4 waits.
func acceptSome(fd, n int) (out []handoff.FD, errno syscall.Errno) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errnoOf(err)
	}
	for len(out) < min(n, MaxAccept) {
		c, _, err := unix.Accept4(fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			if len(out) > 0 {
				return out, 0 // a permanent error comes again
			}
			return nil, errnoOf(err)
		}
		out = append(out, handoff.Own(c))
	}
	return out, 0
}

// RefuseNewInline is RefuseNew for a socket that no worker has. The filter drops a
// SYN without ACK. A filter on a listening TCP socket sees the packet from its TCP
// header on: byte 13 holds the flags.
func RefuseNewInline(d handoff.FD) syscall.Errno {
	const (
		synAck = 0x12
		syn    = 0x02
	)
	prog := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 13},
		{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: synAck},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: syn, Jt: 0, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
	}
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	return errnoOf(unix.SetsockoptSockFprog(d.Num(), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &fprog))
}

// DetachFilterInline is DetachFilter for a socket that no worker has.
func DetachFilterInline(d handoff.FD) syscall.Errno {
	return errnoOf(unix.SetsockoptInt(d.Num(), unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0))
}

// discardOne closes a connection without waiting for SO_LINGER. The kernel still sends the
// unsent bytes.
func discardOne(d handoff.FD) {
	_ = unix.SetsockoptLinger(d.Num(), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{})
	_ = d.Close()
}
