package dispatcher

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/dispatcher/internal/aside"
	"rrd/handoff"
)

// Deadlines of the tests below, in which a worker is late after a second.
func hangConfig() Config {
	return Config{Configured: true, RescueLimit: 10, BusyAfter: time.Second, HangTimeout: hangIn}
}

const hangIn = 4 * time.Second

// hangingHelper gives the loop one helper that reads nothing, and real ones after it.
func (s *stepped) hangingHelper() {
	s.newHelper = func() {
		end := s.addHelper()
		s.killHelper = func() { _ = end.Close() }
		s.Cleanup(func() { _ = end.Close() })
		s.newHelper = s.startHelper
	}
}

// rest runs turns until the loop would sleep, also if a helper has not answered.
func (s *stepped) rest() {
	s.Helper()
	s.step()
	for n := 0; !s.quiet(); n++ {
		if n == 2000 {
			s.Fatalf("the loop spins: %d turns and nothing left to do", n)
		}
		s.step()
	}
}

// hungRecall has a worker late with two connections that it has not read, while the
// helper hangs, and another worker that serves.
func hungRecall(t *testing.T, cfg Config) (s *stepped, ln *listener, late, other *peer) {
	s = newStepped(t, cfg)
	s.hangingHelper()
	ln = s.listen("web")
	late = s.serving(ln)
	s.connect(ln, 2)
	s.settle()
	other = s.serving(ln)
	s.run(time.Second)
	s.rest()
	if !late.k.late || !late.k.recalling.under {
		t.Fatal("no recall is under way")
	}
	return s, ln, late, other
}

// A recall that hangs harms only the worker whose channel it is.
func TestARecallThatHangs(t *testing.T) {
	s, ln, late, other := hungRecall(t, hangConfig())
	for n := range 3 {
		s.connect(ln, 1)
		s.rest()
		other.mustGet(3 + n)
		other.ack(1)
		s.rest()
	}
	if st := s.stats("web"); st.InFlight != 2 || st.Acked != 3 {
		t.Errorf("%+v", st)
	}
	// Another worker's recall has a helper of its own.
	s.connect(ln, 1)
	s.rest()
	third := s.serving(ln)
	s.run(time.Second)
	s.until("the other's is recalled", func() bool { return len(third.hear()) > 0 })
	if third.has[0].client != 6 {
		t.Errorf("recalled %v", third.has)
	}
	third.ack(1)
	s.run(hangIn - 2*time.Second)
	s.mustHear("hung 1")
	// It is killed, and what it has not answered waits until the answer is given up.
	s.l.remove(late.id, Removal{})
	s.rest()
	if st := s.stats("web"); st.InFlight != 2 {
		t.Errorf("%+v", st)
	}
	s.run(2 * time.Second)
	s.mustHear("useless 1")
	third.hear()
	if got := clientsOf(third); !slices.Equal(got, []int{1, 2}) || len(s.l.byID) != 2 {
		t.Errorf("%v, %d workers", got, len(s.l.byID))
	}
}

// Answers are read meanwhile, and a worker that has answered everything goes on when
// the recall is over.
func TestAnswersDuringARecall(t *testing.T) {
	s, ln, late, other := hungRecall(t, hangConfig())
	late.mustGet(1, 2)
	late.ack(2)
	s.rest()
	if st := s.stats("web"); st.Acked != 2 || st.InFlight != 0 {
		t.Fatalf("%+v", st)
	}
	s.connect(ln, 4)
	s.rest()
	late.mustGet()
	other.mustGet(3, 4, 5, 6)
	s.run(2 * hangIn)
	s.settle()
	if late.k.recalling.under || late.k.late {
		t.Errorf("%+v, late %v", late.k.recalling, late.k.late)
	}
}

// The recall of a worker that is not killed is tried again.
func TestARecallThatWasGivenUpIsTriedAgain(t *testing.T) {
	cfg := hangConfig()
	cfg.HangTimeout = 0
	s := newStepped(t, cfg)
	s.hangingHelper()
	ln := s.listen("web")
	late := s.serving(ln)
	s.connect(ln, 2)
	s.settle()
	other := s.serving(ln)
	s.run(time.Second)
	other.mustGet()
	s.run(asideLimitDefault)
	s.settle()
	other.mustGet(1, 2)
	if late.hear() != nil {
		t.Error("the late one has them, too")
	}
}

// A copy about which nothing is known in time counts as touched.
func TestARescueThatHangs(t *testing.T) {
	s := newStepped(t, hangConfig())
	ln := s.listen("web")
	p := s.touching(ln)
	c := s.client(ln)
	s.settle()
	p.mustGet(1)
	p.ackOnly()
	s.hangingHelper()
	_ = p.has[0].fd.Close()
	p.has = nil
	s.l.remove(p.id, Removal{})
	s.rest()
	if s.l.keptLen != 1 || s.l.removing != 1 {
		t.Fatalf("%d kept, %d are being removed", s.l.keptLen, s.l.removing)
	}
	idle := make(chan struct{})
	s.l.idle = append(s.l.idle, idle)
	s.rest()
	if isClosed(idle) {
		t.Error("idle, although a copy may still be rescued")
	}
	s.run(hangIn)
	s.mustEnd(c)
	if st := s.stats("web"); s.l.keptLen != 0 || st.Rescued != 0 || s.l.removing != 0 || !isClosed(idle) || s.l.copyStats().Slots[0].Lost != 1 {
		t.Errorf("%d kept, %d removed, %+v", s.l.keptLen, s.l.removing, st)
	}
}

// Copies that a helper is asked about count, and are not closed to make room.
func TestJudgedCopiesCountForTheLimit(t *testing.T) {
	s := newStepped(t, Config{Configured: true, RescueLimit: 2, HangTimeout: hangIn})
	ln := s.listen("web")
	p := s.touching(ln)
	s.connect(ln, 2)
	s.settle()
	p.hear()
	p.ackOnly()
	s.hangingHelper()
	s.l.remove(p.id, Removal{})
	s.rest()
	q := s.touchingWhileHung(ln)
	s.connect(ln, 2)
	s.rest()
	q.hear()
	for _, h := range q.has {
		q.say(handoff.Frame{Type: handoff.Ack, Seq: h.seq})
	}
	s.rest()
	if s.l.keptLen != 2 {
		t.Errorf("%d kept", s.l.keptLen)
	}
}

func (s *stepped) touchingWhileHung(ln *listener) *peer {
	s.Helper()
	q := s.peer()
	q.say(handoff.Frame{Type: handoff.Listen, Seq: 1, Payload: []byte(ln.network + "\x00" + ln.conf.Name)},
		handoff.Frame{Type: handoff.Ready, Flags: handoff.ReadyTouches})
	s.rest()
	q.hear()
	return q
}

// What no helper has answered is asked again by the next image.
func TestUnansweredQuestionsCrossAnUpgrade(t *testing.T) {
	t.Run("recall", func(t *testing.T) {
		s, _, late, other := hungRecall(t, hangConfig())
		s.pass(time.Second)
		s.upgrade(late, other)
		s.settle()
		other.mustGet(1, 2)
		if late.hear() != nil {
			t.Error("the late one has them, too")
		}
	})
	t.Run("removal", func(t *testing.T) {
		s := newStepped(t, hangConfig())
		ln := s.listen("web")
		p := s.touching(ln)
		s.connect(ln, 1)
		s.settle()
		p.hear()
		p.ackOnly()
		s.hangingHelper()
		s.l.remove(p.id, Removal{Blame: true})
		s.rest()
		s.pass(time.Second)
		s.upgrade()
		s.settle()
		other := s.touching(ln)
		if st := s.stats("web"); !slices.Equal(clientsOf(other), []int{1}) || st.Rescued != 1 || other.has[0].deaths != 1 || s.l.removing != 0 {
			t.Errorf("%v, %+v", clientsOf(other), st)
		}
		if s.heard("broke") {
			t.Errorf("%v", s.told)
		}
	})
}

// trim attaches a filter to a worker's end of the channel that cuts each message.
func (p *peer) trim(n uint32) {
	p.Helper()
	prog := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: n}}
	fprog := unix.SockFprog{Len: 1, Filter: &prog[0]}
	if err := unix.SetsockoptSockFprog(p.raw, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &fprog); err != nil {
		p.Fatal(err)
	}
}

// A worker that trims what it is sent is ended, and loses no connection.
func TestTrimmedMessages(t *testing.T) {
	for _, n := range []uint32{1, 20, 63, 70} {
		s := newStepped(t, hangConfig())
		ln := s.listen("web")
		p := s.serving(ln)
		s.connect(ln, 1)
		s.settle() // as it is
		p.trim(n)
		s.connect(ln, 2)
		s.settle()
		_ = unix.SetsockoptInt(p.raw, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
		s.connect(ln, 1) // behind the broken ones
		s.settle()
		other := s.serving(ln)
		s.run(time.Second)
		s.settle()
		if got := other.hear(); !slices.Contains(got, 1) || !slices.Contains(got, 4) {
			t.Errorf("cut at %d: others got %v at once, want 1 and 4 among them", n, got)
		}
		if n < handoff.FrameSize {
			s.mustHear("broke 1")
		}
		p.die(Removal{})
		other.hear()
		if st := s.stats("web"); st.InFlight != 4 || len(other.has) != 4 {
			t.Errorf("cut at %d: %+v", n, st)
		}
	}
}

// While a helper waits in accept4 the loop does not spin, and the socket is tried again
// once the answer is given up.
func TestATakeoverThatHangs(t *testing.T) {
	s, ln, second := twoSlots(t)
	a, b := s.peer(), s.peer()
	fa, fb := a.join("tcp", "web"), b.join("tcp", "web")
	defer fa.Close()
	_ = fb.Close()
	b.die(Removal{})
	for n := 0; !isReadable(second.fd) && n < 200; n++ {
		s.client(ln)
	}
	s.hangingHelper()
	hangs := s.newHelper
	s.newHelper = func() {
		hangs()
		s.newHelper = func() {} // no other one takes a client while time jumps
	}
	s.run(reportEveryTime)
	s.rest()
	a.mustGet()
	if !ln.bySlot[1].asking {
		t.Fatal("no helper accepts")
	}
	s.run(asideLimitDefault)
	s.newHelper = s.startHelper
	s.startHelper()
	s.settle()
	if len(a.hear()) == 0 {
		t.Error("nothing is accepted after the answer was given up")
	}
}

// What a helper accepts late, or for a listener that is gone by then, is not lost or not
// kept.
func TestConnectionsThatAreAcceptedLate(t *testing.T) {
	s, ln, second := twoSlots(t)
	for n := 0; !isReadable(second.fd) && n < 200; n++ {
		s.client(ln)
	}
	slot := ln.bySlot[1]
	accepted := func() *aside.Answer {
		d, errno := accept(second.fd.Num())
		if errno != 0 {
			t.Fatal(errno)
		}
		return &aside.Answer{Known: true, FDs: []handoff.FD{d}}
	}
	slot.asking = true
	s.l.accepted(ln, slot, accepted())
	if st := s.stats("web"); st.Accepted != 1 || st.Queued != 1 {
		t.Errorf("%+v", st)
	}
	for n := 0; !isReadable(second.fd) && n < 200; n++ {
		s.client(ln)
	}
	late := accepted()
	id := ln.id
	s.l.listeners[id] = nil
	s.l.accepted(ln, slot, late)
	s.l.listeners[id] = ln
	if st := s.stats("web"); st.Accepted != 1 || late.FDs[0].Valid() {
		t.Errorf("%+v, %v", st, late.FDs)
	}
}

// Closing a shared listener does not wait for a helper that hangs for longer than for
// handshakes.
func TestASharedListenerClosesInTime(t *testing.T) {
	s := newStepped(t, Config{Policy: SchedNone, Configured: true})
	ln := s.listen("web")
	s.hangingHelper()
	idle := make(chan struct{})
	s.l.shutdown(idle)
	s.rest()
	if isClosed(idle) {
		t.Error("closed before new clients are turned away")
	}
	s.pass(time.Duration(closeWait))
	s.rest()
	if !isClosed(idle) || len(ln.sockets()) > 0 {
		t.Error("still open")
	}
}

// The counts of a dead worker's connections are there once AwaitRemovals returns, also if a
// helper takes its time.
func TestAwaitRemovals(t *testing.T) {
	s, _, late, _ := hungRecall(t, hangConfig())
	s.l.remove(late.id, Removal{})
	done := make(chan error, 2)
	await := func(ctx context.Context) { done <- s.d.AwaitRemovals(ctx) } // received below
	ended, end := context.WithCancel(t.Context())
	go await(ended)
	go await(t.Context())
	s.until("both wait", func() bool { return len(s.l.judged) == 2 })
	end()
	s.until("the first one has given up", func() bool { return len(done) == 1 })
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	s.killHelper() // the next one answers
	s.until("the worker is judged", func() bool { return len(done) == 1 })
	if err := <-done; err != nil || s.l.byID[late.id] != nil {
		t.Errorf("%v, and the worker is known: %v", err, s.l.byID[late.id] != nil)
	}
	go await(t.Context())
	s.until("nothing is left to wait for", func() bool { return len(done) == 1 })
}
