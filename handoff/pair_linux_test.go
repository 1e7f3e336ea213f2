package handoff

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// The stream is what other systems have; the code that reads it is the same.
var kinds = map[string]func() (*Conn, *os.File, error){"seqpacket": Pair, "stream": streamPair}

func streamPair() (*Conn, *os.File, error) { return pair(unix.SOCK_STREAM) }

func TestPairIsCloseOnExec(t *testing.T) {
	eachKind(t, func(l *link) {
		for _, fd := range []int{l.master.Num(), l.master.peer.Num(), l.portFD()} {
			flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
			if err != nil || flags&unix.FD_CLOEXEC == 0 {
				l.Errorf("descriptor %d: flags %#x, %v", fd, flags, err)
			}
		}
	})
}

func TestPairKinds(t *testing.T) {
	want := map[string]int{"seqpacket": unix.SOCK_SEQPACKET, "stream": unix.SOCK_STREAM}
	eachKind(t, func(l *link) {
		kind, err := unix.GetsockoptInt(l.portFD(), unix.SOL_SOCKET, unix.SO_TYPE)
		if err != nil || l.stream != (kind == unix.SOCK_STREAM) || l.stream != l.port.stream {
			l.Errorf("kind %d, stream %v and %v, %v; known are %v", kind, l.stream, l.port.stream, err, want)
		}
	})
}

func setRefuseRights(t *testing.T, f func(int) error) {
	t.Helper()
	old := refuseRights
	refuseRights = f
	t.Cleanup(func() { refuseRights = old })
}

// Before 6.16 there is no SO_PASSRIGHTS, and a sandbox may refuse it. The channel works
// without.
func TestPairWithoutPassRights(t *testing.T) {
	for _, errno := range []error{unix.ENOPROTOOPT, unix.EPERM} {
		setRefuseRights(t, func(int) error { return errno })
		eachKind(t, func(l *link) {
			if err := sendRights(l, encode(Frame{Type: Ack}), 1); err != nil {
				l.Fatal(err)
			}
			wantErrno(l, "master", l.next(), ErrRights)
		})
	}
}

// sendRights sends b with n descriptors as the worker.
func sendRights(l *link, b []byte, n int) error {
	l.Helper()
	fds := make([]int, n)
	for i := range fds {
		fds[i] = l.portFD()
	}
	return unix.Sendmsg(l.portFD(), b, unix.UnixRights(fds...), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
}

func passRights(l *link, on int) error {
	return unix.SetsockoptInt(l.master.Num(), unix.SOL_SOCKET, unix.SO_PASSRIGHTS, on)
}

// Where the kernel can, a worker is told at once that it cannot send descriptors.
func TestWorkerCannotSendDescriptors(t *testing.T) {
	eachKind(t, func(l *link) {
		if errors.Is(passRights(l, 0), unix.ENOPROTOOPT) {
			l.Skip("needs SO_PASSRIGHTS, Linux 6.16")
		}
		wantErrno(l, "worker", sendRights(l, encode(Frame{Type: Ack}), 1), unix.EPERM)
		l.say(encode(Frame{Type: Ack, Seq: 4}))
		if f := l.heard(1); f[0].Seq != 4 {
			l.Errorf("after the refusal: %+v", f)
		}
	})
}

// Where it cannot, the message is a violation and the descriptors are not ours.
func TestDescriptorsOfAWorkerAreNotInstalled(t *testing.T) {
	for _, n := range []int{1, 16, 253} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			eachKind(t, func(l *link) {
				if err := passRights(l, 1); err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
					l.Fatal(err)
				}
				if err := sendRights(l, encode(Frame{Type: Ack}), n); err != nil {
					l.Fatal(err)
				}
				wantErrno(l, "master", l.next(), ErrRights)
			}) // and leakcheck counts
		})
	}
}

// An empty message reads like the end of the channel, and is not.
func TestEmptyMessage(t *testing.T) {
	l := newLink(t, Pair)
	l.say(nil)
	wantErrno(t, "empty message", l.next(), ErrEmpty)
	l.say(encode(Frame{Type: Bye}))
	if err := unix.Shutdown(l.portFD(), unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	if f := l.heard(1); f[0].Type != Bye {
		t.Errorf("got %+v", f)
	}
	if err := l.next(); err == nil || err.Error() != "EOF" {
		t.Errorf("after shutdown: %v", err)
	}
}

func TestTooLongMessage(t *testing.T) {
	l := newLink(t, Pair)
	l.say(make([]byte, MaxMessage+1))
	wantErrno(t, "master", l.next(), ErrTruncated)
	if _, errno := sendmsg(l.master.Num(), make([]byte, MaxMessage+1), nil); errno != 0 {
		t.Fatal(errno)
	}
	var m Message
	wantErrno(t, "worker", l.port.Receive(&m), ErrTruncated)
	// The next one is read as if nothing had been.
	l.say(encode(Frame{Type: Listen, Payload: make([]byte, MaxPayload)}))
	if f := l.heard(1); len(f[0].Payload) != MaxPayload {
		t.Errorf("payload of %d bytes", len(f[0].Payload))
	}
}

// Descriptors that belong to a message that is refused are closed.
func TestRefusedMessageLeaksNothing(t *testing.T) {
	for name, c := range map[string]struct {
		msg  []byte
		want error
	}{
		"too long":  {make([]byte, MaxMessage+1), ErrTruncated},
		"no magic":  {make([]byte, FrameSize), ErrMagic},
		"17 frames": {encode(make([]Frame, MaxFrames+1)...), ErrLength},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLink(t, Pair)
			files := openFiles(t, 2)
			oob := unix.UnixRights(files[0].Num(), files[1].Num())
			if _, errno := sendmsg(l.master.Num(), c.msg, oob); errno != 0 {
				t.Fatal(errno)
			}
			var m Message
			wantErrno(t, "worker", l.port.Receive(&m), c.want)
		})
	}
}
