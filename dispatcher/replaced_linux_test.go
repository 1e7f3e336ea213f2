package dispatcher

import (
	"maps"
	"slices"
	"testing"

	"rrd/handoff"
)

// replacedBy adds a worker in the slot of old that serves only lns, and replaces old.
func (s *stepped) replacedBy(old *peer, lns ...*listener) *peer {
	s.Helper()
	next := s.peer()
	next.k.slot = old.k.slot
	for _, ln := range s.l.listeners {
		if ln != nil && !slices.Contains(lns, ln) {
			next.k.hidden = append(next.k.hidden, ln.conf)
		}
	}
	next.ready(lns...)
	s.l.setReplaced(old.id, true)
	s.settle()
	return next
}

// A replaced worker gets no new connection and no DRAIN, answers what it owes, and goes on
// as before when it is reinstated.
func TestReplacedWorkerGetsNothingNew(t *testing.T) {
	s := newStepped(t, Config{Configured: true, Window: 2})
	web := s.listen("web")
	old := s.serving(web)
	s.connect(web, 1)
	s.settle()
	old.mustGet(1)
	next := s.replacedBy(old, web)
	s.connect(web, 3)
	s.settle()
	old.mustGet()
	next.mustGet(2, 3)
	old.ack(1)
	s.settle()
	if st := s.stats("web"); st.Acked != 1 || st.Queued != 1 {
		t.Errorf("%+v", st)
	}
	if f := old.last(handoff.Drain); f != nil {
		t.Error("it was asked to drain")
	}
	s.l.setReplaced(old.id, false)
	s.settle()
	old.mustGet(4)
	old.ack(1)
	next.ack(2)
	s.settle()
}

// If the successor dies, drains or leaves the listener, the replaced worker serves: it is
// there, and no client has to wait for a new process.
func TestReplacedWorkerStandsIn(t *testing.T) {
	for name, end := range map[string]func(s *stepped, next *peer, web *listener){
		"dies":   func(_ *stepped, next *peer, _ *listener) { next.die(Removal{}) },
		"drains": func(s *stepped, next *peer, _ *listener) { s.l.drain(next.id) },
		"breaks": func(_ *stepped, next *peer, _ *listener) { next.say(handoff.Frame{Type: handoff.Ready}) },
		"leaves": func(_ *stepped, next *peer, web *listener) {
			next.say(handoff.Frame{Type: handoff.Leave, Listener: web.wire})
		},
		"is not well": func(_ *stepped, next *peer, _ *listener) {
			next.say(handoff.Frame{Type: handoff.Health, Arg: 1})
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStepped(t, Config{Configured: true})
			web := s.listen("web")
			old := s.serving(web)
			next := s.replacedBy(old, web)
			end(s, next, web)
			s.settle()
			s.connect(web, 1)
			s.settle()
			old.mustGet(1)
			old.ack(1)
			s.settle()
			another := s.peer() // and no longer, once there is one again
			another.k.slot = old.k.slot
			another.ready(web)
			s.connect(web, 1)
			s.settle()
			old.mustGet()
			another.mustGet(2)
			another.ack(1)
			s.settle()
		})
	}
}

// A listener that the successor does not have is served by the replaced worker.
func TestReplacedWorkerKeepsWhatItsSuccessorLacks(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	web, gone := s.listen("web"), s.listen("gone")
	old := s.serving(web, gone)
	next := s.replacedBy(old, web)
	s.connect(gone, 1)
	s.settle()
	s.connect(web, 1)
	s.settle()
	old.mustGet(1)
	next.mustGet(2)
	old.ack(1)
	next.ack(1)
	s.settle()
}

// That a worker is replaced crosses an upgrade in place.
func TestReplacedCrossesAnUpgrade(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	web := s.listen("web")
	old := s.serving(web)
	next := s.replacedBy(old, web)
	s.upgrade(old, next)
	web = s.l.byWire[web.wire]
	s.connect(web, 2)
	s.settle()
	old.mustGet()
	next.mustGet(1, 2)
	next.ack(2)
	s.settle()
	s.l.setReplaced(old.id, false)
	s.connect(web, 2)
	s.settle()
	if len(old.hear())+len(next.hear()) != 2 || len(old.has) != 1 {
		t.Errorf("the old worker has %d, the new one %d", len(old.has), len(next.has))
	}
	old.ack(1)
	next.ack(1)
	s.settle()
}

// A failed successor closes a listener while it drains. Its predecessor has the listener
// too, so it stays open.
func TestListenerOfAPredecessorStays(t *testing.T) {
	s := newStepped(t, Config{})
	old := s.peer()
	old.ask(1, "tcp", "127.0.0.1:0", 0)
	web := s.byAddress(old.answered(1))
	old.say(readyFrame)
	s.settle()
	next := s.peer()
	next.k.slot = old.k.slot
	next.ask(1, "tcp", "127.0.0.1:0", 0)
	next.answered(1)
	next.say(readyFrame)
	s.settle()
	s.l.setReplaced(old.id, true)
	s.settle()
	s.l.setReplaced(old.id, false)
	s.l.drain(next.id)
	next.say(handoff.Frame{Type: handoff.Leave, Listener: web.wire})
	s.settle()
	next.die(Removal{})
	s.settle()
	if web.closing || len(web.sockets()) == 0 {
		t.Fatal("the listener is closed")
	}
	s.connect(web, 1)
	s.settle()
	old.mustGet(1)
	old.ack(1)
	s.settle()
}

// What is wrong with a replaced worker is not said of its successor: it may be why the roll
// was made.
func TestAReplacedWorkerIsUnhealthyAlone(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	web := s.listen("web")
	old := s.serving(web)
	old.say(handoff.Frame{Type: handoff.Health, Arg: 1})
	s.settle()
	next := s.replacedBy(old, web)
	got := make(map[uint64]bool)
	for _, p := range s.l.copyStats().Processes {
		got[p.ID] = p.Unhealthy
		if p.Heard.IsZero() {
			t.Errorf("worker %d was not heard", p.ID)
		}
	}
	if want := map[uint64]bool{old.id: true, next.id: false}; !maps.Equal(got, want) {
		t.Errorf("unhealthy: %v, want %v", got, want)
	}
}

// Why clients wait is a matter of those workers that can be given them.
func TestAReplacedWorkerIsNotWaitedFor(t *testing.T) {
	s := newStepped(t, Config{Configured: true, MaxActive: 1})
	web := s.listen("web")
	old := s.serving(web)
	next := s.replacedBy(old, web)
	s.connect(web, 2)
	s.settle()
	next.mustGet(1)
	next.ackOnly()
	s.settle()
	if why, want := s.l.whyWaiting(web.id), "every worker has --worker-max-connections-active connections"; why != want {
		t.Errorf("%q, want %q", why, want)
	}
}
