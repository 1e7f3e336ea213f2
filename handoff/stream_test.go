package handoff

import (
	"bytes"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// On a stream a message may come in any number of pieces.
func TestStreamInPieces(t *testing.T) {
	want := []Frame{
		{Type: Listen, Seq: 1, Payload: []byte("tcp\x00127.0.0.1:0")},
		{Type: Ready},
		{Type: Hello, Payload: bytes.Repeat([]byte{'x'}, MaxPayload)},
		{Type: Ack, Seq: 2},
	}
	b := encode(want...)
	for _, size := range []int{1, 63, 64, 65, 1000, len(b)} {
		l := newLink(t, streamPair)
		var up, down []Frame
		for piece := range slices.Chunk(b, size) {
			l.say(piece)
			if _, errno := sendmsg(l.master.Num(), piece, nil); errno != 0 {
				t.Fatal(errno)
			}
			up = append(up, drainConn(t, l.master)...)
			down = append(down, drainPort(t, l.port)...)
		}
		if d := cmp.Diff(want, up); d != "" {
			t.Errorf("pieces of %d, master: %s", size, d)
		}
		if d := cmp.Diff(want, down); d != "" {
			t.Errorf("pieces of %d, worker: %s", size, d)
		}
	}
}

// drainConn takes every message that has come.
func drainConn(t testing.TB, c *Conn) []Frame {
	t.Helper()
	var frames []Frame
	for {
		err := c.Receive()
		if isErrno(err, unix.EAGAIN) {
			return frames
		}
		if err != nil {
			t.Fatal(err)
		}
		var f Frame
		for ok := true; ok; {
			if ok, err = c.Next(&f); err != nil {
				t.Fatal(err)
			} else if ok {
				f.Payload = slices.Clone(f.Payload)
				frames = append(frames, f)
			}
		}
	}
}

func drainPort(t testing.TB, p *Port) []Frame {
	t.Helper()
	var frames []Frame
	for {
		var m Message
		err := p.TryReceive(&m)
		if isErrno(err, unix.EAGAIN) {
			return frames
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range m.Frames[:m.N] {
			f.Payload = slices.Clone(f.Payload)
			frames = append(frames, f)
		}
		m.Close()
	}
}

// Descriptors come with the first byte of a message, their frames may come later.
func TestStreamHandoffInPieces(t *testing.T) {
	l := newLink(t, streamPair)
	files := openFiles(t, 3)
	b := encode(Frame{Type: Handoff, Seq: 0}, Frame{Type: Handoff, Seq: 1}, Frame{Type: Handoff, Seq: 2})
	oob := unix.UnixRights(files[0].Num(), files[1].Num(), files[2].Num())
	if _, errno := sendmsg(l.master.Num(), b[:1], oob); errno != 0 {
		t.Fatal(errno)
	}
	if frames := drainPort(t, l.port); len(frames) > 0 {
		t.Fatalf("one byte is %+v", frames)
	}
	if _, errno := sendmsg(l.master.Num(), b[1:], nil); errno != 0 {
		t.Fatal(errno)
	}
	for i, r := range l.got(3) {
		if r.Seq != uint64(i) || !sameFile(t, r.fd.Num(), files[i].Num()) {
			t.Errorf("handoff %d is %+v", i, r)
		}
	}
}

// A Port that is closed with half a batch read closes the rest of it.
func TestStreamCloseInTheMiddle(t *testing.T) {
	l := newLink(t, streamPair)
	if err := l.flush(0, openFiles(t, 5)...); err != nil {
		t.Fatal(err)
	}
	l.got(2)
	if len(l.port.fds) != 3 {
		t.Errorf("%d descriptors wait for their frames, want 3", len(l.port.fds))
	}
	_ = l.port.Close() // and leakcheck counts
}

// A stream may take part of a message. The rest leaves before anything else, and
// the descriptors have gone with the first part.
func TestStreamTakesAPart(t *testing.T) {
	l := newLink(t, streamPair)
	// The least that there is; messages over half of it are cut (Linux: 2240).
	if err := unix.SetsockoptInt(l.master.Num(), unix.SOL_SOCKET, unix.SO_SNDBUF, 1); err != nil {
		t.Fatal(err)
	}
	files := openFiles(t, 1)
	long := Frame{Type: Listening, Flags: ListeningShared, Payload: bytes.Repeat([]byte{'p'}, MaxPayload)}
	if err := l.master.Send(&long, files[0]); err != nil {
		t.Fatal(err)
	}
	if !l.master.Unsent() {
		t.Skip("this system takes the whole message")
	}
	wantErrno(t, "Flush while full", l.master.Flush(), unix.EAGAIN)
	wantErrno(t, "Send while full", l.master.Send(&Frame{Type: Ping, Seq: 8}, FD{}), unix.EAGAIN)
	var m Message
	for l.master.Unsent() {
		wantErrno(t, "a part", l.port.TryReceive(&m), unix.EAGAIN)
		if err := l.master.Flush(); err != nil && !isErrno(err, unix.EAGAIN) {
			t.Fatal(err)
		}
	}
	r := l.got(1)
	if d := cmp.Diff(long, r[0].Frame); d != "" || !r[0].fd.Valid() || !sameFile(t, r[0].fd.Num(), files[0].Num()) {
		t.Errorf("descriptor %d, %s", r[0].fd.Num(), d)
	}
	if err := l.master.Send(&Frame{Type: Ping, Seq: 9}, FD{}); err != nil {
		t.Fatal(err)
	}
	if r := l.got(1); r[0].Seq != 9 {
		t.Errorf("next: %+v, want the ping that was taken", r[0].Frame)
	}
}

// Recall does nothing on a stream: the worker may have read half a message.
func TestStreamRecallsNothing(t *testing.T) {
	l := newLink(t, streamPair)
	if err := l.flush(1, openFiles(t, 2)...); err != nil {
		t.Fatal(err)
	}
	if err := recall(l.master, func(f *Frame) { t.Errorf("recalled %+v", f) }); err != nil {
		t.Error(err)
	}
	l.got(2)
}
