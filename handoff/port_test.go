package handoff

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/test/leakcheck"
)

// A wrong number in the environment names anything. It is refused, and left as
// it was.
func TestOpenPortRefusesWhatIsNoChannel(t *testing.T) {
	leakcheck.Check(t)
	raw := func(c interface{ File() (*os.File, error) }) int {
		f, err := c.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		return dupOf(t, f)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	unixLn, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer unixLn.Close()
	dgram, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dgram[1])
	pipe := openFiles(t, 1)
	for name, fd := range map[string]int{
		"not open":        1 << 20,
		"negative":        -1,
		"pipe":            pipe[0].Release(),
		"tcp listener":    raw(tcp.(*net.TCPListener)),
		"unix listener":   raw(unixLn.(*net.UnixListener)),
		"datagram socket": dgram[0],
	} {
		t.Run(name, func(t *testing.T) {
			open := fd >= 0 && fd < 1<<20
			if open {
				if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
					t.Fatal(err)
				}
			}
			p, err := OpenPort(fd)
			if p != nil || !errors.Is(err, ErrNotAChannel) || !strings.Contains(err.Error(), "descriptor ") {
				t.Errorf("got %v, %v", p, err)
			}
			if !open {
				return
			}
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags != 0 {
				t.Errorf("descriptor flags are now %#x, %v", flags, err)
			}
			if err := unix.Close(fd); err != nil {
				t.Errorf("it was closed: %v", err)
			}
		})
	}
}

func TestOpenPortMakesItCloseOnExecAndNonBlocking(t *testing.T) {
	leakcheck.Check(t)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	p, err := OpenPort(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if flags, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x, %v", flags, err)
	}
	if flags, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("status flags %#x, %v", flags, err)
	}
}

func TestReceiveThenClose(t *testing.T) {
	eachKind(t, func(l *link) {
		errC := make(chan error)
		go receiveInto(l.port, errC) // waited for by the last receive from errC
		select {
		case err := <-errC:
			l.Fatalf("Receive of nothing returned %v", err)
		case <-time.After(10 * time.Millisecond): // likely it waits by now; right either way
		}
		if err := l.port.Close(); err != nil {
			l.Error(err)
		}
		wantErrno(l, "the waiting Receive", <-errC, os.ErrClosed)
	})
}

func receiveInto(p *Port, errC chan<- error) {
	var m Message
	errC <- p.Receive(&m)
}

func TestCloseThenUse(t *testing.T) {
	eachKind(t, func(l *link) {
		_ = l.port.Close()
		var m Message
		wantErrno(l, "Receive", l.port.Receive(&m), os.ErrClosed)
		wantErrno(l, "TryReceive", l.port.TryReceive(&m), os.ErrClosed)
		wantErrno(l, "Send", l.port.Send(encode(Frame{Type: Ready})), os.ErrClosed)
		if err := l.port.Close(); !errors.Is(err, os.ErrClosed) {
			l.Errorf("Close: %v", err)
		}
	})
}

func TestReceiveDeadline(t *testing.T) {
	eachKind(t, func(l *link) {
		if err := l.port.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
			l.Fatal(err)
		}
		var m Message
		if err := l.port.Receive(&m); !errors.Is(err, os.ErrDeadlineExceeded) {
			l.Errorf("Receive: %v", err)
		}
		if err := l.master.Send(&Frame{Type: Drain}, FD{}); err != nil {
			l.Fatal(err)
		}
		if r := l.got(1); r[0].Type != Drain {
			l.Errorf("afterwards: %+v", r)
		}
	})
}

func TestTryReceive(t *testing.T) {
	eachKind(t, func(l *link) {
		var m Message
		wantErrno(l, "nothing", l.port.TryReceive(&m), unix.EAGAIN)
		if err := l.master.Send(&Frame{Type: Hello, Payload: []byte("later")}, FD{}); err != nil {
			l.Fatal(err)
		}
		if err := l.port.TryReceive(&m); err != nil || m.N != 1 || string(m.Frames[0].Payload) != "later" {
			l.Errorf("%d frames, %v", m.N, err)
		}
		wantErrno(l, "nothing more", l.port.TryReceive(&m), unix.EAGAIN)
	})
}

// What a dead master had sent is all that is left of those connections: it is
// received before the end is told, also when the master had not read everything.
func TestMasterGone(t *testing.T) {
	for name, unread := range map[string]bool{"all read": false, "worker's words unread": true} {
		t.Run(name, func(t *testing.T) {
			eachKind(t, func(l *link) {
				files := openFiles(l, 2)
				if err := l.flush(1, files...); err != nil {
					l.Fatal(err)
				}
				if unread {
					l.say(encode(Frame{Type: Ready}))
				}
				_ = l.master.Close()
				for i, r := range l.got(2) {
					if r.Seq != uint64(i)+1 || !sameFile(l, r.fd.Num(), files[i].Num()) {
						l.Errorf("handoff %d is %+v", i, r)
					}
				}
				var m Message
				wantErrno(l, "Receive", l.port.Receive(&m), io.EOF)
				if err := l.port.Send(encode(Frame{Type: Ack})); !errors.Is(err, unix.EPIPE) {
					l.Errorf("Send: %v", err)
				}
			})
		})
	}
}

// A message may bring more descriptors than frames that carry one.
func TestSurplusDescriptorsAreClosed(t *testing.T) {
	handoff, ping := Frame{Type: Handoff}, Frame{Type: Ping}
	for name, c := range map[string]struct {
		msg       []byte
		fds, kept int
	}{
		"none wanted":        {encode(ping), 3, 0},
		"one of three":       {encode(handoff), 3, 1},
		"two of three":       {encode(handoff, ping, handoff), 3, 2},
		"more than any fits": {bytes.Repeat(encode(handoff), MaxFrames), 30, MaxFrames},
		"answer not shared":  {encode(Frame{Type: Listening}), 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			eachKind(t, func(l *link) {
				files := openFiles(l, c.fds)
				nums := make([]int, len(files))
				for i := range files {
					nums[i] = files[i].Num()
				}
				if _, errno := sendmsg(l.master.Num(), c.msg, unix.UnixRights(nums...)); errno != 0 {
					l.Fatal(errno)
				}
				kept := 0
				for _, r := range l.got(len(c.msg) / FrameSize) {
					if !r.fd.Valid() {
						continue
					}
					if !sameFile(l, r.fd.Num(), files[kept].Num()) {
						l.Errorf("descriptor %d is another", kept)
					}
					kept++
				}
				if kept != c.kept {
					l.Errorf("%d kept, want %d", kept, c.kept)
				}
				_ = l.port.Close() // and leakcheck counts
			})
		})
	}
}

// Several goroutines answer at once; on a stream too no message is inside another.
func TestConcurrentSenders(t *testing.T) {
	const senders, each = 4, 200
	eachKind(t, func(l *link) {
		errC := make(chan error)
		for i := range senders {
			go sendMany(l.port, uint64(i), each, errC) // waited for by receiving from errC below
		}
		seen := map[uint64]int{}
		for _, f := range l.heard(senders * each) {
			if f.Type != Listen || len(f.Payload) != 3000 || f.Payload[0] != byte(f.Seq) {
				l.Fatalf("%v %d with %d bytes", f.Type, f.Seq, len(f.Payload))
			}
			seen[f.Seq]++
		}
		for i := range senders {
			if err := <-errC; err != nil {
				l.Error(err)
			}
			if seen[uint64(i)] != each {
				l.Errorf("%d of sender %d, want %d", seen[uint64(i)], i, each)
			}
		}
	})
}

func sendMany(p *Port, seq uint64, n int, errC chan<- error) {
	b := encode(Frame{Type: Listen, Seq: seq, Payload: bytes.Repeat([]byte{byte(seq)}, 3000)})
	for range n {
		if err := p.Send(b); err != nil {
			errC <- err
			return
		}
	}
	errC <- nil
}
