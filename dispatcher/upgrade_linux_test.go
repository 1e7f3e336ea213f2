package dispatcher

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"rrd/handoff"
)

// sameChannels keeps channels as they are: what of them crosses an exec is not the
// dispatcher's affair.
type sameChannels []handoff.Channel

func (c *sameChannels) codec() ChannelCodec {
	return ChannelCodec{
		Save: func(ch handoff.Channel) (json.RawMessage, []handoff.FD, error) {
			*c = append(*c, ch)
			return json.RawMessage(strconv.Itoa(len(*c) - 1)), []handoff.FD{handoff.Own(ch.Num())}, nil
		},
		Restore: func(_ int, saved json.RawMessage) (handoff.Channel, error) {
			i, err := strconv.Atoi(string(saved))
			if err != nil || i < 0 || i >= len(*c) {
				return nil, fmt.Errorf("no channel %s", saved)
			}
			return (*c)[i], nil
		},
	}
}

// crossed is a State that has been text.
func crossed(t testing.TB, s *State) *State {
	t.Helper()
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var out State
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	return &out
}

// upgrade replaces the loop by one that was restored from the other's state.
func (s *stepped) upgrade(peers ...*peer) {
	s.Helper()
	s.upgradeIn(0, peers...)
}

// upgradeIn is upgrade by a program that takes this long to start.
func (s *stepped) upgradeIn(took time.Duration, peers ...*peer) {
	s.Helper()
	var channels sameChannels
	for s.l.aside.Fresh(s.l.clock.now()) {
		s.awaitEvent()
		s.step()
	}
	state, err := s.l.save(channels.codec())
	if err != nil {
		s.Fatal(err)
	}
	state = crossed(s, state)
	state.SavedAt -= int64(took)
	old := s.d
	old.helpers.Wait() // those that have bound something
	p, err := newPoller()
	if err != nil {
		s.Fatal(err)
	}
	d := newDispatcher(old.cfg, p)
	l := newLoop(d)
	l.clock.start = time.Now().Add(-longAgo)
	l.now = l.clock.now()
	if err := l.restore(state, channels.codec()); err != nil {
		s.Fatal(err)
	}
	if s.l.beatAt == math.MaxInt64 {
		l.beatAt = math.MaxInt64 // still no heartbeat
	}
	s.l.aside.Close()
	_ = old.poll.close()
	old.lingering.stop()
	d.lingering.start()
	s.d.poll, s.d.events.calls = d.poll, nil
	*s.d = Dispatcher{cfg: d.cfg, poll: d.poll, ended: old.ended, delivered: old.delivered}
	s.d.events.ready = make(chan struct{}, 1)
	s.d.events.calls = d.events.calls
	s.d.lingering.start()
	d.lingering.stop()
	l.d, l.cfg = s.d, &s.d.cfg
	s.l = l
	for _, p := range peers {
		p.k = l.byID[p.id]
	}
	if err := integrity(s.l.table); err != nil {
		s.Fatal(err)
	}
	s.lawful()
}

// Whatever a connection is just then, it goes on as if nothing had happened, and so
// does everybody's turn.
func TestConnectionsCrossAnUpgrade(t *testing.T) {
	s := newStepped(t, Config{Configured: true, Window: 2, RescueLimit: 4})
	ln := s.listen("web")
	a := s.peer()
	a.say(handoff.Frame{Type: handoff.Listen, Seq: 1, Payload: []byte("tcp\x00web")})
	a.say(handoff.Frame{Type: handoff.Ready, Flags: handoff.ReadyTouches})
	s.settle()
	b, c := s.serving(ln), s.serving(ln)
	peers := []*peer{a, b, c}
	s.connect(ln, 8)
	s.settle()
	a.mustGet(1, 4)
	b.mustGet(2, 5)
	c.mustGet(3, 6)
	a.ack(1)    // kept
	b.reject(1) // back, and b is out
	s.step()
	a.hear()
	before := s.stats("web")
	s.upgrade(peers...)
	if now := s.stats("web"); now.Queued != before.Queued || now.InFlight != before.InFlight || now.Accepted != 8 || now.Acked != 1 {
		t.Errorf("%+v, was %+v", now, before)
	}
	if s.l.keptLen != 1 {
		t.Errorf("%d kept", s.l.keptLen)
	}
	s.settle()
	var waiting []int
	s.upgrade(peers...) // as often as one likes
	for range 20 {
		for _, p := range peers {
			waiting = append(waiting, p.hear()...)
			if len(p.has) > 0 {
				p.ack(len(p.has))
			}
		}
		b.again(ln)
		s.settle()
		s.upgrade(peers...)
	}
	if st := s.stats("web"); st.Acked != 8 || st.Queued+st.InFlight != 0 {
		t.Errorf("%+v, %v went on", st, waiting)
	}
	a.die(Removal{Blame: true}) // what it has acked and not touched is rescued
	if st := s.stats("web"); st.Rescued == 0 {
		t.Errorf("%+v", st)
	}
}

// The order of those who are free crosses too.
func TestTurnsCrossAnUpgrade(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	peers := []*peer{s.serving(ln), s.serving(ln), s.serving(ln)}
	for n := range 30 {
		s.client(ln)
		s.settle()
		p := peers[n%3]
		p.mustGet(n + 1)
		p.ack(1)
		s.settle()
		s.upgrade(peers...)
	}
}

// Who is late, hung, full or gone is so afterwards, with the time that was left.
func TestWorkersCrossAnUpgrade(t *testing.T) {
	s := newStepped(t, Config{Configured: true, BusyAfter: 50 * time.Millisecond, HangTimeout: time.Second})
	ln := s.listen("web")
	late, gone, sick := s.serving(ln), s.serving(ln), s.serving(ln)
	s.connect(ln, 1)
	s.settle()
	late.mustGet(1)
	sick.say(handoff.Frame{Type: handoff.Health, Arg: 1})
	gone.send([]byte("nonsense"))
	s.pass(100 * time.Millisecond)
	s.settle()
	s.told = nil
	s.upgrade(late, gone, sick)
	s.settle()
	s.step()
	if k := late.k; !k.late || len(s.l.late) != 1 || s.heard("hung") {
		t.Errorf("%+v %v", k, s.told)
	}
	for _, again := range []string{"spoke 1", "ready 1", "ready 3", "broke 2", "health 3 false"} {
		s.mustHear(again)
	}
	for range 10 {
		s.pass(100 * time.Millisecond)
		s.settle()
	}
	s.mustHear("hung 1")
	late.ack(1)
	s.settle()
	if late.k.late || s.stats("web").Acked != 1 {
		t.Errorf("%+v", late.k)
	}
}

// Listeners that workers have asked for stay with who uses them.
func TestAskedListenersCrossAnUpgrade(t *testing.T) {
	s := newStepped(t, Config{})
	path := t.TempDir() + "/s"
	a := s.peer()
	a.ask(1, "tcp", "127.0.0.1:0", 0)
	wire := a.answered(1).Listener
	a.ask(2, "unix", path, 0)
	a.answered(2)
	a.ask(3, "udp", "127.0.0.1:0", 0)
	a.answered(3)
	a.say(readyFrame)
	s.settle()
	s.l.byWire[wire].data = []byte("secret")
	s.upgrade(a)
	b := s.peer()
	b.ask(1, "tcp", "127.0.0.1:0", 0)
	if f := b.answered(1); f.Listener != wire || string(s.l.byWire[wire].data) != "secret" {
		t.Errorf("%+v", f)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	s.settle()
	a.mustGet(1)
	a.say(handoff.Frame{Type: handoff.Leave, Listener: wire}, handoff.Frame{Type: handoff.Leave, Listener: wire + 1})
	s.until("the unused one is closed", func() bool { return s.heard("closed " + path) })
	if _, err := net.Dial("unix", path); err == nil {
		t.Error("its file is still there")
	}
}

// What cannot be told of is waited for by who asks.
func TestBusyForAnUpgrade(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	var channels sameChannels
	s.l.startClosing(ln)
	if _, err := s.l.save(channels.codec()); err == nil || !strings.Contains(err.Error(), "being closed") {
		t.Error(err)
	}
	s.until("it is closed", func() bool { return s.heard("closed") })
	if _, err := s.l.save(channels.codec()); err != nil {
		t.Error(err)
	}
	asking := newStepped(t, Config{})
	p := asking.peer()
	p.ask(1, "tcp", "127.0.0.1:0", 0)
	asking.l.answers(p.k, false)
	if _, err := asking.l.save(channels.codec()); err == nil || !strings.Contains(err.Error(), "being bound") {
		t.Error(err)
	}
	p.answered(1)
}

// A parked dispatcher does nothing, and then goes on; one made of its state takes its
// place.
func TestParkAndRestore(t *testing.T) {
	r := run(t, Config{Configured: true})
	info := r.open(ListenerConfig{Name: "web", Network: "tcp4", Address: "127.0.0.1:0"})
	r.start("tcp", "web")
	echo := func() error {
		c, err := net.DialTimeout("tcp", info.Address, patience)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(patience))
		if _, err := c.Write([]byte{7}); err != nil {
			return err
		}
		_, err = io.ReadFull(c, make([]byte, 1))
		return err
	}
	var channels sameChannels
	parked, err := r.Park(t.Context(), channels.codec())
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan error, 1)
	go func() { answered <- echo() }() // received below
	if len(parked.State.FDs()) != 2 {
		t.Errorf("%d descriptors", len(parked.State.FDs()))
	}
	select {
	case err := <-answered:
		t.Errorf("it was served while everything stands still: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	parked.Resume()
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

// A worker that ends just before a State is made is not in it.
func TestNoDeadWorkerIsSaved(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	old := s.serving(ln)
	other := s.peer()
	other.k.slot = old.k.slot
	other.say(readyFrame) // settling: it lacks "web"
	s.step()
	if !s.l.isSettling(other.k) {
		t.Fatal("not settling")
	}
	idx := other.k.idx
	_ = other.port.Close()
	s.l.remove(other.id, Removal{})
	st := &State{}
	s.l.saveRest(st)
	for _, w := range st.Settling {
		if w == idx {
			t.Error("a dead worker is saved as settling")
		}
	}
}

// A socket of a worker's own stays so, also when it is bound again later.
func TestAPrivateSocketCrossesAnUpgrade(t *testing.T) {
	s := newStepped(t, Config{})
	p := s.peer()
	p.granted(1, "tcp", "127.0.0.1:0").asked.private = true
	s.upgrade(p)
	for key, a := range s.l.asked {
		if !a.private {
			t.Errorf("%s is for all", key)
		}
	}
	if len(s.l.asked) != 1 {
		t.Errorf("%d were asked for", len(s.l.asked))
	}
}
