package node

import (
	"encoding/json"
	"math"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"rrd/handoff"
)

// maxAsked is how many requests may be unanswered.
const maxAsked = 1024

// defaultBacklog is what Node takes where a program names no backlog.
const defaultBacklog = 511

// ask is a queryServer that was not answered.
type ask struct {
	seq  uint64
	port uint16 // the one asked for, which the answer must name
	// mapped: an IPv4 address was asked for as an IPv6 one (RFC 4291, 2.5.5.2), which the
	// answer must name so.
	mapped bool
}

// message is an internal message, decoded as far as its field names, which are
// told apart by case and of which the last counts, as in JavaScript.
type message map[string]json.RawMessage

func (m message) text(name string) (string, bool) {
	v := m[name]
	if len(v) == 0 || v[0] != '"' {
		return "", false
	}
	var s string
	return s, json.Unmarshal(v, &s) == nil
}

// uint returns a number that JavaScript can count to.
func (m message) uint(name string) (uint64, bool) {
	n, err := strconv.ParseUint(string(m[name]), 10, 53)
	return n, err == nil
}

func (m message) int(name string) (int64, bool) {
	n, err := strconv.ParseInt(string(m[name]), 10, 54)
	return n, err == nil
}

// has reports whether the field is there and neither false, 0 nor null.
func (m message) has(name string) bool {
	switch string(m[name]) {
	case "", "null", "false", "0":
		return false
	}
	return true
}

// data returns the field of that name as it came; nil: there is nothing.
func (m message) data() []byte {
	if d := m["data"]; string(d) != "null" {
		return d
	}
	return nil
}

// Bits of flags.
const (
	flagIPv6Only  = 1
	flagReuseAddr = 4
)

// parseQuery makes a Listen frame, but for its Seq, of a queryServer; false:
// nobody could grant that. port is the one that is asked for.
func parseQuery(f *handoff.Frame, m message) (port uint16, ok bool) {
	*f = handoff.Frame{Type: handoff.Listen, Flags: handoff.ListenExact, Data: m.data()}
	network, address, port, ok := target(m)
	if !ok {
		return 0, false
	}
	f.Payload = []byte(network + "\x00" + address)
	flags, _ := m.int("flags")
	switch {
	case strings.HasPrefix(network, "udp"):
		if flags&flagReuseAddr != 0 {
			f.Flags |= handoff.ListenReuse
		}
	default:
		f.Arg = defaultBacklog
		if n, ok := m.int("backlog"); ok && n > 0 {
			f.Arg = uint32(min(n, math.MaxInt32))
		}
	}
	if network == "unix" {
		if m.has("readableAll") {
			f.Flags |= handoff.ListenReadable
		}
		if m.has("writableAll") {
			f.Flags |= handoff.ListenWritable
		}
		return 0, true
	}
	if n, ok := m.uint("index"); ok && port == 0 && network != "fd" {
		f.Listener = uint32(min(n, math.MaxUint32))
	}
	return port, true
}

// target is what a queryServer asks for, in the words of package handoff.
func target(m message) (network, address string, port uint16, ok bool) {
	if fd, ok := m.int("fd"); ok && fd >= 0 {
		return "fd", strconv.FormatInt(fd, 10), 0, fd <= math.MaxInt32
	}
	host, _ := m.text("address")
	kind := string(m["addressType"])
	if kind == "-1" {
		path, ok := socketPath(host)
		return "unix", path, 0, ok
	}
	n, ok := m.number("port")
	if !ok {
		return "", "", 0, false
	}
	network, ok = inetNetwork(kind, host, m)
	if !ok {
		return "", "", 0, false
	}
	if strings.HasPrefix(network, "udp") {
		port = udpPort(n)
	} else if port, ok = tcpPort(n); !ok {
		return "", "", 0, false
	}
	// "" gives ":PORT".
	return network, net.JoinHostPort(host, strconv.FormatUint(uint64(port), 10)), port, true
}

// isMapped reports whether a queryServer asks for an IPv4 address in the form of IPv6.
func isMapped(m message) bool {
	host, _ := m.text("address")
	a, err := netip.ParseAddr(host)
	return err == nil && a.Is4In6()
}

// inetNetwork tells the family. Without a host TCP is bound to both, and so is "::"
// unless the program wants IPv6 only.
func inetNetwork(kind, host string, m message) (string, bool) {
	flags, _ := m.int("flags")
	v6 := func(family string) string {
		if flags&flagIPv6Only == 0 && (host == "" || host == "::") {
			return family
		}
		return family + "6"
	}
	switch kind {
	case "4":
		if host == "" {
			return v6("tcp"), true
		}
		return "tcp4", true
	case "6":
		if a, err := netip.ParseAddr(host); err == nil && a.Is4In6() {
			return "tcp4", true // a socket of IPv6 alone, as others with an address are, cannot have it
		}
		return v6("tcp"), true
	case `"udp4"`:
		return "udp4", true
	case `"udp6"`:
		return v6("udp"), true
	}
	return "", false
}

// socketPath is where a unix socket is to be. An abstract name comes mangled: the
// worker's folder, a slash, then the NUL and the name. A worker makes other paths
// absolute, so a relative or an empty one is none; the kernel would make a name up. A NUL
// elsewhere is refused: the kernel would end the path there.
func socketPath(address string) (string, bool) {
	if folder, name, found := strings.Cut(address, "\x00"); found {
		return "@" + name, name != "" && strings.HasSuffix(folder, "/") && !strings.Contains(name, "\x00")
	}
	return address, strings.HasPrefix(address, "/")
}
