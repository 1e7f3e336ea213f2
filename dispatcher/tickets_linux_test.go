package dispatcher

import (
	"bytes"
	"testing"
	"time"

	"rrd/dispatcher/internal/aside"
	"rrd/handoff"
)

var askTickets = handoff.Frame{Type: handoff.AskTickets}

// keys returns those that the worker was given last, and the serial.
func (p *peer) keys() (keys [][]byte, serial uint64) {
	p.Helper()
	p.hear()
	f := p.last(handoff.Tickets)
	if f == nil {
		return nil, 0
	}
	for k := f.Payload; len(k) > 0; k = k[handoff.TicketKeySize:] {
		keys = append(keys, k[:handoff.TicketKeySize])
	}
	if len(keys) != int(f.Arg) {
		p.Errorf("arg %d, %d keys", f.Arg, len(keys))
	}
	return keys, f.Seq
}

// Workers that ask have the same keys, those that do not ask get none, and a rotation adds
// one in front.
func TestTicketKeys(t *testing.T) {
	s := newStepped(t, Config{Configured: true, TicketRotate: time.Hour})
	first, second, silent := s.peer(), s.peer(), s.peer()
	first.say(askTickets, askTickets) // the second is one too many
	s.step()
	second.say(askTickets)
	s.step()
	a, serial := first.keys()
	if b, _ := second.keys(); len(a) != 1 || serial != 1 || len(b) != 1 || !bytes.Equal(a[0], b[0]) || bytes.Count(a[0], []byte{0}) > 8 {
		t.Fatalf("keys %x, serial %d; %x", a, serial, b)
	}
	if n := len(first.heard); n != 2 { // HELLO and one TICKETS
		t.Errorf("%d frames", n)
	}
	all := a
	for range 4 {
		s.pass(time.Hour)
		s.step()
		b, n := first.keys()
		if serial++; n != serial || len(b) != min(len(all)+1, handoff.MaxTicketKeys) {
			t.Fatalf("rotation %d: %d keys, serial %d", serial, len(b), n)
		}
		for i := range b[1:] {
			if !bytes.Equal(b[i+1], all[i]) {
				t.Fatalf("key %d is not the one before", i+1)
			}
		}
		if bytes.Equal(b[0], all[0]) {
			t.Fatal("no new key")
		}
		all = b
	}
	if b, n := second.keys(); n != serial || !bytes.Equal(b[0], all[0]) {
		t.Error("the second has others")
	}
	if b, _ := silent.keys(); b != nil {
		t.Error("keys for one that has not asked")
	}
	s.mustHear("rotated 5 2")
}

func TestTicketKeysCrossAnUpgrade(t *testing.T) {
	s := newStepped(t, Config{Configured: true, TicketRotate: time.Hour})
	asked, asksLater := s.peer(), s.peer()
	asked.say(askTickets)
	s.step()
	before, _ := asked.keys()
	s.pass(time.Hour / 2)
	s.upgrade(asked, asksLater)
	asksLater.say(askTickets)
	s.step()
	if b, n := asksLater.keys(); n != 1 || !bytes.Equal(b[0], before[0]) {
		t.Errorf("other keys after the upgrade: serial %d", n)
	}
	s.pass(time.Hour/2 + time.Second)
	s.step()
	if b, n := asked.keys(); n != 2 || len(b) != 2 || !bytes.Equal(b[1], before[0]) {
		t.Errorf("no rotation after the upgrade: serial %d", n)
	}
}

// A State of an image that knew no tickets: its workers were offered none.
func TestTicketsOfAnOlderState(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	p := s.peer()
	s.d.cfg.TicketRotate = time.Hour
	s.upgrade(p)
	q := s.peer()
	q.say(askTickets)
	s.step()
	if b, _ := q.keys(); len(b) != 1 {
		t.Error("none for a new worker")
	}
	p.say(askTickets)
	s.settle()
	s.mustHear("broke 1 ASK_TICKETS without an offer")
}

func TestBadTicketsInAState(t *testing.T) {
	for _, in := range []savedTickets{{1, nil, 0}, {0, make([]byte, 32), 0}, {1, make([]byte, 31), 0}, {1, make([]byte, 128), 0}} {
		s := newStepped(t, Config{})
		state, err := s.l.save((&sameChannels{}).codec())
		if err != nil {
			t.Fatal(err)
		}
		state.Tickets = &in
		if state.Check() == nil || s.l.restoreTickets(state) == nil {
			t.Errorf("%d bytes, serial %d, are taken", len(in.Keys), in.Serial)
		}
	}
}

// Keys that the channel has no room for do not add up.
func TestTicketsForAFullChannel(t *testing.T) {
	s := newStepped(t, Config{Configured: true, TicketRotate: time.Hour})
	p := s.peer()
	p.say(askTickets)
	s.step()
	p.k.unsent = []parcel{{frame: handoff.Frame{Type: handoff.Ping, Seq: 9}}}
	s.l.setFull(p.k, true)
	for range 3 {
		s.l.rotateTickets()
	}
	if n := len(p.k.unsent); n != 2 {
		t.Errorf("%d frames wait", n)
	}
	s.settle()
	if b, n := p.keys(); n != 4 || len(b) != 3 {
		t.Errorf("serial %d, %d keys", n, len(b))
	}
}

// Another interval holds from now on; without one the keys are forgotten.
func TestTicketRotateChanges(t *testing.T) {
	s := newStepped(t, Config{Configured: true, TicketRotate: time.Hour})
	p := s.peer()
	p.say(askTickets)
	s.step()
	first, _ := p.keys()
	limits := s.l.limits()
	limits.TicketRotate = time.Minute
	s.l.setLimits(limits)
	s.pass(time.Minute)
	s.step()
	if _, n := p.keys(); n != 2 {
		t.Errorf("serial %d after the shorter interval", n)
	}
	limits.TicketRotate = 0
	s.l.setLimits(limits)
	late := s.peer()
	if s.pass(time.Hour); s.l.ticketsDue() != 0 || s.l.saveTickets() != nil || late.k.offered&handoff.HelloTickets != 0 {
		t.Error("off is not off")
	}
	s.step()
	if _, n := p.keys(); n != 2 {
		t.Errorf("serial %d although it is off", n)
	}
	limits.TicketRotate = time.Hour
	s.l.setLimits(limits)
	again := s.peer()
	again.say(askTickets)
	s.step()
	if b, _ := again.keys(); len(b) != 1 || bytes.Equal(b[0], first[0]) {
		t.Error("the keys were not forgotten")
	}
	if b, _ := p.keys(); len(b) != 1 {
		t.Error("the worker that had keys before gets no new ones")
	}
}

// Keys that are recalled from a late worker are said again as they are by then: it may have
// read newer ones between the recall and its end.
func TestRecalledTicketsAreTheNewest(t *testing.T) {
	s := newStepped(t, Config{Configured: true, TicketRotate: time.Hour})
	p := s.peer()
	p.say(askTickets)
	s.step()
	p.keys()
	recalled := *p.last(handoff.Tickets)
	s.l.rotateTickets()
	p.k.recalling = recalling{under: true, alive: true, again: []handoff.Frame{recalled}}
	s.l.recalled(p.k, &aside.Answer{Known: true})
	s.settle()
	if b, n := p.keys(); n != 2 || len(b) != 2 {
		t.Errorf("the last that it hears: serial %d, %d keys", n, len(b))
	}
}
