//go:build unix

package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	"rrd/dispatcher"
)

// maxSocketPath is what fits into sockaddr_un beside its closing NUL, which
// some systems can do without and some programs cannot.
const maxSocketPath = len(syscall.RawSockaddrUnix{}.Path) - 1

// listenName is NAME= at the start of a listener. A name has no colon, so it is
// never mistaken for an address and fits into LISTEN_FDNAMES.
var listenName = regexp.MustCompile(`^([A-Za-z0-9_][A-Za-z0-9_.-]{0,63})=`)

// maxListen bounds the listeners of a configuration, because each is compared with all.
const maxListen = 1024

func applyListen(h *host, c *config, values []string) error {
	if len(values) > maxListen {
		return badValue(values[maxListen], "is one of %d listeners, and there can be %d: remove some", len(values), maxListen)
	}
	for _, v := range values {
		ln, err := parseListen(h, v)
		if err != nil {
			return err
		}
		for i := range c.Listen {
			if other := &c.Listen[i]; other.Name == ln.Name {
				return badValue(v, "has the same name as another listener: name them apart, as in web=%s", address(v))
			} else if sameAddress(other, &ln) {
				return badValue(v, "is the same address as that of %q: remove one of them", other.Name)
			} else if ln.As > 0 && other.As == ln.As && base(other) == base(&ln) {
				return badValue(v, "has the same as= as %q, and programs could not tell them apart: change one of them", other.Name)
			}
		}
		c.Listen = append(c.Listen, ln)
	}
	return nil
}

// address is v without its name.
func address(v string) string { return v[len(listenName.FindString(v)):] }

// base is the network without its family. That of an inherited descriptor is not
// known yet; most are TCP.
func base(ln *dispatcher.ListenerConfig) string {
	if ln.Network == "fd" {
		return "tcp"
	}
	return strings.TrimRight(ln.Network, "46")
}

// sameAddress says whether two listeners cannot both be bound. Ports that the
// kernel chooses never collide.
func sameAddress(a, b *dispatcher.ListenerConfig) bool {
	if a.Network == b.Network && a.Address == b.Address {
		return !strings.HasSuffix(a.Address, ":0") || a.Network == "unix" || a.Network == "fd"
	}
	// Dual stack covers all of IPv4, too.
	wild := func(dual, four *dispatcher.ListenerConfig) bool {
		return four.Network == dual.Network+"4" && four.Address == "0.0.0.0"+dual.Address && dual.Address != ":0"
	}
	return wild(a, b) || wild(b, a)
}

// parseListen parses [NAME=]ADDR[,option=value...].
func parseListen(h *host, v string) (dispatcher.ListenerConfig, error) {
	ln := dispatcher.ListenerConfig{UID: -1, GID: -1}
	for _, r := range v {
		if r == utf8.RuneError || unicode.IsControl(r) { // it becomes a label and a log field
			return ln, badValue(v, "contains a control character or is no UTF-8: remove it")
		}
	}
	parts := strings.Split(v, ",")
	addr := address(parts[0])
	ln.Name = addr
	if m := listenName.FindStringSubmatch(parts[0]); m != nil {
		ln.Name = m[1]
	}
	if err := parseListenAddress(v, addr, &ln); err != nil {
		return ln, err
	}
	seen := map[string]bool{}
	for _, o := range parts[1:] {
		key, value, _ := strings.Cut(o, "=")
		if seen[key] {
			return ln, badValue(v, "has the option %s twice: remove one", oneWord(key))
		}
		seen[key] = true
		if err := listenOption(h, v, key, value, &ln); err != nil {
			return ln, err
		}
	}
	return ln, nil
}

func parseListenAddress(v, addr string, ln *dispatcher.ListenerConfig) error {
	scheme, rest, _ := strings.Cut(addr, ":")
	switch {
	case addr == "":
		return badValue(v, "has no address: write one like :80, 127.0.0.1:80, [::1]:80, unix:/path or fd:NAME")
	case scheme == "unix":
		path, err := parseSocketPath(rest, "")
		ln.Network, ln.Address = "unix", path
		return err
	case scheme == "fd":
		ln.Network, ln.Address = "fd", rest
		return checkFDName(v, rest)
	case scheme == "udp":
		rest, ok := strings.CutPrefix(rest, "//")
		if !ok {
			return badValue(v, "lacks slashes: write udp://:53 or udp://127.0.0.1:53")
		}
		return parseHostPort(v, rest, "udp", &ln.Network, &ln.Address)
	case strings.Contains(addr, "://"):
		return badValue(v, "has an unknown scheme: write the address alone, or udp://, unix:/path or fd:NAME")
	case strings.HasPrefix(addr, "/"):
		return badValue(v, "is a path: write unix:%s", addr)
	}
	return parseHostPort(v, addr, "tcp", &ln.Network, &ln.Address)
}

// parseHostPort accepts :PORT (dual stack), a literal IP address or localhost.
// Other names are not resolved: they would mean one address today, two tomorrow
// and none when the resolver is slow.
func parseHostPort(v, addr, base string, network, address *string) error {
	i := strings.LastIndexByte(addr, ':')
	if i < 0 {
		if _, err := strconv.ParseUint(addr, 10, 16); err == nil {
			return badValue(v, "has no colon: write :%s for every address of this machine", addr)
		}
		return badValue(v, "has no port: write it as in 127.0.0.1:80")
	}
	host, portText := addr[:i], addr[i+1:]
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil || portText[0] == '+' {
		return badValue(v, "has no port from 0 to 65535 after its last colon")
	}
	inner, bracketed := strings.CutPrefix(host, "[")
	if bracketed {
		var closed bool
		if inner, closed = strings.CutSuffix(inner, "]"); !closed {
			return badValue(v, "has an odd bracket: write IPv6 as in [::1]:80")
		}
	}
	if host == "localhost" {
		inner = "127.0.0.1"
	}
	if host == "" {
		*network, *address = base, ":"+strconv.FormatUint(port, 10)
		return nil
	}
	ip, err := netip.ParseAddr(inner)
	switch {
	case host == "*":
		return badValue(v, "has no address: write :%d for every address of this machine", port)
	case err != nil && bracketed:
		return badValue(v, "has no IPv6 address in its brackets")
	case err != nil:
		return badValue(v, "names a host: write its IP address, localhost, or :%d for every address of this machine", port)
	case ip.Is4() && bracketed:
		return badValue(v, "has IPv4 in brackets: write %s", netip.AddrPortFrom(ip, uint16(port)))
	case !ip.Is4() && !bracketed:
		return badValue(v, "has IPv6 without brackets: write [%s]:%d", ip, port)
	}
	ip = ip.Unmap()
	*address = netip.AddrPortFrom(ip, uint16(port)).String()
	switch {
	case ip.Is4():
		*network = base + "4"
	case ip == netip.IPv6Unspecified():
		*network, *address = base, ":"+strconv.FormatUint(port, 10)
	default:
		*network = base + "6"
	}
	return nil
}

// parseSocketPath checks the path of a unix socket. or names what else is legal.
func parseSocketPath(path, or string) (string, error) {
	if or != "" {
		if !strings.Contains(path, "/") {
			return "", badValue(path, "is no path: write one with a slash, or %s", or)
		}
		var err error
		if path, err = absolute(path); err != nil {
			return "", err
		}
	}
	if !filepath.IsAbs(path) {
		return "", badValue("unix:"+path, "is no absolute path: write unix:/path")
	}
	if strings.ContainsRune(path, 0) {
		return "", badValue(path, "contains a NUL byte")
	}
	clean := filepath.Clean(path)
	if clean == "/" {
		return "", badValue(path, "is a directory: name the socket in it")
	}
	if len(clean) > maxSocketPath {
		return "", badValue(path, "is a path of %d bytes, and a unix socket's can have %d: choose a shorter one", len(clean), maxSocketPath)
	}
	return clean, nil
}

// checkFDName accepts the number of a descriptor or an activation name.
func checkFDName(v, name string) error {
	if n, err := strconv.Atoi(name); err == nil {
		if n < 3 || n > 1<<20 {
			return badValue(v, "is no inherited descriptor: the first one is fd:3")
		}
		return nil
	}
	if name == "" || strings.Contains(name, ":") {
		return badValue(v, "names no descriptor: write fd:3, or fd:NAME with the FileDescriptorName= of the socket unit")
	}
	return nil
}

func listenOption(h *host, v, key, value string, ln *dispatcher.ListenerConfig) error {
	unixOnly := key == "mode" || key == "owner" || key == "group"
	switch {
	case unixOnly && ln.Network != "unix":
		return badValue(v, "has %s=, which only unix: listeners have: remove it", key)
	case key == "as" && ln.Network == "unix":
		return badValue(v, "has as=, and unix: listeners have no port: remove it")
	case key == "backlog" && strings.HasPrefix(ln.Network, "udp"):
		return badValue(v, "has backlog=, which udp:// has none of: remove it")
	case key == "backlog" && ln.Network == "fd":
		return badValue(v, "has backlog=, which whoever opened the descriptor has set: remove it")
	}
	switch key {
	case "backlog":
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 || n > 1<<20 {
			return badValue(v, "has a backlog= that is not a number from 1 to %d", 1<<20)
		}
		ln.Backlog = n
	case "as":
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 || n > 65535 || value[0] == '+' {
			return badValue(v, "has an as= that is not the port that the program asks for, from 1 to 65535")
		}
		ln.As = n
	case "mode":
		n, err := strconv.ParseUint(value, 8, 32)
		if err != nil || n > 0o777 {
			return badValue(v, "has a mode= that is not octal from 0 to 0777, as in mode=0660")
		}
		mode := os.FileMode(n)
		ln.Mode = &mode
	case "owner":
		a, err := h.account(value)
		if err != nil {
			return badValue(v, "has an owner= that %v", err)
		}
		ln.UID = a.uid
	case "group":
		gid, err := h.group(value)
		if err != nil {
			return badValue(v, "has a group= that %v", err)
		}
		ln.GID = gid
	default:
		return badValue(v, "has an unknown option %q: the options are backlog=, as=, mode=, owner= and group=", key)
	}
	return nil
}

// parseEndpoint accepts host:port or unix:/path.
func parseEndpoint(v string) (e endpoint, err error) {
	if path, ok := strings.CutPrefix(v, "unix:"); ok {
		e.Address, err = parseSocketPath(path, "")
		e.Network = "unix"
		return e, err
	}
	if v == "" || strings.HasPrefix(v, "/") {
		return e, badValue(v, "is no address: write one like 127.0.0.1:9746 or unix:/path, or off")
	}
	err = parseHostPort(v, v, "tcp", &e.Network, &e.Address)
	return e, err
}
