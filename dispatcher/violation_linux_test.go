package dispatcher

import (
	"bytes"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// Each is said by a worker that owes the answers to connections 1 and 2, of
// which it has read none.
func TestAViolationEndsOnlyThatWorker(t *testing.T) {
	frame := func(ty handoff.Type, seq uint64) []byte {
		f := handoff.Frame{Type: ty, Seq: seq}
		return f.Append(nil)
	}
	for _, tt := range []struct {
		name string
		why  string
		say  func(p *peer, other *peer) []byte
	}{
		{"HELLO", "HELLO is not legal", func(*peer, *peer) []byte { return frame(handoff.Hello, 0) }},
		{"HANDOFF", "HANDOFF is not legal", func(*peer, *peer) []byte { return frame(handoff.Handoff, 1) }},
		{"LISTENING", "LISTENING is not legal", func(*peer, *peer) []byte { return frame(handoff.Listening, 1) }},
		{"DRAIN", "DRAIN is not legal", func(*peer, *peer) []byte { return frame(handoff.Drain, 0) }},
		{"PING", "PING is not legal", func(*peer, *peer) []byte { return frame(handoff.Ping, 0) }},
		{"an unknown frame", "UNKNOWN is not legal", func(*peer, *peer) []byte { return frame(99, 0) }},
		{"DRAINED before DRAIN", "DRAINED is not legal while serving", func(*peer, *peer) []byte { return frame(handoff.Drained, 0) }},
		{"READY twice", "READY is not legal while serving", func(*peer, *peer) []byte { return frame(handoff.Ready, 0) }},
		{"ACK of nothing", "ACK of what is not in flight", func(*peer, *peer) []byte { return frame(handoff.Ack, 0) }},
		{"ACK of an invented number", "ACK of what", func(*peer, *peer) []byte { return frame(handoff.Ack, 1<<63|5) }},
		{"ACK of another worker's", "ACK of what", func(_, o *peer) []byte { return frame(handoff.Ack, o.has[0].seq) }},
		{"REJECT of another worker's", "REJECT of what", func(_, o *peer) []byte { return frame(handoff.Reject, o.has[0].seq) }},
		{"REJECT of nothing", "REJECT of what", func(*peer, *peer) []byte { return frame(handoff.Reject, 7) }},
		{"CLOSED of more than is open", "CLOSED of more", func(*peer, *peer) []byte {
			f := handoff.Frame{Type: handoff.Closed, Arg: 1}
			return f.Append(nil)
		}},
		{"ASK_TICKETS without an offer", "ASK_TICKETS without an offer", func(*peer, *peer) []byte { return frame(handoff.AskTickets, 0) }},
		{"TICKETS", "TICKETS is not legal", func(*peer, *peer) []byte { return frame(handoff.Tickets, 1) }},
		{"no magic", handoff.ErrMagic.Error(), func(*peer, *peer) []byte { return make([]byte, handoff.FrameSize) }},
		{"half a frame", handoff.ErrLength.Error(), func(*peer, *peer) []byte { return frame(handoff.Health, 0)[:40] }},
		{"a frame and a half", handoff.ErrLength.Error(), func(*peer, *peer) []byte {
			return append(frame(handoff.Health, 0), make([]byte, 10)...)
		}},
		{"17 frames", handoff.ErrLength.Error(), func(*peer, *peer) []byte { return bytes.Repeat(frame(handoff.Health, 0), 17) }},
		{"too long", handoff.ErrTruncated.Error(), func(*peer, *peer) []byte { return make([]byte, handoff.MaxMessage+1) }},
		{"a payload where none belongs", handoff.ErrPayload.Error(), func(*peer, *peer) []byte {
			f := handoff.Frame{Type: handoff.Health, Payload: []byte("x")}
			return f.Append(nil)
		}},
	} {
		t.Run(strings.ReplaceAll(tt.name, " ", "-"), func(t *testing.T) {
			s := newStepped(t, Config{Configured: true})
			ln := s.listen("web")
			bad, good := s.serving(ln), s.serving(ln)
			s.connect(ln, 4)
			s.settle()
			good.mustGet(2, 4)
			bad.send(tt.say(bad, good))
			s.settle()
			s.mustHear("broke 1 " + tt.why)
			good.mustGet(1, 3) // it had not read them
			good.ack(4)
			s.settle()
			s.l.remove(bad.id, Removal{Blame: true})
			s.connect(ln, 1)
			s.settle()
			good.mustGet(5)
			if s.times("broke") != 1 || bad.k.stats.ProtocolErrors != 1 || good.k.stats.ProtocolErrors != 0 {
				t.Errorf("%v %+v", s.told, bad.k.stats)
			}
		})
	}
}

func TestIllegalBeforeReady(t *testing.T) {
	for _, ty := range []handoff.Type{handoff.Ack, handoff.Reject, handoff.Again, handoff.Closed, handoff.Touched, handoff.Drained} {
		t.Run(ty.String(), func(t *testing.T) {
			s := newStepped(t, Config{Configured: true})
			p := s.peer()
			p.say(handoff.Frame{Type: ty})
			s.settle()
			s.mustHear("broke 1 " + ty.String() + " is not legal while starting")
			if s.heard("spoke") {
				t.Error("what is not legal makes no native worker")
			}
		})
	}
}

func TestReadyMayCrossDrainButOnce(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	p := s.peer()
	s.step()
	s.l.drain(p.id)
	p.say(handoff.Frame{Type: handoff.Ready})
	s.settle()
	if s.heard("broke") {
		t.Fatal(s.told)
	}
	p.say(handoff.Frame{Type: handoff.Ready})
	s.settle()
	s.mustHear("broke 1 READY twice")
}

func TestAnEmptyMessageIsNoEnd(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	p := s.peer()
	s.step()
	if err := unix.Send(p.raw, nil, 0); err != nil {
		t.Fatal(err)
	}
	s.settle()
	s.mustHear("broke 1 " + handoff.ErrEmpty.Error())
}

func TestClosingTheChannelIsToldWhoeverSeesItFirst(t *testing.T) {
	for _, sending := range []bool{false, true} {
		s := newStepped(t, Config{Configured: true})
		ln := s.listen("web")
		p := s.serving(ln)
		other := s.serving(ln)
		s.connect(ln, 1)
		s.settle() // 1 is unread
		if err := unix.Shutdown(p.raw, unix.SHUT_RDWR); err != nil {
			t.Fatal(err)
		}
		if sending { // before the end is read
			s.l.drain(p.id)
		}
		s.settle()
		s.mustHear("broke 1 channel closed")
		other.mustGet(1)
		if s.times("broke") != 1 {
			t.Error(s.told)
		}
	}
}

// The answers behind a violation, in its message and in later ones, are true all
// the same: a byte may have been served.
func TestAcksBehindAViolationCount(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	bad := s.serving(ln)
	s.connect(ln, 3)
	s.settle()
	bad.mustGet(1, 2, 3)
	bad.say(handoff.Frame{Type: handoff.Hello}, handoff.Frame{Type: handoff.Ack, Seq: bad.has[0].seq})
	bad.send([]byte("nonsense"))
	bad.say(handoff.Frame{Type: handoff.Ack, Seq: bad.has[1].seq})
	s.settle()
	good := s.serving(ln)
	if got := s.stats("web"); got.Acked != 0 || got.InFlight != 3 {
		t.Errorf("before it is dead: %+v", got)
	}
	s.l.remove(bad.id, Removal{})
	s.settle()
	good.mustGet(3)
	if got := s.stats("web"); got.Acked != 2 {
		t.Errorf("%+v", got)
	}
}

func TestAReplayedAckIsAViolation(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	p := s.serving(ln)
	s.connect(ln, 1)
	s.settle()
	p.mustGet(1)
	ack := handoff.Frame{Type: handoff.Ack, Seq: p.has[0].seq}
	p.ack(1)
	s.connect(ln, 1) // takes the same entry of the table
	s.settle()
	p.mustGet(2)
	p.say(ack)
	s.settle()
	s.mustHear("broke 1 ACK of what is not in flight")
	if got := s.stats("web"); got.Acked != 1 || got.InFlight != 1 {
		t.Errorf("%+v", got)
	}
}

// Volume is no offence: at most so many messages a turn are read.
func TestAFloodOnlyWaitsForTheNextTurn(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	p := s.serving(ln)
	for range messagesPerTurn {
		p.say(handoff.Frame{Type: handoff.Health})
	}
	p.say(handoff.Frame{Type: handoff.Bye})
	s.step()
	if s.heard("broke") {
		t.Fatal("more than its share was read in one turn")
	}
	s.settle()
	s.mustHear("broke 1 BYE")
}
