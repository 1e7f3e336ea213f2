package leakcheck

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// openFDs describes every open descriptor of this process (proc_pid_fd(5)).
// Without /proc it sees none.
func openFDs() map[fdKey]string {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	found := make(map[fdKey]string, len(entries))
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil {
			continue // Closed since: the one that ReadDir itself had open, at least.
		}
		found[fdKey{fd, target}] = describe(fd, target)
	}
	return found
}

// describe says more about a socket than its inode: a leaked connection is
// found by its addresses. Only lends fd for a few questions to the kernel; if
// its owner closes it meanwhile, the answers are empty.
func describe(fd int, target string) string {
	if !strings.HasPrefix(target, "socket:") {
		return target
	}
	words := []string{target}
	if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err == nil {
		words = append(words, socketKind(kind))
	}
	if listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && listening == 1 {
		words = append(words, "listening")
	}
	if sa, err := unix.Getsockname(fd); err == nil {
		words = append(words, "local "+address(sa))
	}
	if sa, err := unix.Getpeername(fd); err == nil {
		words = append(words, "remote "+address(sa))
	}
	return strings.Join(words, " ")
}

func socketKind(kind int) string {
	switch kind {
	case unix.SOCK_STREAM:
		return "stream"
	case unix.SOCK_DGRAM:
		return "datagram"
	case unix.SOCK_SEQPACKET:
		return "seqpacket"
	}
	return fmt.Sprintf("type %d", kind)
}
