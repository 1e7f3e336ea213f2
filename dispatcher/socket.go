package dispatcher

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"rrd/dispatcher/internal/aside"
	"rrd/handoff"
)

// Making listening sockets. Nothing here runs on the loop: binding may wait for
// a file system.

// socket is one listening or datagram socket and, for a unix path, the file that
// is to be removed with it.
type socket struct {
	fd      handoff.FD
	network string // "tcp", "tcp4", "tcp6", "unix", "udp", "udp4", "udp6"
	addr    string // as bound: port 0 resolved
	file    *socketFile
	kept    bool // others may hold it too; see kept.go
	kernel  kernelQueue
	revival revival
	probing bool // filters are looked for
	// ownFilters is set if the socket was inherited and the process that opened it may
	// attach filters.
	ownFilters bool
}

func (s *socket) packet() bool { return strings.HasPrefix(s.network, "udp") }
func (s *socket) tcp() bool    { return strings.HasPrefix(s.network, "tcp") }

// close closes a socket that no worker has, and removes its file if that is still
// ours.
func (s *socket) close() error {
	if s.file != nil {
		inTime(unlinkLimit, s.file.remove)
	}
	if s.kept {
		_ = aside.DetachFilterInline(s.fd) // a process that holds it may go on listening
	}
	return s.fd.Close()
}

// socketFile remembers which file bind(2) made.
type socketFile struct {
	path     string
	dev, ino uint64
	rights   *Rights // with which it was made and is to be removed
	foreign  bool    // of an inherited socket: another process removes it
}

// remove unlinks the file unless another has taken its place.
func (f *socketFile) remove() {
	if f == nil || f.foreign {
		return
	}
	_ = withRights(f.rights, func() {
		at, err := placeOf(f.path, f.rights.differ())
		if err != nil {
			return
		}
		defer at.close()
		if st, err := at.stat(); err == nil && uint64(st.Dev) == f.dev && st.Ino == f.ino { //nolint:unconvert // Dev is int32 on darwin
			_ = at.unlink()
		}
	})
}

// bindOptions are what differs between a listener of the configuration, one of
// reuseport's copies and one that a worker asked for.
type bindOptions struct {
	reuseport    bool
	replaceStale bool // unix: take the path of a socket that nobody serves
	backlog      int
	mode         *os.FileMode
	addMode      os.FileMode // unix: to the mode that the file gets without mode
	reuseaddr    bool        // UDP, too
	boundOnly    bool        // TCP: not to listen
	uid, gid     int
	rights       *Rights // unix: of the worker that asked; see filePlace
}

func bindSocket(network, address string, o bindOptions) (*socket, error) {
	if network == "unix" {
		return bindUnix(address, o)
	}
	return bindInet(network, address, o)
}

func bindInet(network, address string, o bindOptions) (*socket, error) {
	ap, err := parseInet(address)
	if err != nil {
		return nil, err
	}
	addr := ap.Addr()
	family, sa := unix.AF_INET6, unix.Sockaddr(nil)
	switch {
	case addr.Is4() && strings.HasSuffix(network, "6"):
		return nil, &net.AddrError{Err: "not an IPv6 address", Addr: address}
	case addr.Is4() || strings.HasSuffix(network, "4"):
		family = unix.AF_INET
		if !addr.IsValid() || addr.Is6() && addr.IsUnspecified() {
			addr = netip.IPv4Unspecified()
		}
		if !addr.Is4() {
			return nil, &net.AddrError{Err: "not an IPv4 address", Addr: address}
		}
		sa = &unix.SockaddrInet4{Port: int(ap.Port()), Addr: addr.As4()}
	default:
		if !addr.IsValid() {
			addr = netip.IPv6Unspecified()
		}
		zone, err := zoneID(addr.Zone())
		if err != nil {
			return nil, err
		}
		sa = &unix.SockaddrInet6{Port: int(ap.Port()), Addr: addr.As16(), ZoneId: zone}
	}
	kind := unix.SOCK_STREAM
	if strings.HasPrefix(network, "udp") {
		kind = unix.SOCK_DGRAM
	}
	fd, err := newSocket(family, kind)
	if err != nil && family == unix.AF_INET6 && addr.IsUnspecified() && !strings.HasSuffix(network, "6") {
		// No IPv6 in this kernel: "any address" is then any IPv4 address.
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(ap.Port())}
		fd, err = newSocket(family, kind)
	}
	if err != nil {
		return nil, err
	}
	s := &socket{fd: fd, network: network}
	if err := s.openInet(family, sa, kind, o); err != nil {
		_ = s.fd.Close()
		return nil, err
	}
	return s, nil
}

func (s *socket) openInet(family int, sa unix.Sockaddr, kind int, o bindOptions) error {
	fd := s.fd.Num()
	set := func(level, opt, v int) error {
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, level, opt, v))
	}
	if kind == unix.SOCK_STREAM || o.reuseaddr {
		if err := set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
	}
	if o.reuseport {
		if err := set(unix.SOL_SOCKET, reusePort, 1); err != nil {
			return err
		}
	}
	if family == unix.AF_INET6 {
		only := 0
		if strings.HasSuffix(s.network, "6") {
			only = 1
		}
		if err := set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only); err != nil {
			return err
		}
	}
	if err := unix.Bind(fd, sa); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if kind == unix.SOCK_STREAM && !o.boundOnly {
		if err := unix.Listen(fd, backlogOr(o.backlog)); err != nil {
			return os.NewSyscallError("listen", err)
		}
	}
	return s.learnAddress()
}

// learnAddress asks the kernel what the socket is bound to.
func (s *socket) learnAddress() error {
	sa, err := unix.Getsockname(s.fd.Num())
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	s.addr = addressString(sa)
	return nil
}

func addressString(sa unix.Sockaddr) string {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *unix.SockaddrInet6:
		a := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 {
			a = a.WithZone(strconv.Itoa(int(sa.ZoneId)))
		}
		return netip.AddrPortFrom(a, uint16(sa.Port)).String()
	case *unix.SockaddrUnix:
		return sa.Name
	}
	return ""
}

// parseInet parses HOST:PORT where HOST is empty, an IP literal or localhost. A
// name that needs a resolver is refused: which of its addresses was meant is not
// ours to guess.
func parseInet(address string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, &net.AddrError{Err: "port is not a number from 0 to 65535", Addr: address}
	}
	switch host {
	case "":
		return netip.AddrPortFrom(netip.Addr{}, uint16(n)), nil
	case "localhost":
		host = "127.0.0.1"
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, &net.AddrError{Err: "host is not an IP address", Addr: address}
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), nil
}

func zoneID(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	ifi, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("zone %q: %w", zone, err)
	}
	return uint32(ifi.Index), nil
}

func bindUnix(path string, o bindOptions) (*socket, error) {
	if strings.ContainsRune(path, 0) {
		// The kernel would end the path there, and what it made would never be removed.
		return nil, fmt.Errorf("the path of a unix socket contains a NUL byte: %w", syscall.EINVAL)
	}
	fd, err := newSocket(unix.AF_UNIX, unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	s := &socket{fd: fd, network: "unix", addr: path}
	if err := s.openUnix(path, o); err != nil {
		_ = s.close()
		return nil, err
	}
	return s, nil
}

func (s *socket) openUnix(path string, o bindOptions) error {
	fd := s.fd.Num()
	if o.mode != nil {
		// The file gets the socket's own mode, less the umask (unix_bind in
		// net/unix/af_unix.c): never wider than asked, not even for a moment.
		if err := unix.Fchmod(fd, uint32(o.mode.Perm())); err != nil {
			return os.NewSyscallError("fchmod", err)
		}
	}
	at, err := placeOf(path, o.rights.differ())
	if err != nil {
		return err
	}
	defer at.close()
	err = at.bind(fd)
	if errors.Is(err, unix.EADDRINUSE) && o.replaceStale {
		if err := removeStale(path); err != nil {
			return err
		}
		err = at.bind(fd)
	}
	if err != nil {
		return os.NewSyscallError("bind", err)
	}
	if !isAbstract(path) {
		st, err := at.stat()
		if err != nil {
			return err
		}
		s.file = &socketFile{path: path, dev: uint64(st.Dev), ino: st.Ino, rights: o.rights} //nolint:unconvert // Dev is int32 on darwin
		if o.addMode != 0 {
			mode := os.FileMode(st.Mode).Perm() | o.addMode //nolint:unconvert // Mode is uint16 on darwin
			o.mode = &mode
		}
		if err := s.file.adopt(&at, o); err != nil {
			return err
		}
	}
	if err := unix.Listen(fd, backlogOr(o.backlog)); err != nil {
		return os.NewSyscallError("listen", err)
	}
	return nil
}

// removeStale unlinks a socket file that nobody serves: connecting is refused. A
// live one stays, as does anything that is no socket.
func removeStale(path string) error {
	fi, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if fi.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s exists and is not a socket: %w", path, syscall.EADDRINUSE)
	}
	fd, err := newSocket(unix.AF_UNIX, unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	defer fd.Close() //nolint:errcheck // a probe
	err = unix.Connect(fd.Num(), &unix.SockaddrUnix{Name: path})
	if !errors.Is(err, unix.ECONNREFUSED) {
		// Connected, or EAGAIN: its backlog is full. Somebody lives there.
		return fmt.Errorf("%s is served by another process: %w", path, syscall.EADDRINUSE)
	}
	return os.NewSyscallError("unlink", unix.Unlink(path))
}

// inherited wraps the socket of an "fd" listener and takes its descriptor.
func inherited(f *os.File) (*socket, error) {
	defer f.Close() //nolint:errcheck // the duplicate lives on
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	s := &socket{}
	var dup int
	var derr error
	if err := rc.Control(func(fd uintptr) { dup, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, os.NewSyscallError("fcntl", derr)
	}
	s.fd = handoff.Own(dup)
	// The loop must never wait in accept(2); a shared one is set back by open.
	if err := unix.SetNonblock(dup, true); err != nil {
		_ = s.fd.Close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	s.ownFilters = mayHaveFilters(dup)
	if err := s.inspect(); err != nil {
		_ = s.fd.Close()
		return nil, err
	}
	return s, nil
}

func (s *socket) inspect() error {
	fd := s.fd.Num()
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fmt.Errorf("not a socket: %w", err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	s.addr = addressString(sa)
	_, isUnix := sa.(*unix.SockaddrUnix)
	switch {
	case kind == unix.SOCK_DGRAM && !isUnix:
		s.network = "udp"
		return nil
	case kind != unix.SOCK_STREAM:
		return errors.New("a socket of a kind that is not served: want a listening stream or a UDP socket")
	case isUnix:
		s.network = "unix"
		if err := s.findFile(s.addr); err == nil && s.file != nil {
			s.file.foreign = true
		}
	default:
		s.network = "tcp"
	}
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err == nil && listening == 0 {
		return errors.New("the socket does not listen")
	}
	return nil
}
