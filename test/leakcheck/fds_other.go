//go:build !linux

package leakcheck

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// mostFDs bounds the walk below; a test that opens more finds the rest unseen.
const mostFDs = 4096

// openFDs asks for each number in turn: /dev/fd is a mount that a BSD need not
// have. The inode stands for what the number refers to.
func openFDs() map[fdKey]string {
	found := make(map[fdKey]string)
	for fd := range mostFDs {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			continue
		}
		target := fmt.Sprintf("mode %#o device %d inode %d", st.Mode, st.Dev, st.Ino)
		found[fdKey{fd, target}] = describe(fd, target)
	}
	return found
}

func describe(fd int, target string) string {
	if sa, err := unix.Getsockname(fd); err == nil {
		target += " socket local " + address(sa)
	}
	if sa, err := unix.Getpeername(fd); err == nil {
		target += " remote " + address(sa)
	}
	return target
}

// children is not known here without parsing ps; Linux is where every check runs.
func children() map[int]string { return nil }

func carriers(string) map[int]string { return nil }
