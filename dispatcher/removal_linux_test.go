package dispatcher

import (
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// A worker dies with some acked (the answer still unread by us), some read and
// unanswered, some rejected and some unread: only the acked are gone.
func TestDeathWithEveryKindOfHandoff(t *testing.T) {
	for _, blame := range []bool{true, false} {
		s := newStepped(t, Config{Configured: true, Window: 8})
		ln := s.listen("web")
		dies := s.serving(ln)
		s.connect(ln, 4)
		s.settle()
		dies.mustGet(1, 2, 3, 4)
		s.connect(ln, 3)
		s.settle() // 5, 6, 7 unread
		dies.ack(1)
		dies.reject(1) // 2
		_ = dies.port.Close()
		other := s.serving(ln)
		// What it still said counts in the order said, whoever came first.
		s.l.remove(dies.id, Removal{Blame: blame})
		s.settle()
		other.hear()
		want := []uint32{0, 0, 0, 0, 0, 0}
		if blame {
			want = []uint32{0, 1, 1, 0, 0, 0} // 2 was rejected; 3, 4 were read
		}
		if len(other.has) != 6 {
			t.Fatalf("it got %v", other.has)
		}
		// Those that come back unread do not wait for the others to be judged.
		slices.SortFunc(other.has, func(a, b handed) int { return a.client - b.client })
		for i, h := range other.has {
			if h.client != i+2 || h.deaths != want[i] {
				t.Errorf("blame %v: client %d with %d deaths, want %d with %d", blame, h.client, h.deaths, i+2, want[i])
			}
		}
		if st := s.stats("web"); st.Acked != 1 || st.InFlight != 6 {
			t.Errorf("%+v", st)
		}
		if len(s.l.links) != 2 || s.l.links[0] != nil || len(s.l.byID) != 1 {
			t.Errorf("links %v", s.l.links)
		}
	}
}

func TestTheThirdDeathIsPoison(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	c := s.client(ln)
	s.settle()
	for range maxDeaths {
		p := s.serving(ln)
		if len(p.has) != 1 {
			t.Fatal("it got nothing")
		}
		p.die(Removal{Blame: true})
	}
	if st := s.stats("web"); st.Dropped[DropPoison] != 1 || st.Queued != 0 {
		t.Errorf("%+v", st)
	}
	s.mustEnd(c)
	s.mustHear("dropped web poison 1")
}

// Deaths that were asked for, and handoffs that nobody has read, are no signs of
// poison.
func TestDeathsThatDoNotCount(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	s.connect(ln, 1)
	for i := range 5 {
		p := s.peer()
		p.say(handoff.Frame{Type: handoff.Listen, Seq: 1, Payload: []byte("tcp\x00web")}, handoff.Frame{})
		_ = i
		s.l.remove(p.id, Removal{Blame: true})
		q := s.serving(ln)
		s.l.remove(q.id, Removal{})
	}
	if st := s.stats("web"); st.Queued != 1 {
		t.Errorf("%+v", st)
	}
}

func TestByeGivesBackWhatIsUnread(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	leaves, stays := s.serving(ln), s.serving(ln)
	s.connect(ln, 1)
	s.settle()
	leaves.mustGet(1)
	s.connect(ln, 3)
	s.settle()
	stays.mustGet(2, 4)
	stays.ack(2)
	leaves.say(handoff.Frame{Type: handoff.Bye})
	s.settle()
	s.mustHear("broke 1 BYE")
	stays.mustGet(3) // the unread one; 1 may still be served by whoever said BYE
	if st := s.stats("web"); st.InFlight != 2 {
		t.Errorf("%+v", st)
	}
	s.l.remove(leaves.id, Removal{})
	s.settle()
	stays.mustGet(1)
}

func TestDrainGivesNothingMore(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	p := s.serving(ln)
	s.connect(ln, 1)
	s.settle()
	p.mustGet(1)
	s.l.drain(p.id)
	s.l.drain(p.id)
	s.l.drain(99)
	s.connect(ln, 1)
	s.settle()
	p.mustGet()
	p.ack(1)
	p.say(handoff.Frame{Type: handoff.Closed, Arg: 1}, handoff.Frame{Type: handoff.Drained})
	s.settle()
	drains := 0
	for _, f := range p.heard {
		if f.Type == handoff.Drain {
			drains++
		}
	}
	if !s.heard("drained 1") || drains != 1 || s.stats("web").Queued != 1 {
		t.Errorf("%v, %d DRAINs, %+v", s.told, drains, s.stats("web"))
	}
	if a := s.l.copyStats().Slots[0].Active; a != 0 {
		t.Errorf("%d active", a)
	}
}

// The pool waits for the word that a worker has nothing to finish, and cannot know it by
// itself: READY may be on its way. Where the master gives out the connections it knows, and
// otherwise at least of a worker that has said nothing; any other says so itself.
func TestDrainOfOneThatIsNotReady(t *testing.T) {
	for _, c := range []struct {
		policy  Policy
		says    []handoff.Frame
		drained bool
	}{
		{SchedRR, nil, true},
		{SchedRR, []handoff.Frame{{Type: handoff.Health}}, true},
		{SchedRR, []handoff.Frame{{Type: handoff.Ready}}, false},
		{SchedNone, nil, true},
		{SchedNone, []handoff.Frame{{Type: handoff.Health}}, false},
		{SchedNone, []handoff.Frame{{Type: handoff.Ready}}, false},
	} {
		s := newStepped(t, Config{Policy: c.policy, Configured: true})
		s.listen("web")
		p := s.peer()
		if len(c.says) > 0 {
			p.say(c.says...)
			s.settle()
		}
		s.l.drain(p.id)
		s.settle()
		if got := s.heard("drained 1"); got != c.drained {
			t.Errorf("%s, after %v: drained %v", c.policy, c.says, got)
		}
		p.say(handoff.Frame{Type: handoff.Ready}, handoff.Frame{Type: handoff.Drained}) // crossed the DRAIN
		s.settle()
		if c.says == nil || c.says[0].Type != handoff.Ready {
			if s.times("drained 1") != 1 || p.k.gone {
				t.Errorf("%s, after %v: %v", c.policy, c.says, s.told)
			}
		}
	}
}

// What a removed worker's descriptor was is another's at once: its events and
// answers are nobody's.
func TestEventsOfARemovedWorkerAreNobodys(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	old := s.serving(ln)
	old.say(handoff.Frame{Type: handoff.Health})
	token := old.k.token
	s.l.remove(old.id, Removal{})
	s.l.remove(old.id, Removal{})
	successor := s.peer()
	if successor.k.idx != old.k.idx {
		t.Fatal("the place was not used again")
	}
	if s.l.linkByToken(token) != nil {
		t.Error("an old token finds the successor")
	}
	s.settle()
	if s.heard("broke") {
		t.Error(s.told)
	}
}

// A worker that reads no answer takes no descriptors of the master: the socket is lent
// when the answer is sent, and refused if it is gone by then.
func TestAnUnsentAnswerHoldsNoDescriptor(t *testing.T) {
	for _, gone := range []bool{false, true} {
		s := newStepped(t, Config{Policy: SchedNone, Configured: true})
		ln := s.listen("web")
		var f *faulty
		p := s.peerOver(func(c *handoff.Conn) handoff.Channel { f = &faulty{Conn: c}; return f })
		f.fails = unix.EAGAIN
		before := len(openDescriptors(t))
		for seq := range uint64(20) {
			p.say(handoff.Frame{Type: handoff.Listen, Seq: seq, Payload: []byte("tcp\x00web")})
		}
		s.step()
		if len(p.k.unsent) != 20 {
			t.Fatalf("%d frames wait", len(p.k.unsent))
		}
		if n := len(openDescriptors(t)); n != before {
			t.Errorf("%d descriptors, %d before", n, before)
		}
		if gone {
			s.l.startClosing(ln)
			s.until("it is closed", func() bool { return s.heard("closed") })
		}
		f.fails = 0
		s.l.writable(p.k)
		answer := p.answered(19)
		if refused := answer.Arg != 0; refused != gone {
			t.Errorf("gone %v: %+v %s", gone, answer, answer.Payload)
		}
	}
}

func openDescriptors(t *testing.T) []os.DirEntry {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return fds
}
