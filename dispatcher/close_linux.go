package dispatcher

import (
	"encoding/binary"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Closing a TCP listener resets whoever is in its queues: those whose handshake
// is not done and those that nobody has accepted. So new clients are turned away
// first, by a filter that drops a SYN without ACK, while those that have begun
// come through (tried: accept until EAGAIN, then close resets a client in 3 of 3;
// with the filter 0 of 3). A dropped SYN is sent again by the client a second
// later and then meets the closed port, or whoever listens there by then. The filter is
// RefuseNew of package aside.

// handshakes counts the connections to addr's port whose handshake is not done:
// sock_diag(7) with the state SYN_RECV as filter, so that a full table of
// TIME_WAIT costs nothing. An error means that nobody can tell.
func handshakes(port uint16) (int, error) {
	n := 0
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		k, err := countSynRecv(family, port)
		if err != nil {
			return 0, err
		}
		n += k
	}
	return n, nil
}

// inetDiagReq is struct inet_diag_req_v2 of linux/inet_diag.h.
type inetDiagReq struct {
	Family, Protocol, Ext, _ uint8
	States                   uint32
	SPort, DPort             [2]byte // big-endian
	Src, Dst                 [16]byte
	If                       uint32
	Cookie                   [2]uint32
}

const (
	tcpSynRecv         = 3 // include/net/tcp_states.h
	tcpNewSynRecv      = 12
	sockDiagByFamily   = 20
	inetDiagMsgMinimum = 72
)

func countSynRecv(family uint8, port uint16) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	f := os.NewFile(uintptr(fd), "sock_diag")
	defer f.Close() //nolint:errcheck // read to the end
	req := struct {
		unix.NlMsghdr
		inetDiagReq
	}{}
	req.Len = uint32(unsafe.Sizeof(req))
	req.Type = sockDiagByFamily
	req.Flags = unix.NLM_F_REQUEST | unix.NLM_F_DUMP
	req.Family = family
	req.Protocol = unix.IPPROTO_TCP
	req.States = 1<<tcpSynRecv | 1<<tcpNewSynRecv
	binary.BigEndian.PutUint16(req.SPort[:], port)
	msg := unsafe.Slice((*byte)(unsafe.Pointer(&req)), unsafe.Sizeof(req))
	if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, os.NewSyscallError("sendto", err)
	}
	count := 0
	buf := make([]byte, 32<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return 0, os.NewSyscallError("recvfrom", err)
		}
		for b := buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(b))
			kind := binary.NativeEndian.Uint16(b[4:])
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return 0, unix.EBADMSG
			}
			switch kind {
			case unix.NLMSG_DONE:
				return count, nil
			case unix.NLMSG_ERROR:
				errno := unix.Errno(-int32(binary.NativeEndian.Uint32(b[unix.SizeofNlMsghdr:])))
				return 0, os.NewSyscallError("sock_diag", errno)
			case sockDiagByFamily:
				// Kernels before 4.12 ignore the port in the request.
				if size >= inetDiagMsgMinimum && binary.BigEndian.Uint16(b[unix.SizeofNlMsghdr+4:]) == port {
					count++
				}
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
}
