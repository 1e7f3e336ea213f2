package dispatcher

import (
	"fmt"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// closedName is a name whose asked listener has had n connections and has closed.
func (s *stepped) closedName(name string, n uint64) *nameStats {
	st := s.l.nameStats(name)
	st.Asked = true
	st.Accepted += n
	st.Acked += n - 1
	st.Dropped[DropPoison]++
	s.l.forgetName(st)
	return st
}

// A worker that asks for ever new addresses makes no ever new series, and no count is lost.
func TestNamesOfClosedListenersAreFolded(t *testing.T) {
	s := newStepped(t, Config{})
	kept := s.l.nameStats("configured")
	kept.Accepted, kept.Acked = 5, 5
	s.l.forgetName(kept)
	const many = 10 * keptNames
	for i := range many {
		s.closedName(fmt.Sprint("asked ", i), 3)
		s.lawful()
	}
	st := s.l.copyStats()
	if len(st.Listeners) != keptNames+2 {
		t.Errorf("%d names, want the last %d, the configured one and %s", len(st.Listeners), keptNames, ClosedListeners)
	}
	var sum, dropped uint64
	for _, ln := range st.Listeners {
		sum += ln.Accepted
		dropped += ln.Dropped[DropPoison]
	}
	if sum != 3*many+5 || dropped != many {
		t.Errorf("%d accepted and %d dropped, want %d and %d", sum, dropped, 3*many+5, many)
	}
	if got := s.stats(ClosedListeners); got.Accepted != 3*(many-keptNames) || got.Open {
		t.Errorf("%+v", got)
	}
	for _, n := range []int{many - keptNames, many - 1} {
		s.stats(fmt.Sprint("asked ", n))
	}
	// One that comes back early goes on; one that was folded starts at 0.
	if n := s.l.nameStats(fmt.Sprint("asked ", many-1)).Accepted; n != 3 {
		t.Errorf("the last one has %d", n)
	}
	if n := s.l.nameStats("asked 0").Accepted; n != 0 {
		t.Errorf("a folded one has %d", n)
	}
	s.step() // the drops of folded names are told once
	s.pass(2 * aLongTime)
	s.l.reports.dropsPending = true
	s.step()
	if n := s.times("dropped"); n == 0 {
		t.Errorf("%d drops told of", n)
	}
}

// The order in which names closed crosses an upgrade, as their counts do.
func TestClosedNamesCrossAnUpgrade(t *testing.T) {
	s := newStepped(t, Config{})
	for i := range keptNames + 3 {
		s.closedName(fmt.Sprint(i), 2)
	}
	s.closedName("3", 2) // again: now it is the last
	before := s.l.copyStats().Listeners
	s.upgrade()
	if after := s.l.copyStats().Listeners; !slices.Equal(before, after) {
		t.Errorf("before %+v, after %+v", before, after)
	}
	s.closedName("new", 2)
	names := make(map[string]bool)
	for _, ln := range s.l.copyStats().Listeners {
		names[ln.Name] = true
	}
	if !names["3"] || names["4"] || !names["5"] {
		t.Errorf("the longest closed one has not gone: %v", names)
	}
}

// Beyond its limit a worker gets an error for each listener, and lives.
func TestTooManyListensFail(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	s.listen("web")
	p := s.peer()
	for i := range maxListens {
		p.say(handoff.Frame{Type: handoff.Listen, Seq: uint64(i), Payload: []byte("tcp\x00web")})
		if i%messagesPerTurn == 0 {
			s.settle()
			p.hear()
		}
	}
	for seq, want := range map[uint64]syscall.Errno{maxListens - 1: 0, maxListens: unix.EMFILE, maxListens + 1: unix.EMFILE} {
		if seq >= maxListens {
			p.ask(seq, "tcp", "web", 0)
		}
		if f := p.answered(seq); syscall.Errno(f.Arg) != want {
			t.Errorf("LISTEN %d: errno %d %s, want %v", seq, f.Arg, f.Payload, want)
		}
	}
	p.say(handoff.Frame{Type: handoff.Leave, Listener: p.answered(0).Listener})
	p.ask(maxListens+2, "tcp", "web", 0)
	if f := p.answered(maxListens + 2); f.Arg != 0 {
		t.Errorf("it has left all: %d %s", f.Arg, f.Payload)
	}
	if s.heard("broke") {
		t.Error(s.told)
	}
}

// What workers ask for takes no descriptor that queue and handoffs need.
func TestAskedSocketsAreBounded(t *testing.T) {
	s := newStepped(t, Config{MaxAsked: 2})
	p, q := s.peer(), s.peer()
	asks := func(p *peer, seq uint64, want syscall.Errno) *handoff.Frame {
		t.Helper()
		p.say(handoff.Frame{Type: handoff.Listen, Seq: seq, Listener: uint32(seq), Payload: []byte("tcp\x00127.0.0.1:0")})
		f := p.answered(seq)
		if syscall.Errno(f.Arg) != want {
			t.Errorf("LISTEN %d: errno %d %s, want %v", seq, f.Arg, f.Payload, want)
		}
		return f
	}
	asks(p, 1, 0)
	second := asks(p, 2, 0)
	asks(p, 3, unix.EMFILE)
	asks(q, 4, unix.EMFILE)
	asks(q, 1, 0) // the same one takes no more
	s.upgrade(p, q)
	asks(q, 5, unix.EMFILE)
	p.say(handoff.Frame{Type: handoff.Leave, Listener: second.Listener})
	s.until("it is closed", func() bool { return s.l.byWire[second.Listener] == nil })
	asks(q, 6, 0)
	if s.heard("broke") || s.l.askedSocks != 2 {
		t.Error(s.told, s.l.askedSocks)
	}
}
