package node

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// Beyond 32 KiB since the last message whose handle was acknowledged, only one
// handle may be under way.
func TestByteWindow(t *testing.T) {
	l := newLink(t, Config{})
	l.listens(1, 7)
	d := openFile(t)
	sent, n := uint64(0), l.window.pos
	for ; n < windowBytes; sent++ {
		if l.Held() {
			t.Fatalf("held at %d bytes", n)
		}
		l.hand(100+sent, 7, d)
		l.read() // and does not acknowledge
		l.closeGot()
		n += uint64(len(l.line))
	}
	if sent < 300 || !l.Held() {
		t.Fatalf("%d handoffs in %d bytes, held %v", sent, n, l.Held())
	}
	if err := l.try(99, 7, d); !isErrno(err, unix.EAGAIN) {
		t.Fatalf("handoff: %v", err)
	}
	// Other messages may go.
	l.heard(query(2, `"address":null,"port":81,"addressType":4`))
	l.send(handoff.Frame{Type: handoff.Listening, Seq: 2, Listener: 8, Payload: []byte("tcp\x00[::]:81")}, handoff.FD{})
	// The first acknowledgement frees the bytes up to the end of its message.
	l.heard(handleAck)
	first := l.window.acked
	if want := l.window.under[0].end; first != want || l.Held() == (l.window.pos-first < windowBytes) {
		t.Errorf("acked %d, want %d; held %v", first, want, l.Held())
	}
	for l.Held() {
		l.heard(handleAck)
	}
	if l.window.pos-l.window.acked >= windowBytes || l.window.arrived == len(l.window.under) {
		t.Errorf("%+v", l.window)
	}
	l.hand(100+sent, 7, d)
	l.closeGot()
}

// With none unacknowledged, any number of bytes may have been sent before.
func TestByteWindowWithNothingUnderWay(t *testing.T) {
	l := newLink(t, Config{})
	l.listens(1, 7)
	l.read()
	l.window.pos += 2 * windowBytes
	d := openFile(t)
	l.hand(100, 7, d)
	if err := l.try(101, 7, d); !isErrno(err, unix.EAGAIN) || !l.Held() {
		t.Fatalf("the second: %v", err)
	}
	// Whether it was accepted is another matter.
	wantFrames(t, "answer", l.heard(handleAck))
	if l.Held() || l.window.acked != l.window.pos {
		t.Errorf("held %v: %+v", l.Held(), l.window)
	}
	l.hand(101, 7, d)
	l.hand(102, 7, d)
	// A lost one resets nothing, but is no longer under way.
	l.window.pos += windowBytes
	l.heard(handleAck)
	if !l.Held() {
		t.Error("one is under way")
	}
	wantFrames(t, "lost", l.heard(nack), handoff.Frame{Type: handoff.Reject, Seq: 102, Arg: uint32(handoff.ReasonFDLimit)})
	if l.Held() {
		t.Error("held with none under way")
	}
	l.hand(103, 7, d)
}

// What is lost is the oldest that was neither acknowledged nor lost.
func TestLostHandoffs(t *testing.T) {
	l := newLink(t, Config{})
	l.listens(1, 7)
	d := openFile(t)
	for seq := range uint64(4) {
		l.hand(100+seq, 7, d)
	}
	limit := uint32(handoff.ReasonFDLimit)
	wantFrames(t, "answers", l.heard(handleAck, nack, handleAck, accepted(3, true), nack, nack, handleAck, accepted(2, true), accepted(1, true)),
		handoff.Frame{Type: handoff.Reject, Seq: 101, Arg: limit},
		handoff.Frame{Type: handoff.Ack, Seq: 102},
		handoff.Frame{Type: handoff.Reject, Seq: 103, Arg: limit},
		handoff.Frame{Type: handoff.Ack, Seq: 100})
	if len(l.window.under) != 0 || l.window.arrived != 0 {
		t.Errorf("%+v", l.window)
	}
}

// shares has the worker ask for a shared socket and sends it.
func (l *link) shares(seq uint64, wire uint32, d handoff.FD) {
	l.Helper()
	l.heard(query(seq, `"data":1,"address":"::","port":53,"addressType":"udp6"`))
	l.send(handoff.Frame{Type: handoff.Listening, Seq: seq, Listener: wire, Data: []byte("1"),
		Flags: handoff.ListeningShared | handoff.ListeningPacket, Payload: []byte("udp\x00[::]:53")}, d)
}

// A shared socket that was lost is sent again, three times.
func TestLostSharedSocket(t *testing.T) {
	l := newLink(t, Config{})
	d := openFile(t)
	l.shares(1, 7, d)
	first := l.read()
	for range maxLost {
		wantFrames(t, "lost", l.heard(nack))
		if !l.Unsent() {
			t.Fatal("nothing is to be sent")
		}
		if err := l.Flush(); err != nil {
			t.Fatal(err)
		}
		wantLines(t, "again", l.read(), first...)
	}
	if len(l.got) != 1+maxLost || !sameFile(t, l.got[maxLost], d) {
		t.Errorf("%d descriptors", len(l.got))
	}
	wantFrames(t, "lost", l.heard(nack, nack), handoff.Frame{Type: handoff.Leave, Listener: 7})
	wantLines(t, "given up", l.read(), `{"cmd":"NODE_CLUSTER","errno":-24,"key":"0","ack":1,"data":null,"seq":4}`)
	wantFrames(t, "it never had it", l.heard(closes("7"), handleAck))
	l.closeGot()
	l.shares(2, 7, d) // it may try again
	wantFrames(t, "arrived", l.heard(nack))
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	wantFrames(t, "arrived", l.heard(handleAck, listening), handoff.Frame{Type: handoff.Ready})
	if l.Unsent() || len(l.window.under) > 0 {
		t.Errorf("%+v", l.window)
	}
}

func TestLostSharedSocketIsNotSentToWhoLeaves(t *testing.T) {
	for name, leave := range map[string]func(*link){
		"disconnect": func(l *link) { l.send(handoff.Frame{Type: handoff.Drain}, handoff.FD{}) },
		"bye":        func(l *link) { l.heard(goAway) },
	} {
		for _, after := range []bool{false, true} {
			l := newLink(t, Config{})
			l.shares(1, 7, openFile(t))
			if after {
				leave(l)
				l.heard(nack)
			} else {
				l.heard(nack)
				leave(l)
			}
			l.read()
			l.closeGot()
			if err := l.Flush(); err != nil || l.Unsent() {
				t.Errorf("%s: flush: %v", name, err)
			}
			wantLines(t, name, l.read())
			if len(l.got) > 0 {
				t.Errorf("%s: %d descriptors", name, len(l.got))
			}
		}
	}
}

// A lost shared socket waits for the byte window, and for room.
func TestLostSharedSocketWaits(t *testing.T) {
	l := newLink(t, Config{})
	d := openFile(t)
	l.listens(2, 8)
	l.shares(1, 7, d)
	l.hand(100, 8, d)
	l.window.pos += windowBytes
	l.heard(nack)
	if l.Unsent() || !l.Held() {
		t.Errorf("unsent %v, held %v", l.Unsent(), l.Held())
	}
	if err := l.Flush(); err != nil {
		t.Error(err)
	}
	l.read()
	n := l.fill()
	l.heard(handleAck)
	if !l.Unsent() || l.Held() {
		t.Errorf("unsent %v, held %v", l.Unsent(), l.Held())
	}
	if err := l.Flush(); !isErrno(err, unix.EAGAIN) {
		t.Errorf("flush: %v", err)
	}
	l.readRaw(n)
	l.closeGot()
	l.resetWindow()
	if err := l.Flush(); err != nil || l.Unsent() {
		t.Errorf("flush: %v", err)
	}
	if got := l.read(); len(got) != 1 || !strings.Contains(got[0], `"dgram.Native"`) || len(l.got) != 1 {
		t.Errorf("%q with %d descriptors", got, len(l.got))
	}
}

// A shared socket that the kernel does not take again is given up.
func TestLostSharedSocketThatCannotBeSent(t *testing.T) {
	l := newLink(t, Config{})
	l.shares(1, 7, openFile(t))
	l.read()
	l.heard(nack)
	_ = l.again[0].fd.Close()
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	wantLines(t, "given up", l.read(), `{"cmd":"NODE_CLUSTER","errno":-24,"key":"0","ack":1,"data":null,"seq":1}`)
	f, err := l.drain()
	if err != nil {
		t.Fatal(err)
	}
	wantFrames(t, "given up", f, handoff.Frame{Type: handoff.Leave, Listener: 7})
}

// Closing closes the duplicates that are under way; leakcheck counts.
func TestCloseWithSharedSocketsUnderWay(t *testing.T) {
	l := newLink(t, Config{})
	d := openFile(t)
	l.shares(1, 7, d)
	l.shares(2, 8, d)
	l.heard(nack)
	if len(l.again) != 1 || len(l.window.under) != 1 {
		t.Errorf("%d and %d", len(l.again), len(l.window.under))
	}
}
