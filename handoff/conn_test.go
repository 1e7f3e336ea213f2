package handoff

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"rrd/test/leakcheck"
)

func TestHandoffsArriveInOrder(t *testing.T) {
	for n := 1; n <= MaxFrames; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			eachKind(t, func(l *link) {
				files := openFiles(l, n)
				if err := l.flush(100, files...); err != nil {
					l.Fatal(err)
				}
				for i, r := range l.got(n) {
					want := Frame{Type: Handoff, Seq: 100 + uint64(i), Listener: uint32(i), Arg: uint32(2 * i)}
					if d := cmp.Diff(want, r.Frame); d != "" {
						l.Fatal(d)
					}
					if !sameFile(l, r.fd.Num(), files[i].Num()) {
						l.Errorf("handoff %d brought another descriptor", i)
					}
					flags, err := unix.FcntlInt(uintptr(r.fd.Num()), unix.F_GETFD, 0)
					if err != nil || flags&unix.FD_CLOEXEC == 0 {
						l.Errorf("descriptor %d: flags %#x, %v", r.fd.Num(), flags, err)
					}
				}
			})
		})
	}
}

// Handing off lends: what the master holds is open before and after.
func TestHandoffLends(t *testing.T) {
	eachKind(t, func(l *link) {
		files := openFiles(l, 1)
		if err := l.flush(1, files...); err != nil {
			l.Fatal(err)
		}
		r := l.got(1)
		if err := r[0].fd.Close(); err != nil {
			l.Fatal(err)
		}
		if !sameFile(l, files[0].Num(), files[0].Num()) || !files[0].Valid() {
			l.Error("the master's descriptor is gone")
		}
	})
}

func TestFlushOfNothing(t *testing.T) {
	eachKind(t, func(l *link) {
		if err := l.master.Flush(); err != nil {
			l.Error(err)
		}
		var m Message
		wantErrno(l, "worker", l.port.TryReceive(&m), unix.EAGAIN)
		wantErrno(l, "master", l.master.Receive(), unix.EAGAIN)
		var f Frame
		if ok, err := l.master.Next(&f); ok || err != nil {
			l.Errorf("Next after no message: %v, %v", ok, err)
		}
	})
}

func TestManyAcksInOneMessage(t *testing.T) {
	eachKind(t, func(l *link) {
		var want []Frame
		for i := range MaxFrames {
			want = append(want, Frame{Type: Ack, Seq: uint64(i)})
		}
		if err := l.port.Send(encode(want...)); err != nil {
			l.Fatal(err)
		}
		if d := cmp.Diff(want, l.heard(MaxFrames)); d != "" {
			l.Error(d)
		}
		wantErrno(l, "master", l.master.Receive(), unix.EAGAIN)
	})
}

func TestPayloadBothWays(t *testing.T) {
	for _, size := range []int{1, 12, MaxFrames * FrameSize, MaxPayload} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			eachKind(t, func(l *link) {
				hello := Frame{Type: Hello, Arg: 1, Payload: bytes.Repeat([]byte{'h'}, size)}
				listen := Frame{Type: Listen, Seq: 2, Arg: 128, Payload: bytes.Repeat([]byte{'l'}, size)}
				ping, pong := Frame{Type: Ping, Seq: 3}, Frame{Type: Pong, Seq: 3}
				for _, f := range []*Frame{&hello, &ping} {
					if err := l.master.Send(f, FD{}); err != nil {
						l.Fatal(err)
					}
				}
				for _, f := range []*Frame{&listen, &pong} {
					if err := l.port.Send(f.Append(nil)); err != nil {
						l.Fatal(err)
					}
				}
				r := l.got(2)
				if d := cmp.Diff([]Frame{hello, ping}, []Frame{r[0].Frame, r[1].Frame}); d != "" {
					l.Error(d)
				}
				if d := cmp.Diff([]Frame{listen, pong}, l.heard(2)); d != "" {
					l.Error(d)
				}
			})
		})
	}
}

func TestSharedDescriptorRidesAlong(t *testing.T) {
	eachKind(t, func(l *link) {
		files := openFiles(l, 1)
		want := []Frame{
			{Type: Listening, Seq: 1, Arg: uint32(unix.EADDRINUSE)},
			{Type: Listening, Seq: 2, Listener: 5, Flags: ListeningShared, Payload: []byte("tcp\x00127.0.0.1:80")},
		}
		if err := l.master.Send(&want[0], FD{}); err != nil {
			l.Fatal(err)
		}
		if err := l.master.Send(&want[1], files[0]); err != nil {
			l.Fatal(err)
		}
		r := l.got(2)
		if d := cmp.Diff(want, []Frame{r[0].Frame, r[1].Frame}); d != "" {
			l.Error(d)
		}
		if r[0].fd.Valid() || !r[1].fd.Valid() || !sameFile(l, r[1].fd.Num(), files[0].Num()) {
			l.Errorf("descriptors %d and %d", r[0].fd.Num(), r[1].fd.Num())
		}
	})
}

func TestBadMessagesEndTheConversation(t *testing.T) {
	// Without boundaries these are the beginning of a message, or several.
	onlyPacket := map[string]bool{
		"one byte": true, "short frame": true, "frame and a half": true, "17 frames": true,
		"other magic in 2nd frame": true, "payload in 2nd frame": true, "frame behind a payload": true,
		"payload cut": true, "payload absent": true,
	}
	for name, c := range badMessages() {
		t.Run(name, func(t *testing.T) {
			eachKind(t, func(l *link) {
				if l.stream && onlyPacket[name] {
					return
				}
				l.say(c.msg)
				wantErrno(l, "master", l.next(), c.want)
				var f Frame
				if ok, err := l.master.Next(&f); ok || err != nil {
					l.Errorf("Next after the error: %v, %v", ok, err)
				}
				if _, errno := sendmsg(l.master.Num(), c.msg, nil); errno != 0 {
					l.Fatal(errno)
				}
				var m Message
				wantErrno(l, "worker", l.port.Receive(&m), c.want)
			})
		})
	}
}

// A full channel takes nothing of the batch, and the batch is empty afterwards.
func TestFullChannel(t *testing.T) {
	eachKind(t, func(l *link) {
		files := openFiles(l, 3)
		sent := 0
		var err error
		for err == nil {
			if err = l.flush(uint64(sent), files...); err == nil {
				sent += len(files)
			}
		}
		wantErrno(l, "Flush", err, unix.EAGAIN)
		if sent == 0 || l.master.frames != 0 || l.master.Unsent() {
			l.Fatalf("sent %d, %d left in the batch, unsent %v", sent, l.master.frames, l.master.Unsent())
		}
		if err := l.master.Flush(); err != nil {
			l.Errorf("Flush of nothing: %v", err)
		}
		wantErrno(l, "Send", l.master.Send(&Frame{Type: Ping}, FD{}), unix.EAGAIN)
		for i, r := range l.got(sent) {
			if r.Seq != uint64(i) {
				l.Fatalf("handoff %d has number %d", i, r.Seq)
			}
		}
		if err := l.master.Send(&Frame{Type: Ping, Seq: 77}, FD{}); err != nil {
			l.Fatal(err)
		}
		if r := l.got(1); r[0].Type != Ping || r[0].Seq != 77 {
			l.Errorf("after the channel was full: %+v", r)
		}
	})
}

// withoutDuplicate makes the worker's end the only one.
func (l *link) withoutDuplicate() {
	l.Helper()
	if err := l.master.peer.Close(); err != nil {
		l.Fatal(err)
	}
}

func TestWorkerGone(t *testing.T) {
	eachKind(t, func(l *link) {
		l.withoutDuplicate()
		if err := l.port.Send(encode(Frame{Type: Ack, Seq: 1})); err != nil {
			l.Fatal(err)
		}
		_ = l.port.Close()
		err := l.flush(1, openFiles(l, 2)...)
		if !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
			l.Errorf("Flush: %v", err)
		}
		if l.master.frames != 0 {
			l.Errorf("%d left in the batch", l.master.frames)
		}
		if f := l.heard(1); f[0].Type != Ack {
			l.Errorf("its last words: %+v", f)
		}
		wantErrno(l, "Receive", l.next(), io.EOF)
	})
}

func TestCloseClosesBothEnds(t *testing.T) {
	leakcheck.Check(t)
	master, child, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	if err := master.Close(); err != nil {
		t.Error(err)
	}
	if err := master.Close(); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := child.Close(); err != nil {
		t.Error(err)
	}
}

// The dispatch path allocates nothing: ten thousand connections a second are no
// work for the garbage collector.
func TestHandoffAllocatesNothing(t *testing.T) {
	eachKind(t, func(l *link) {
		file := openFiles(l, 1)[0]
		w := newRawWorker(l.portFD(), 4)
		n := testing.AllocsPerRun(200, func() {
			for i := range uint64(4) {
				l.master.Add(i, 0, 0, file)
			}
			if err := l.master.Flush(); err != nil {
				l.Fatal(err)
			}
			w.answer(l)
			if acks := countFrames(l, l.master); acks != 4 {
				l.Fatalf("%d acks", acks)
			}
			if err := l.master.Send(&Frame{Type: Drain}, FD{}); err != nil {
				l.Fatal(err)
			}
			w.skip(l)
		})
		if n != 0 {
			l.Errorf("%v allocations per batch", n)
		}
	})
}

// rawWorker answers a batch with as many acks, without allocating.
type rawWorker struct {
	fd   int
	in   [MaxFrames * FrameSize]byte
	oob  [256]byte
	fds  [MaxFrames]FD
	acks []byte
}

func newRawWorker(fd, batch int) *rawWorker {
	w := &rawWorker{fd: fd}
	for range batch {
		w.acks = (&Frame{Type: Ack}).Append(w.acks)
	}
	return w
}

func (w *rawWorker) answer(t testing.TB) {
	_, oobn, _, errno := recvmsg(w.fd, w.in[:len(w.acks)], w.oob[:rightsSpace])
	if errno != 0 {
		t.Fatal(errno)
	}
	for i := range takeRights(w.oob[:oobn], &w.fds) {
		_ = w.fds[i].Close()
	}
	if _, errno := sendmsg(w.fd, w.acks, nil); errno != 0 {
		t.Fatal(errno)
	}
}

func (w *rawWorker) skip(t testing.TB) {
	if _, _, _, errno := recvmsg(w.fd, w.in[:FrameSize], nil); errno != 0 {
		t.Fatal(errno)
	}
}

// countFrames reads all that there is.
func countFrames(t testing.TB, c *Conn) int {
	n := 0
	for {
		err := c.Receive()
		if isErrno(err, unix.EAGAIN) {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
		var f Frame
		for {
			ok, err := c.Next(&f)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			n++
		}
	}
}
