//go:build !linux

package load

import "net"

// dialers: other systems have no addresses in 127/8 but the first.
func dialers(Config) []net.Dialer { return make([]net.Dialer, 1) }
