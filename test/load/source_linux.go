package load

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// dialers returns one dialer, or for more connections than one source address has
// ports several with sources from 127/8. IP_BIND_ADDRESS_NO_PORT leaves the choice
// of the port to connect, which may use one again for another destination
// (ip(7)).
func dialers(cfg Config) []net.Dialer {
	at, err := netip.ParseAddrPort(cfg.Address)
	n := (cfg.Total + perSource - 1) / perSource
	if err != nil || !at.Addr().Is4() || !at.Addr().IsLoopback() || n < 2 {
		return make([]net.Dialer, 1)
	}
	d := make([]net.Dialer, n)
	for i := range d {
		d[i].LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 99, byte(i>>8), byte(i))}
		d[i].Control = bindWithoutPort
	}
	return d
}

func bindWithoutPort(_, _ string, c syscall.RawConn) error {
	var serr error
	err := c.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	})
	if err == nil && serr != nil {
		err = fmt.Errorf("set IP_BIND_ADDRESS_NO_PORT: %w", serr)
	}
	return err
}
