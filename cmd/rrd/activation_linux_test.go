package main

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Numbers that nobody passed are somebody else's by now: of Go's poller, say.
func TestActivationOfTooMany(t *testing.T) {
	first := inherit(t, 1)
	poller, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(poller)
	if poller != first+1 {
		if err := unix.Dup3(poller, first+1, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		defer syscall.Close(first + 1)
	}
	a := takeActivationFrom(activationEnv(2, "web:api"), 77, first)
	if len(a.files) > 0 || !strings.Contains(a.problem, fmt.Sprintf("descriptor %d was not passed to rrd", first+1)) {
		t.Errorf("%d taken, %q", len(a.files), a.problem)
	}
	if unclaimed := a.claimKept(nil); len(unclaimed) > 0 || !isOpen(first) || !passed(first) || passed(first+1) {
		t.Errorf("%q, or closed", unclaimed)
	}
	syscall.Close(first)
}
