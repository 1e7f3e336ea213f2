package main

import (
	"cmp"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"rrd/cmd/internal/control"
)

// clockTick is what /proc counts CPU time in: a hundredth of a second on every
// Linux that Go runs on (sysconf(3), _SC_CLK_TCK).
const clockTick = 100

// processFacts reads CPU time, resident memory and the number of descriptors of
// a process; nil is what is not told.
func processFacts(pid int) (cpu *float64, rss *uint64, fds *int) {
	dir := "/proc/" + strconv.Itoa(pid)
	text, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return nil, nil, nil
	}
	// proc_pid_stat(5); the name, in parentheses, may hold anything.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) > 21 {
		user, err1 := strconv.ParseUint(fields[11], 10, 64)
		system, err2 := strconv.ParseUint(fields[12], 10, 64)
		pages, err3 := strconv.ParseUint(fields[21], 10, 64)
		if err1 == nil && err2 == nil {
			seconds := float64(user+system) / clockTick
			cpu = &seconds
		}
		if err3 == nil {
			bytes := pages * uint64(os.Getpagesize())
			rss = &bytes
		}
	}
	// Since Linux 6.2 the size of the directory is the number of its entries
	// (proc_fd_getattr in fs/proc/fd.c); to count them would take a call for each.
	if info, err := os.Stat(dir + "/fd"); err == nil && info.Size() > 0 {
		n := int(info.Size())
		fds = &n
	}
	return cpu, rss, fds
}

// openDescriptors tells what each of our own descriptors is. What is closed while
// we look is left out; what is opened may be missing.
func openDescriptors() ([]control.FD, error) {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	fds := make([]control.FD, 0, len(entries))
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		target, err := os.Readlink(dir + "/" + e.Name())
		if err != nil || strings.HasPrefix(target, "/proc/") && strings.HasSuffix(target, "/fd") {
			continue // closed since, or what we look with
		}
		kind, target := descriptorKind(fd, target)
		fds = append(fds, control.FD{FD: fd, Kind: kind, Target: target})
	}
	slices.SortFunc(fds, func(a, b control.FD) int { return cmp.Compare(a.FD, b.FD) })
	return fds, nil
}

// descriptorKind tells by where a link in /proc/self/fd leads.
func descriptorKind(fd int, target string) (kind, told string) {
	switch {
	case strings.HasPrefix(target, "socket:"):
		return socketKind(fd, target)
	case strings.HasPrefix(target, "pipe:"):
		return "pipe", target
	case target == "anon_inode:[eventpoll]":
		return "epoll", target
	case target == "anon_inode:[eventfd]":
		return "eventfd", target
	case target == "anon_inode:[pidfd]", strings.HasPrefix(target, "pidfd:"):
		return "pidfd", target
	case strings.HasPrefix(target, "anon_inode:"):
		return "kernel", target
	case strings.HasPrefix(target, "/memfd:"):
		return "memfd", target
	case strings.HasPrefix(target, "/dev/"):
		return "device", target
	}
	return "file", target
}

// socketKind asks a socket who it is; the answers change nothing. By now the
// number may be another's, which is only told wrongly.
func socketKind(fd int, target string) (kind, told string) {
	typ, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE)
	if err != nil {
		return "socket", target
	}
	listens, _ := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN) // 0 if it cannot be told
	local, err := syscall.Getsockname(fd)
	if err != nil {
		return "socket", target
	}
	network, at := socketAddress(local, typ)
	if listens != 0 {
		return network + " listener", at
	}
	peer, err := syscall.Getpeername(fd)
	switch {
	case err == nil && typ == syscall.SOCK_SEQPACKET:
		return "channel", target
	case err == nil:
		_, to := socketAddress(peer, typ)
		return network + " connection", strings.TrimSpace(at + " from " + to)
	}
	return network + " socket", at
}

func socketAddress(sa syscall.Sockaddr, typ int) (network, address string) {
	network = "tcp"
	if typ == syscall.SOCK_DGRAM {
		network = "udp"
	}
	switch sa := sa.(type) {
	case *syscall.SockaddrInet4:
		return network, netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)).String()
	case *syscall.SockaddrInet6:
		return network, netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)).String()
	case *syscall.SockaddrUnix:
		if sa.Name == "" {
			return "unix", "(no name)"
		}
		return "unix", sa.Name
	}
	return "other", ""
}
