package dispatcher

import (
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// touching adds a ready worker that promises to say TOUCHED.
func (s *stepped) touching(ln *listener) *peer {
	s.Helper()
	p := s.peer()
	p.ask(1, ln.network, ln.conf.Name, 0)
	p.say(handoff.Frame{Type: handoff.Ready, Flags: handoff.ReadyTouches})
	s.settle()
	p.hear()
	return p
}

// ackOnly acks without closing: the worker has the connection open.
func (p *peer) ackOnly() {
	p.Helper()
	for _, h := range p.has {
		p.say(handoff.Frame{Type: handoff.Ack, Seq: h.seq})
	}
	p.settle()
}

func TestWhatADeadWorkerDidNotTouchIsRescued(t *testing.T) {
	for _, tt := range []struct {
		name   string
		client func(net.Conn) // before
		worker func(h handed) // after the ack
		says   handoff.Type   // 0: nothing
		want   bool           // rescued
	}{
		{name: "untouched", want: true},
		{name: "half closed", client: func(c net.Conn) { _ = c.(*net.TCPConn).CloseWrite() }, want: true},
		{name: "a byte was read", worker: func(h handed) {
			var b [1]byte
			_, _ = unix.Read(h.fd.Num(), b[:])
		}},
		{name: "a byte was written", worker: func(h handed) { _, _ = unix.Write(h.fd.Num(), []byte("x")) }},
		{name: "shut down", worker: func(h handed) { _ = unix.Shutdown(h.fd.Num(), unix.SHUT_RDWR) }},
		{name: "said to be touched", says: handoff.Touched},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStepped(t, Config{Configured: true, RescueLimit: 10})
			ln := s.listen("web")
			p := s.touching(ln)
			c := s.client(ln)
			if tt.client != nil {
				tt.client(c)
			}
			s.settle()
			p.mustGet(1)
			p.ackOnly()
			if tt.worker != nil {
				tt.worker(p.has[0])
			}
			if tt.says != 0 {
				p.say(handoff.Frame{Type: tt.says, Seq: p.has[0].seq})
				s.settle()
				if s.l.keptLen != 0 {
					t.Error("the copy is still kept")
				}
			}
			p.die(Removal{Blame: true})
			other := s.touching(ln)
			st := s.stats("web")
			if got := slices.Equal(clientsOf(other), []int{1}); got != tt.want || (st.Rescued == 1) != tt.want || s.l.keptLen != 0 {
				t.Errorf("rescued: %v, want %v; %d kept; %+v", got, tt.want, s.l.keptLen, st)
			}
			if tt.want && other.has[0].deaths != 1 {
				t.Errorf("%d deaths", other.has[0].deaths)
			}
		})
	}
}

// What a dead worker said last and nobody had read yet counts: it may be all that tells
// of a descriptor that it has passed on.
func TestTouchedUnreadAtDeath(t *testing.T) {
	for _, ackUnread := range []bool{false, true} {
		s := newStepped(t, Config{Configured: true, RescueLimit: 10})
		ln := s.listen("web")
		p := s.touching(ln)
		s.connect(ln, 1)
		s.settle()
		p.mustGet(1)
		seq := p.has[0].seq
		touched := handoff.Frame{Type: handoff.Touched, Seq: seq}
		if ackUnread {
			p.say(handoff.Frame{Type: handoff.Ack, Seq: seq}, touched)
		} else {
			p.ackOnly()
			p.say(touched)
		}
		p.die(Removal{}) // no turn in between
		other := s.touching(ln)
		if st := s.stats("web"); len(other.has) > 0 || st.Rescued > 0 {
			t.Errorf("another worker has %v, rescued %d", clientsOf(other), st.Rescued)
		}
		s.lawful()
	}
}

func TestClosedUnreadAtDeath(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	p := s.serving(ln)
	s.connect(ln, 2)
	s.settle()
	p.mustGet(1, 2)
	p.ackOnly()
	p.say(handoff.Frame{Type: handoff.Closed, Arg: 1}, handoff.Frame{Type: handoff.Closed, Arg: 7})
	k := p.k
	p.die(Removal{})
	if k.stats.Lost != 0 {
		t.Errorf("%d lost", k.stats.Lost)
	}
}

func clientsOf(p *peer) []int {
	var out []int
	for _, h := range p.has {
		out = append(out, h.client)
	}
	return out
}

func TestTheOldestCopiesGoFirst(t *testing.T) {
	s := newStepped(t, Config{Configured: true, RescueLimit: 2})
	ln := s.listen("web")
	p := s.touching(ln)
	s.connect(ln, 4)
	s.settle()
	p.mustGet(1, 2, 3, 4)
	p.ackOnly()
	if s.l.keptLen != 2 {
		t.Errorf("%d copies kept", s.l.keptLen)
	}
	// A late TOUCHED of one that is kept no longer is no offence, an invented one
	// neither; another worker's says nothing.
	other := s.touching(ln)
	other.say(handoff.Frame{Type: handoff.Touched, Seq: p.has[3].seq})
	p.say(handoff.Frame{Type: handoff.Touched, Seq: p.has[0].seq}, handoff.Frame{Type: handoff.Touched, Seq: 12345})
	s.settle()
	if s.heard("broke") || s.l.keptLen != 2 {
		t.Errorf("%v, %d kept", s.told, s.l.keptLen)
	}
	p.die(Removal{})
	other.mustGet(3, 4)
}

func TestNoCopyIsKeptWithoutThePromise(t *testing.T) {
	for _, limit := range []int{0, 10} {
		s := newStepped(t, Config{Configured: true, RescueLimit: limit})
		ln := s.listen("web")
		p := s.serving(ln)
		s.connect(ln, 1)
		s.settle()
		p.mustGet(1)
		p.ackOnly()
		if s.l.keptLen != 0 {
			t.Errorf("limit %d: %d kept", limit, s.l.keptLen)
		}
		if f := p.last(handoff.Hello); f == nil || (f.Flags&handoff.HelloTouches != 0) != (limit > 0) {
			t.Errorf("limit %d: HELLO %+v", limit, f)
		}
	}
}

func TestHeartbeat(t *testing.T) {
	const hang = 20 * time.Minute
	s := newStepped(t, Config{Configured: true, HangTimeout: hang})
	s.l.beatAt = s.l.clock.now() + s.l.beatEvery()
	ln := s.listen("web")
	silent, speaks := s.serving(ln), s.serving(ln)
	mute := s.peer() // has never spoken: not a native one, perhaps
	beats := func(n int) {
		for range n {
			s.pass(hang / beatsPerHang)
			s.step()
			speaks.hear()
			if f := speaks.last(handoff.Ping); f != nil && speaks.k.pinged != 0 {
				speaks.say(handoff.Frame{Type: handoff.Pong, Seq: f.Seq})
				s.step()
			}
		}
	}
	beats(beatsPerHang)
	if s.heard("hung") {
		t.Fatalf("too early: %v", s.told)
	}
	beats(2)
	s.mustHear("hung 1")
	beats(5)
	if s.times("hung") != 1 {
		t.Error(s.told)
	}
	silent.hear()
	if silent.last(handoff.Ping) == nil || mute.k.pinged != 0 {
		t.Errorf("pinged: silent %v, mute %v", silent.heard, mute.k.pinged)
	}
	speaks.say(handoff.Frame{Type: handoff.Pong, Seq: 999})
	s.settle()
	s.mustHear("broke 2 PONG without its PING")
}

func TestAnUnhealthyWorkerIsOfferedNothing(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	p := s.serving(ln)
	p.say(handoff.Frame{Type: handoff.Health, Arg: 1})
	s.settle()
	s.connect(ln, 1)
	s.settle()
	p.mustGet()
	p.say(handoff.Frame{Type: handoff.Health})
	s.settle()
	p.mustGet(1)
}

func TestHealthIsToldNowAndThen(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	p := s.serving(s.listen("web"))
	for i := range uint32(21) {
		p.say(handoff.Frame{Type: handoff.Health, Arg: 1 - i%2})
		s.step()
	}
	if n := s.times("health 1"); n != 1 || !p.k.unhealthy {
		t.Errorf("told %d times, unhealthy %v", n, p.k.unhealthy)
	}
	p.say(handoff.Frame{Type: handoff.Health})
	s.step()
	s.pass(time.Duration(healthEvery))
	s.settle()
	s.mustHear("health 1 true")
	if n := s.times("health 1"); n != 2 {
		t.Errorf("told %d times: %v", n, s.told)
	}
}

func TestAtMostSoManyActiveConnections(t *testing.T) {
	s := newStepped(t, Config{Configured: true, MaxActive: 3})
	ln := s.listen("web")
	p := s.serving(ln)
	s.connect(ln, 8)
	total := 0
	for range 4 {
		s.settle()
		total += len(p.hear())
		if len(p.has) > 0 {
			p.ack(len(p.has))
		}
	}
	if a := p.k.active(); a > 3 || total < 3 {
		t.Errorf("%d active, %d handed over", a, total)
	}
	p.say(handoff.Frame{Type: handoff.Closed, Arg: 2})
	s.settle()
	if n := len(p.hear()); n == 0 || n > 2 {
		t.Errorf("%d handed over after 2 were closed", n)
	}
}
