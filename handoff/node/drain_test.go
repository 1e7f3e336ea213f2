package node

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// fence is the handoff that precedes a disconnect.
func fence(n int) string {
	return fmt.Sprintf(`{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"cmd":"NODE_CLUSTER","act":"newconn","key":"0","seq":%d}}`, n)
}

func disconnectLine(n int) string {
	return fmt.Sprintf(`{"cmd":"NODE_CLUSTER","act":"disconnect","seq":%d}`, n)
}

// A worker is told to disconnect when it has answered every handoff, and then had
// a turn of its event loop.
func TestDrainInOrder(t *testing.T) {
	for name, after := range map[string]string{"refused": accepted(3, false), "lost": nack, "even taken": accepted(3, true)} {
		t.Run(name, func(t *testing.T) {
			l := newLink(t, Config{})
			l.listens(1, 7)
			d := openFile(t)
			l.hand(100, 7, d)
			l.hand(101, 7, d)
			l.read()
			l.send(handoff.Frame{Type: handoff.Drain}, handoff.FD{})
			l.heard(handleAck, accepted(1, true), handleAck)
			wantLines(t, "one is still to be answered", l.read())
			wantFrames(t, "the other", l.heard(accepted(2, true)), handoff.Frame{Type: handoff.Ack, Seq: 101})
			wantLines(t, "fence", l.read(), fence(3))
			l.closeGot()
			if name != "lost" {
				l.heard(handleAck)
				wantLines(t, "it has only arrived", l.read())
			}
			wantFrames(t, "nobody else's business", l.heard(after))
			wantLines(t, "disconnect", l.read(), disconnectLine(4))
			wantFrames(t, "once", l.heard(after, handleAck))
			wantLines(t, "once", l.read())
		})
	}
}

func TestDrainOfAnIdleWorker(t *testing.T) {
	l := newLink(t, Config{})
	l.send(handoff.Frame{Type: handoff.Drain}, handoff.FD{})
	wantLines(t, "fence", l.read(), fence(0))
	l.closeGot()
	l.heard(handleAck, accepted(0, false))
	wantLines(t, "disconnect", l.read(), disconnectLine(1))
}

// A channel without room is waited for, as with everything else.
func TestDrainOfAFullChannel(t *testing.T) {
	l := newLink(t, Config{})
	n := l.fill()
	l.send(handoff.Frame{Type: handoff.Drain}, handoff.FD{})
	if !l.Unsent() {
		t.Fatal("nobody is told that something is to be sent")
	}
	if err := l.Flush(); !isErrno(err, unix.EAGAIN) {
		t.Errorf("flush: %v", err)
	}
	l.readRaw(n)
	l.closeGot()
	if err := l.Flush(); err != nil || l.Unsent() {
		t.Errorf("flush: %v, unsent %v", err, l.Unsent())
	}
	wantLines(t, "fence", l.read(), fence(0))
	l.closeGot()
}

// One that is leaving by itself gets no handle any more, not even the fence.
func TestDrainOfOneThatLeaves(t *testing.T) {
	l := newLink(t, Config{})
	l.heard(goAway)
	l.read()
	l.send(handoff.Frame{Type: handoff.Drain}, handoff.FD{})
	wantLines(t, "disconnect alone", l.read(), disconnectLine(1))
}

// Its farewell is answered when every handle that was sent before has arrived.
func TestFarewellWaitsForHandles(t *testing.T) {
	for name, last := range map[string]string{"arrived": handleAck, "lost": nack} {
		t.Run(name, func(t *testing.T) {
			l := newLink(t, Config{})
			l.listens(1, 7)
			d := openFile(t)
			l.hand(100, 7, d)
			l.hand(101, 7, d)
			l.read()
			l.closeGot()
			wantFrames(t, "bye", l.heard(goAway), handoff.Frame{Type: handoff.Bye})
			l.heard(handleAck)
			wantLines(t, "one is on its way", l.read())
			l.heard(last)
			wantLines(t, "farewell", l.read(), `{"cmd":"NODE_CLUSTER","ack":9,"seq":3}`)
		})
	}
}
