package node

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/handoff"
	"rrd/test/leakcheck"
)

func TestPair(t *testing.T) {
	leakcheck.Check(t)
	master, child, err := Pair(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	end := dupOf(t, child)
	defer end.Close()
	_ = child.Close()
	for name, c := range map[string]struct {
		fd       int
		nonblock bool
	}{"master": {master.Num(), true}, "worker": {end.Num(), false}} {
		flags, err := unix.FcntlInt(uintptr(c.fd), unix.F_GETFL, 0)
		if err != nil || (flags&unix.O_NONBLOCK != 0) != c.nonblock {
			t.Errorf("%s: flags %#x, %v", name, flags, err)
		}
		if flags, err = unix.FcntlInt(uintptr(c.fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("%s: descriptor flags %#x, %v", name, flags, err)
		}
		if kind, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || kind != unix.SOCK_STREAM {
			t.Errorf("%s: kind %d, %v", name, kind, err)
		}
	}
	if err := master.Receive(); !isErrno(err, unix.EAGAIN) {
		t.Errorf("nothing was said: %v", err)
	}
	// No duplicate of the worker's end is kept.
	_ = end.Close()
	mustEOF(t, master.Receive())
	if err := master.Close(); err != nil {
		t.Error(err)
	}
	if err := master.Close(); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

func TestPairFails(t *testing.T) {
	leakcheck.Check(t)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 4, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	c, f, err := Pair(Config{})
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	if c != nil || f != nil || !errors.Is(err, unix.EMFILE) || err.Error() != "make channel: socketpair: too many open files" {
		t.Errorf("got %v, %v, %v", c, f, err)
	}
}

func TestTraits(t *testing.T) {
	l := newLink(t, Config{})
	want := handoff.Traits{NoPong: true, NoAgain: true, NoClosed: true, HangsUp: true, Untouched: true}
	if got := l.Traits(); got != want {
		t.Errorf("got %+v", got)
	}
}

func TestSenderIsNotedUntilIgnored(t *testing.T) {
	l := newLink(t, Config{})
	if l.Sender() != 0 {
		t.Errorf("Sender() = %d before anything", l.Sender())
	}
	if err := l.WatchSender(); err != nil {
		t.Fatal(err)
	}
	l.heard(online)
	if got := l.Sender(); got != os.Getpid() && got != 0 { // 0: this system does not tell
		t.Errorf("Sender() = %d, want %d", got, os.Getpid())
	}
	if err := l.IgnoreSender(); err != nil {
		t.Fatal(err)
	}
	wantFrames(t, "after that", l.heard(listening), handoff.Frame{Type: handoff.Ready})
}
