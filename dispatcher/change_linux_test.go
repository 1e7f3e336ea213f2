package dispatcher

import (
	"context"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"rrd/handoff"
)

// limits are those of a stepped dispatcher, to change some of them.
func (s *stepped) limits() Limits {
	c := s.d.cfg
	return Limits{QueueLimit: c.QueueLimit, QueueTimeout: c.QueueTimeout, Window: c.Window, BusyAfter: c.BusyAfter,
		HangTimeout: c.HangTimeout, RescueLimit: c.RescueLimit, MaxActive: c.MaxActive, DrainTimeout: c.DrainTimeout, Configured: c.Configured}
}

func TestLimitsChangeWhileConnectionsPass(t *testing.T) {
	s := newStepped(t, Config{Configured: true, Window: 1, QueueLimit: 4})
	ln := s.listen("web")
	a := s.serving(ln)
	s.connect(ln, 8)
	s.settle()
	a.mustGet(1)
	if st := s.stats("web"); st.Queued != 4 || !st.Paused {
		t.Fatalf("%+v", st)
	}
	c := s.limits()
	c.Window = 3
	s.l.setLimits(c)
	s.settle()
	a.mustGet(2, 3)
	c.QueueLimit = 2 // below what waits: nothing is dropped for it
	s.l.setLimits(c)
	s.settle()
	if st := s.stats("web"); st.Queued < 2 || !st.Paused || st.Dropped != [NumDropReasons]uint64{} {
		t.Errorf("%+v", st)
	}
	c.QueueLimit = 100
	s.l.setLimits(c)
	s.settle()
	if st := s.stats("web"); st.Queued != 5 || st.Paused {
		t.Errorf("%+v", st)
	}
	c.Window = 1 // it owes three, and gets nothing before it owes none
	s.l.setLimits(c)
	a.ack(2)
	s.settle()
	a.mustGet()
	a.ack(1)
	s.settle()
	a.mustGet(4)
}

func TestAShorterQueueTimeoutHolds(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	c := s.client(ln)
	s.settle()
	s.pass(500 * time.Millisecond)
	l := s.limits()
	l.QueueTimeout = 100 * time.Millisecond
	s.l.setLimits(l)
	s.settle()
	s.mustEnd(c)
}

func TestFewerCopiesAreKept(t *testing.T) {
	s := newStepped(t, Config{Configured: true, RescueLimit: 8, Window: 8})
	ln := s.listen("web")
	a := s.peer()
	a.say(handoff.Frame{Type: handoff.Listen, Seq: 1, Payload: []byte("tcp\x00web")})
	a.say(handoff.Frame{Type: handoff.Ready, Flags: handoff.ReadyTouches})
	s.settle()
	s.connect(ln, 8)
	s.settle()
	a.hear()
	a.ack(8)
	s.settle()
	if s.l.keptLen != 8 {
		t.Fatalf("%d kept", s.l.keptLen)
	}
	c := s.limits()
	c.RescueLimit = 3
	s.l.setLimits(c)
	if s.l.keptLen != 3 {
		t.Errorf("%d kept", s.l.keptLen)
	}
}

// A successor is told to be ready when it has all that the one before it has.
func TestReadyWithAllListeners(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	web, api := s.listen("web"), s.listen("api")
	old := s.serving(web, api)
	next := s.peer()
	s.l.byID[next.id].slot = old.k.slot
	next.say(handoff.Frame{Type: handoff.Listen, Seq: 1, Payload: []byte("tcp\x00web")})
	next.say(readyFrame)
	s.settle()
	if s.heard("ready 2") {
		t.Error("it does not serve api yet")
	}
	next.say(handoff.Frame{Type: handoff.Listen, Seq: 2, Payload: []byte("tcp\x00api")})
	s.settle()
	s.step()
	s.mustHear("ready 2")
}

// One that serves less than its predecessor is waited for, but not for ever, and
// what nobody uses any more is closed when the old one is gone.
func TestReadyAfterAQuietSecond(t *testing.T) {
	s := newStepped(t, Config{})
	old := s.peer()
	old.ask(1, "tcp", "127.0.0.1:0", 0)
	first := old.answered(1).Listener
	old.ask(2, "unix", t.TempDir()+"/s", 0)
	second := old.answered(2).Listener
	old.say(readyFrame)
	s.settle()
	next := s.peer()
	s.l.byID[next.id].slot = old.k.slot
	next.ask(1, "tcp", "127.0.0.1:0", 0)
	if next.answered(1).Listener != first {
		t.Error("not the same listener")
	}
	next.say(readyFrame)
	s.settle()
	s.pass(900 * time.Millisecond)
	s.settle()
	if s.heard("ready 2") {
		t.Error("told too early")
	}
	s.pass(200 * time.Millisecond)
	s.settle()
	s.step()
	s.mustHear("ready 2")
	s.l.drain(old.id)
	s.settle()
	old.die(Removal{})
	s.until("what nobody uses is closed", func() bool { return s.heard("closed") })
	if s.l.byWire[first].closing || s.l.byWire[second] != nil && len(s.l.byWire[second].sockets()) > 0 {
		t.Error(s.told)
	}
}

// A listener that a reload takes away loses nobody who could still be served, and its
// address is free then. Here there is no worker: who waits is not left waiting for ever.
func TestCloseListener(t *testing.T) {
	d, err := New(Config{Configured: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close() //nolint:errcheck // nothing to lose
	info, err := d.Listen(ListenerConfig{Name: "web", Network: "tcp4", Address: "127.0.0.1:0", UID: -1, GID: -1})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.ChangeListener(ListenerConfig{Name: "web", Address: "127.0.0.1:0", Backlog: 7, As: 3000}); err != nil {
		t.Error(err)
	}
	c, err := net.Dial("tcp", info.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := d.CloseListener(ctx, "web", "127.0.0.1:0"); err != nil {
		t.Error(err)
	}
	if _, err := net.Dial("tcp", info.Address); err == nil {
		t.Error("it still listens")
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the client waits on: %v", err)
	}
	if s, err := d.Stats(ctx); err != nil || s.Listeners[0].Dropped[DropListenerClosed] != 1 || s.Listeners[0].Queued != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, err := range []error{d.CloseListener(ctx, "web", "127.0.0.1:0"), d.ChangeListener(ListenerConfig{Name: "web", Address: "127.0.0.1:0"})} {
		if err == nil || !strings.Contains(err.Error(), "listener web: there is none") {
			t.Error(err)
		}
	}
	again, err := d.Listen(ListenerConfig{Name: "web", Network: "tcp4", Address: info.Address, UID: -1, GID: -1})
	if err != nil || again.Address != info.Address {
		t.Error(again, err)
	}
}

// What waits for a closed listener whose last worker ends later is dropped, not held for good.
func TestQueueOfAClosedListenerWithoutWorkers(t *testing.T) {
	s := newStepped(t, Config{Configured: true, Window: 1})
	ln := s.listen("web")
	p := s.serving(ln)
	s.connect(ln, 3)
	s.settle()
	p.mustGet(1)
	ln.unwanted = true
	s.l.startClosing(ln)
	s.until("it is closed", func() bool { return len(ln.sockets()) == 0 })
	s.l.drain(p.id)
	s.settle()
	p.answer(1, handoff.Reject, handoff.ReasonDraining)
	s.settle()
	p.die(Removal{})
	s.settle()
	if w := s.l.table.waiting; w != 0 {
		t.Errorf("%d wait for good, nobody can ever serve them", w)
	}
}

// Other goroutines read what SetLimits does not change.
func TestLimitsWhileSocketsAreAskedFor(t *testing.T) {
	d, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 100 {
			_, _ = d.Lend(0)
		}
	}()
	for range 100 {
		_ = d.SetLimits(Limits{})
	}
	<-done
}
