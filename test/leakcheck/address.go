package leakcheck

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// address writes a socket's address as a person would; "unnamed" for an end of
// a pair.
func address(sa unix.Sockaddr) string {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrUnix:
		if sa.Name == "" {
			return "unnamed"
		}
		return sa.Name
	}
	return fmt.Sprintf("%T", sa)
}
