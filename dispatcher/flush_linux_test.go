package dispatcher

import (
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// A send that fails has sent nothing: all of it is back in its place and goes to
// who can be sent to.
func TestFlushFailsAndAllGoBackInOrder(t *testing.T) {
	for _, tt := range []struct {
		err   syscall.Errno
		fail  Failure
		broke string
	}{
		{unix.EAGAIN, FailWouldBlock, ""},
		{unix.EPIPE, FailPeerClosed, "broke 1 channel closed"},
		{unix.ECONNRESET, FailPeerClosed, "broke 1 channel closed"},
		{unix.EBADF, FailOther, "broke 1 send: "},
	} {
		t.Run(tt.err.Error(), func(t *testing.T) {
			s := newStepped(t, Config{Configured: true, Window: 20})
			ln := s.listen("web")
			var f *faulty
			a := s.peerOver(func(c *handoff.Conn) handoff.Channel { f = &faulty{Conn: c}; return f }).ready(ln)
			f.fails = tt.err
			s.connect(ln, 40)
			s.step() // a channel that is full and can be written to is only a fake's
			if st := s.stats("web"); st.Queued != 40 || st.InFlight != 0 {
				t.Fatalf("%+v", st)
			}
			if n := a.k.stats.Failures[tt.fail]; n != 16 || f.tries != 1 {
				t.Errorf("%d failures in %d tries, want 16 in one", n, f.tries)
			}
			if tt.broke == "" && s.heard("broke") || tt.broke != "" && s.times(tt.broke) != 1 {
				t.Error(s.told)
			}
			b := s.serving(ln)
			want := make([]int, 20)
			for i := range want {
				want[i] = i + 1
			}
			var got []int
			for _, h := range b.has {
				got = append(got, h.client)
			}
			if tt.err == unix.EAGAIN {
				want = got // it was offered some between those
			}
			if !slices.Equal(got, want) || len(got) != 20 {
				t.Errorf("the next worker got %v", got)
			}
		})
	}
}

func TestAFullChannelGoesOnWhenItCanBeWrittenTo(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	var f *faulty
	p := s.peerOver(func(c *handoff.Conn) handoff.Channel { f = &faulty{Conn: c}; return f }).ready(ln)
	f.fails = unix.EAGAIN
	s.connect(ln, 2)
	s.step()
	s.l.say(p.k, handoff.Frame{Type: handoff.Ping, Seq: 1}, handoff.FD{})
	if !p.k.full || len(p.k.unsent) != 1 {
		t.Fatalf("full %v, %d frames wait", p.k.full, len(p.k.unsent))
	}
	f.fails = 0
	s.settle()
	p.mustGet(1, 2)
	if p.last(handoff.Ping) == nil {
		t.Error("the frame that found the channel full was not said")
	}
}

func TestTooManyDescriptorsUnderWay(t *testing.T) {
	for _, window := range []int{4, 40} {
		s := newStepped(t, Config{Configured: true, Window: window})
		ln := s.listen("web")
		var f *faulty
		p := s.peerOver(func(c *handoff.Conn) handoff.Channel { f = &faulty{Conn: c}; return f }).ready(ln)
		s.connect(ln, 1)
		s.settle()
		p.mustGet(1)
		f.fails = unix.ETOOMANYREFS
		s.connect(ln, 60)
		s.step()
		if s.l.refsUntil == 0 || p.k.full || f.tries > 2 {
			t.Fatalf("window %d: refsUntil %d, full %v, %d tries", window, s.l.refsUntil, p.k.full, f.tries)
		}
		if st := s.stats("web"); st.Queued != 60 {
			t.Errorf("%+v", st)
		}
		f.fails = 0
		s.pass(10 * time.Millisecond)
		s.settle()
		if got := p.hear(); len(got) == 0 || got[0] != 2 {
			t.Errorf("after 10 ms it got %v", got)
		}
		// An ack frees descriptors: no need to wait for the rest of a pause.
		s.l.refsUntil = s.l.clock.now() + int64(aLongTime)
		p.ack(1)
		s.step()
		if s.l.refsUntil != 0 {
			t.Error("an ack does not end the pause")
		}
	}
}

// The descriptor of a shared listener meets the same limit. The channel can be
// written to all the while, so watching that would spin.
func TestTooManyDescriptorsUnderWayForAFrame(t *testing.T) {
	s := newStepped(t, Config{Configured: true, Policy: SchedNone})
	s.listen("web")
	var f *faulty
	p := s.peerOver(func(c *handoff.Conn) handoff.Channel { f = &faulty{Conn: c}; return f })
	f.fails = unix.ETOOMANYREFS
	for i := range 2 {
		p.say(handoff.Frame{Type: handoff.Listen, Seq: uint64(i), Payload: []byte("tcp\x00web")})
		s.step()
	}
	for range 3 {
		if !s.quiet() {
			t.Fatal("the loop spins")
		}
		s.pass(10 * time.Millisecond)
		s.step()
	}
	if f.tries > 8 {
		t.Errorf("%d tries in 30 ms", f.tries)
	}
	f.fails = 0
	s.pass(10 * time.Millisecond)
	s.settle()
	p.hear()
	if n := len(p.heard); n != 3 || p.k.full {
		t.Errorf("heard %d frames, full %v", n, p.k.full)
	}
}
