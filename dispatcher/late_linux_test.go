package dispatcher

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// lateIn is long, so that only pass makes anybody late.
const lateIn = time.Hour

func lateConfig() Config { return Config{Configured: true, BusyAfter: lateIn, HangTimeout: 2 * lateIn} }

func TestALateWorkersUnreadGoElsewhere(t *testing.T) {
	s := newStepped(t, lateConfig())
	ln := s.listen("web")
	late := s.serving(ln)
	s.connect(ln, 4)
	s.settle()
	other := s.serving(ln)
	s.connect(ln, 1)
	s.settle()
	other.mustGet(5)
	other.ack(1)
	s.settle()

	s.pass(lateIn)
	s.settle()
	other.mustGet(1, 2, 3, 4) // all unread, in order
	if late.hear() != nil || late.last(handoff.Ping) == nil {
		t.Errorf("the late one got %v and %v, want a PING", late.has, late.heard)
	}
	st := s.l.copyStats()
	if !st.Processes[0].Late || st.Slots[0].Failures[FailAckTimeout] != 4 || st.Redispatches[RedispatchRecalled] != 4 {
		t.Errorf("%+v %v", st.Slots[0], st.Redispatches)
	}
	s.connect(ln, 1)
	other.ack(4)
	s.settle()
	other.mustGet(6) // and the late one nothing, until it speaks
	other.ack(1)

	late.say(handoff.Frame{Type: handoff.Pong, Seq: late.last(handoff.Ping).Seq})
	s.settle()
	s.connect(ln, 2)
	s.settle()
	other.mustGet(7) // free longer
	late.mustGet(8)
	if s.heard("hung") || s.heard("broke") {
		t.Error(s.told)
	}
}

func TestALateWorkerKeepsWhatItHasRead(t *testing.T) {
	s := newStepped(t, lateConfig())
	ln := s.listen("web")
	late := s.serving(ln)
	s.connect(ln, 2)
	s.settle()
	late.mustGet(1, 2) // read
	s.connect(ln, 2)
	s.settle() // 3, 4 unread
	other := s.serving(ln)
	s.pass(lateIn)
	s.settle()
	other.mustGet(3, 4)
	s.pass(lateIn)
	s.step()
	s.mustHear("hung 1")
	if other.mustGet(); s.times("hung") != 1 || s.stats("web").InFlight != 4 {
		t.Errorf("%v, %+v", s.told, s.stats("web"))
	}
	// It wakes up after all, and only its own answers count.
	late.ack(2)
	s.settle()
	if late.k.late || s.heard("broke") {
		t.Errorf("late %v, %v", late.k.late, s.told)
	}
	s.connect(ln, 1)
	s.settle()
	late.mustGet(5)
}

func TestALateWorkerDies(t *testing.T) {
	s := newStepped(t, lateConfig())
	ln := s.listen("web")
	late := s.serving(ln)
	s.connect(ln, 3)
	s.settle()
	late.mustGet(1, 2, 3)
	s.pass(lateIn)
	s.settle()
	other := s.serving(ln)
	other.mustGet()
	s.l.remove(late.id, Removal{Blame: true})
	s.settle()
	other.mustGet(1, 2, 3)
	if other.has[0].deaths != 1 || len(s.l.late) != 0 {
		t.Errorf("deaths %d, %d late", other.has[0].deaths, len(s.l.late))
	}
}

// An answer that lies in the channel when the deadline comes is in time.
func TestAnswersAreReadBeforeAnybodyIsJudged(t *testing.T) {
	s := newStepped(t, lateConfig())
	ln := s.listen("web")
	p := s.serving(ln)
	s.connect(ln, 4)
	s.settle()
	p.mustGet(1, 2, 3, 4)
	s.pass(lateIn)
	for len(p.has) > 0 { // more messages than one turn reads
		for range messagesPerTurn {
			p.say(handoff.Frame{Type: handoff.Health})
		}
		p.ack(1)
	}
	s.step()
	if p.k.late || p.k.acks != 4 {
		t.Errorf("late %v after %d acks", p.k.late, p.k.acks)
	}
}

// A worker that talks without end is not judged for ever.
func TestATalkativeWorkerIsStillLate(t *testing.T) {
	s := newStepped(t, lateConfig())
	ln := s.listen("web")
	p := s.peerOver(func(c *handoff.Conn) handoff.Channel { return &babbler{Conn: c} }).ready(ln)
	b := p.k.ch.(*babbler)
	s.connect(ln, 1)
	s.settle()
	b.babbles = true
	s.pass(lateIn)
	s.step()
	if !p.k.late {
		t.Error("not late")
	}
	b.babbles = false
	b.said = 0
	b.babbles = true
	s.l.remove(p.id, Removal{})
	if b.said > 2*allMessages {
		t.Errorf("%d messages read of one who is dead", b.said)
	}
}

// babbler always has one more message.
type babbler struct {
	*handoff.Conn
	babbles bool
	said    int
	more    bool
}

func (b *babbler) Receive() error {
	if !b.babbles {
		return b.Conn.Receive()
	}
	b.said++
	b.more = true
	return nil
}

func (b *babbler) Next(f *handoff.Frame) (bool, error) {
	if !b.babbles {
		return b.Conn.Next(f)
	}
	more := b.more
	b.more = false
	*f = handoff.Frame{Type: handoff.Health}
	return more, nil
}

func TestWhatRecoversIsLateAgainInTime(t *testing.T) {
	s := newStepped(t, lateConfig())
	ln := s.listen("web")
	p, other := s.serving(ln), s.serving(ln)
	s.connect(ln, 1) // to p
	s.settle()
	p.mustGet(1)
	s.pass(lateIn / 2)
	s.connect(ln, 2) // 2 to other, 3 to one of them half an hour later
	s.settle()
	p.mustGet(3)
	other.mustGet(2)
	s.pass(lateIn / 2)
	s.settle() // p is late with 1; 3 is not overdue
	if !p.k.late || other.k.late {
		t.Fatalf("late: %v %v", p.k.late, other.k.late)
	}
	p.ack(1)
	s.connect(ln, 1)
	s.settle()
	if p.k.late {
		t.Fatal("it owes nothing overdue and is still late")
	}
	s.pass(lateIn / 2)
	s.settle()
	if !p.k.late || !other.k.late {
		t.Errorf("late: %v %v, want both", p.k.late, other.k.late)
	}
}

// What a recovered worker still owes is older than what others were sent since.
func TestWhatRecoversKeepsItsDeadline(t *testing.T) {
	s := newStepped(t, lateConfig())
	ln := s.listen("web")
	p := s.serving(ln)
	s.connect(ln, 1)
	s.settle()
	s.pass(lateIn / 2)
	s.connect(ln, 1)
	s.settle()
	p.mustGet(1, 2)
	other := s.serving(ln)
	s.pass(lateIn / 4)
	s.connect(ln, 1)
	s.settle()
	other.mustGet(3)
	s.pass(lateIn / 4)
	s.settle()
	p.ack(1)
	s.settle()
	if p.k.late {
		t.Fatal("still late")
	}
	s.pass(lateIn / 2)
	s.settle()
	if !p.k.late || other.k.late {
		t.Errorf("late: %v %v, want only the first", p.k.late, other.k.late)
	}
}

func TestADrainingWorkerIsRecalledToo(t *testing.T) {
	s := newStepped(t, lateConfig())
	ln := s.listen("web")
	p := s.serving(ln)
	s.connect(ln, 2)
	s.settle()
	s.l.drain(p.id)
	s.pass(lateIn)
	s.settle()
	if s.stats("web").Queued != 2 {
		t.Errorf("%+v", s.stats("web"))
	}
	// The DRAIN was behind the handoffs: it has been said again.
	if p.hear(); p.last(handoff.Drain) == nil {
		t.Errorf("heard %v", p.heard)
	}
	p.say(handoff.Frame{Type: handoff.Drained}, handoff.Frame{Type: handoff.Drained})
	s.settle()
	if s.times("drained 1") != 1 {
		t.Error(s.told)
	}
}

// What held a channel may be read by who judges a late worker.
func TestHeldChannelReadWhileJudging(t *testing.T) {
	s := newStepped(t, Config{Configured: true, BusyAfter: 50 * time.Millisecond, Window: 1})
	ln := s.listen("web")
	p, d := s.speaking(handoff.Traits{HangsUp: true, NoPong: true, Untouched: true})
	p.ready(ln)
	s.connect(ln, 1)
	s.settle()
	p.mustGet(1)
	d.fails = unix.EAGAIN // held
	s.l.setFull(p.k, true)
	s.step()
	s.pass(60 * time.Millisecond)
	// The answer arrives between the wait and the judgement: becomeLate reads it.
	p.ack(1)
	d.fails = 0
	s.l.now = s.l.clock.now()
	s.l.deadlines()
	s.settle()
	s.connect(ln, 1)
	s.settle()
	if len(p.hear()) == 0 {
		t.Errorf("out of rotation for good: full %v, held %v, late %v", p.k.full, p.k.held(), p.k.late)
	}
}
