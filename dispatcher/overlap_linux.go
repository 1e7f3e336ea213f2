package dispatcher

import (
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// sealPort undoes the trace of a bind with SO_REUSEPORT. The kernel remembers in the
// port's bucket that a socket with the option was bound there, and lets other such
// sockets of the same user in without another look, although no socket has the option
// any more (inet_csk_update_fastreuse and sk_reuseport_match in
// net/ipv4/inet_connection_sock.c; tried on Linux 6.18). The next bind to the port
// without the option ends that. The listening socket is in the way of one: CAP_NET_ADMIN
// allows such a bind (TCP_REPAIR, tcp(7)). Without it an address that does not
// collide is enough, and a wildcard of both families leaves none.
func sealPort(network, addr string) error {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	repairErr := bindOnce(at, strings.HasSuffix(network, "6"), true)
	if repairErr == nil {
		return nil
	}
	for _, host := range []string{"127.0.0.2", "127.0.0.1", "::1"} {
		if bindOnce(netip.AddrPortFrom(netip.MustParseAddr(host), at.Port()), true, false) == nil {
			return nil
		}
	}
	return repairErr
}

// maySeal reports whether sealPort works for every address.
func maySeal() bool {
	fd, err := newSocket(unix.AF_INET, unix.SOCK_STREAM)
	if err != nil {
		return false
	}
	defer fd.Close() //nolint:errcheck // it was never used
	return unix.SetsockoptInt(fd.Num(), unix.IPPROTO_TCP, unix.TCP_REPAIR, 1) == nil
}

// bindOnce binds a socket and closes it.
func bindOnce(at netip.AddrPort, only6, repair bool) error {
	zone, err := zoneID(at.Addr().Zone())
	if err != nil {
		return err
	}
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16(), ZoneId: zone})
	if at.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	}
	fd, err := newSocket(family, unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	defer fd.Close() //nolint:errcheck // it was never used
	type option struct{ level, name, value int }
	options := []option{{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1}}
	if family == unix.AF_INET6 {
		v6only := 0
		if only6 {
			v6only = 1
		}
		options = append(options, option{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, v6only})
	}
	if repair {
		options = append(options, option{unix.IPPROTO_TCP, unix.TCP_REPAIR, 1})
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd.Num(), o.level, o.name, o.value); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return os.NewSyscallError("bind", unix.Bind(fd.Num(), sa))
}
