package dispatcher

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/dispatcher/internal/aside"
	"rrd/handoff"
)

func (p *peer) ask(seq uint64, network, address string, backlog int) {
	p.Helper()
	p.say(handoff.Frame{Type: handoff.Listen, Seq: seq, Arg: uint32(backlog), Payload: []byte(network + "\x00" + address)})
}

// answered waits for the answer to a LISTEN.
func (p *peer) answered(seq uint64) *handoff.Frame {
	p.Helper()
	var f *handoff.Frame
	p.until(fmt.Sprintf("LISTEN %d is answered", seq), func() bool {
		p.hear()
		if i := slices.IndexFunc(p.heard, func(f handoff.Frame) bool { return f.Type == handoff.Listening && f.Seq == seq }); i >= 0 {
			f = &p.heard[i]
		}
		return f != nil
	})
	return f
}

func (s *stepped) byAddress(f *handoff.Frame) *listener {
	s.Helper()
	ln := s.l.byWire[f.Listener]
	if ln == nil {
		s.Fatalf("no listener %d: errno %d %s", f.Listener, f.Arg, f.Payload)
	}
	return ln
}

// freePort is a port that nobody listens on just now.
func freePort(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// widePort is a port that is free at every address just now. The kernel chooses a port
// for 127.0.0.1:0 that may be taken at another address.
func widePort(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

func TestResolve(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	port := func(ln *listener) string { _, p, _ := net.SplitHostPort(ln.addr); return p }
	dual := s.open(ListenerConfig{Name: "web", Network: "tcp", Address: ":0", UID: -1, GID: -1})
	v4 := s.open(ListenerConfig{Name: "127.0.0.1:0", Network: "tcp4", Address: "127.0.0.1:0", UID: -1, GID: -1})
	path := filepath.Join(t.TempDir(), "s")
	sock := s.open(ListenerConfig{Name: "unix:" + path, Network: "unix", Address: path, UID: -1, GID: -1})
	named := s.open(ListenerConfig{Name: ":1", Network: "tcp4", Address: "127.0.0.1:0", UID: -1, GID: -1})
	for _, tt := range []struct {
		network, address string
		want             *listener
		says             string
	}{
		{"tcp", "web", dual, ""},
		{"tcp", "127.0.0.1:0", v4, ""},            // by name
		{"tcp", ":1", named, ""},                  // a name wins over what it looks like
		{"tcp", ":" + port(dual), dual, ""},       // :N is [::]:N
		{"tcp", "[::]:" + port(dual), dual, ""},   // and the other way round
		{"tcp", "127.0.0.1:" + port(v4), v4, ""},  // as bound
		{"tcp4", "localhost:" + port(v4), v4, ""}, // localhost is 127.0.0.1
		{"unix", path, sock, ""},                  // without unix:
		{"unix", "/some/other/path", sock, ""},    // the only one of that network
		{"tcp", ":2", nil, "none of rrd's --listen addresses (web, 127.0.0.1:0, :1)"},
		{"tcp4", ":" + port(dual), nil, "none of rrd's"}, // 0.0.0.0 is not [::]
		{"udp", ":53", nil, "no --listen of rrd is for udp"},
	} {
		got, err := s.l.resolve(&link{}, &request{network: tt.network, address: tt.address})
		if got != tt.want || (err != nil) != (tt.says != "") || err != nil && !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s %s: %v, %v", tt.network, tt.address, got, err)
		}
	}
	p := s.peer()
	p.ask(7, "tcp", ":2", 0)
	if f := p.answered(7); syscall.Errno(f.Arg) != unix.EADDRNOTAVAIL || !strings.Contains(string(f.Payload), "--listen") {
		t.Errorf("%d %s", f.Arg, f.Payload)
	}
	s.mustHear("refused 1 tcp :2")
	p.ask(8, "sctp", ":2", 0)
	if f := p.answered(8); syscall.Errno(f.Arg) != unix.EINVAL {
		t.Errorf("%d %s", f.Arg, f.Payload)
	}
}

func TestAskersShareAListener(t *testing.T) {
	s := newStepped(t, Config{})
	a, b, c := s.peer(), s.peer(), s.peer()
	a.ask(1, "tcp", "127.0.0.1:0", 5)
	b.ask(2, "tcp", "127.0.0.1:0", 50) // while it is being bound
	fa, fb := a.answered(1), b.answered(2)
	c.ask(3, "tcp4", "127.0.0.1:0", 9)
	fc := c.answered(3)
	if fa.Listener != fb.Listener || fa.Listener != fc.Listener || fa.Arg != 0 {
		t.Fatalf("%+v %+v %+v", fa, fb, fc)
	}
	ln := s.byAddress(fa)
	if network, address, _ := strings.Cut(string(fa.Payload), "\x00"); network != "tcp" || address != ln.addr || strings.HasSuffix(address, ":0") {
		t.Errorf("told %q", fa.Payload)
	}
	s.mustHear("opened 127.0.0.1:0 tcp asked=true")
	if f, errno := aside.QueueInline(ln.sock.fd); errno == 0 && f.Limit != 50 {
		t.Errorf("backlog %d, want the largest that was asked for", f.Limit)
	}
	for _, p := range []*peer{a, b, c} {
		p.say(readyFrame)
		s.settle()
	}
	s.connect(ln, 3)
	s.settle()
	a.mustGet(1)
	b.mustGet(2)
	c.mustGet(3)
}

func TestATakenAddressIsToldToAllAndCanBeTriedAgain(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newStepped(t, Config{})
	a, b := s.peer(), s.peer()
	a.ask(1, "tcp", taken.Addr().String(), 0)
	b.ask(1, "tcp", taken.Addr().String(), 0)
	for _, p := range []*peer{a, b} {
		if f := p.answered(1); syscall.Errno(f.Arg) != unix.EADDRINUSE {
			t.Errorf("%d %s", f.Arg, f.Payload)
		}
	}
	_ = taken.Close()
	a.ask(2, "tcp", taken.Addr().String(), 0)
	if f := a.answered(2); f.Arg != 0 {
		t.Errorf("%d %s", f.Arg, f.Payload)
	}
}

func TestTheLastUserClosesAndWhatWaitsIsDropped(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		s := newStepped(t, Config{})
		address := "127.0.0.1:0"
		if network == "unix" {
			address = filepath.Join(t.TempDir(), "s")
		}
		a, b := s.peer(), s.peer()
		a.ask(1, network, address, 0)
		ln := s.byAddress(a.answered(1))
		b.ask(1, network, address, 0)
		b.answered(1)
		a.say(readyFrame)
		s.connect(ln, 1)
		s.settle()
		a.mustGet(1)
		waits := s.client(ln)
		leave := handoff.Frame{Type: handoff.Leave, Listener: ln.wire}
		b.say(leave)
		s.settle()
		if ln.closing || !ln.stats.Open {
			t.Fatal("closed while somebody uses it")
		}
		a.reject(0)
		a.say(leave)
		s.until("it is closed", func() bool { return s.heard("closed ") })
		a.hear()
		// What was on its way comes back and finds nobody either.
		a.answer(len(a.has), handoff.Reject, handoff.ReasonClosed)
		s.settle()
		s.mustEnd(waits)
		st := s.stats(address)
		if st.Dropped[DropListenerClosed] != 2 || st.Open {
			t.Errorf("%s: %+v", network, st)
		}
		if s.l.defunct != 0 || s.l.closing != 0 || len(s.l.asked) != 0 || len(s.l.byWire) != 0 {
			t.Errorf("left behind: defunct %d closing %d asked %v", s.l.defunct, s.l.closing, s.l.asked)
		}
		a.ask(9, network, address, 0) // and it can be asked for again
		if f := a.answered(9); f.Arg != 0 {
			t.Errorf("%d %s", f.Arg, f.Payload)
		}
	}
}

func TestAskedAgainWhileItIsBeingClosed(t *testing.T) {
	s := newStepped(t, Config{})
	address := freePort(t)
	a := s.peer()
	a.ask(1, "tcp", address, 0)
	ln := s.byAddress(a.answered(1))
	a.say(handoff.Frame{Type: handoff.Leave, Listener: ln.wire})
	a.ask(2, "tcp", address, 0)
	again := s.byAddress(a.answered(2))
	if again == ln || again.closing {
		t.Error("it was given the listener that is being closed")
	}
}

func TestASuccessorKeepsTheListener(t *testing.T) {
	s := newStepped(t, Config{})
	address := freePort(t)
	p := s.peer()
	p.ask(1, "tcp", address, 0)
	ln := s.byAddress(p.answered(1))
	p.say(readyFrame)
	s.settle()
	p.die(Removal{})
	s.connect(ln, 1)
	s.settle()
	if ln.closing {
		t.Fatal("closed while its slot waits for a successor")
	}
	q := s.peer()
	q.k.slot = p.k.slot
	q.ask(1, "tcp", address, 0)
	if s.byAddress(q.answered(1)) != ln {
		t.Fatal("another listener")
	}
	q.say(readyFrame)
	s.settle()
	q.mustGet(1)

	q.die(Removal{})
	s.l.forgetSlot(q.k.slot) // no successor for now
	s.until("it is closed", func() bool { return s.heard("closed ") })
	if s.stats(address).Dropped[DropListenerClosed] != 1 {
		t.Errorf("%+v", s.stats(address))
	}
}

func TestASuccessorThatDoesNotWantItEndsIt(t *testing.T) {
	s := newStepped(t, Config{})
	p := s.peer()
	p.ask(1, "tcp", "127.0.0.1:0", 0)
	p.answered(1)
	p.die(Removal{})
	q := s.peer()
	q.k.slot = p.k.slot
	q.say(readyFrame)
	s.until("it is closed", func() bool { return s.heard("closed ") })
}

// A program opens one listener after the other and is ready with the first: those that its
// dead predecessor had stay open, and who waits there waits.
func TestASuccessorAsksForMoreAfterItIsReady(t *testing.T) {
	for _, asks := range []bool{true, false} {
		s := newStepped(t, Config{})
		first, second := freePort(t), freePort(t)
		p := s.peer()
		p.ask(1, "tcp", first, 0)
		p.answered(1)
		p.ask(2, "tcp", second, 0)
		ln := s.byAddress(p.answered(2))
		p.say(readyFrame)
		s.settle()
		p.die(Removal{Blame: true})
		s.client(ln)
		q := s.peer()
		q.k.slot = p.k.slot
		q.ask(1, "tcp", first, 0)
		q.answered(1)
		q.say(readyFrame)
		s.settle()
		s.pass(time.Duration(settleAfter) / 2)
		s.step()
		if s.heard("closed") {
			t.Fatal(s.told)
		}
		if asks {
			q.ask(2, "tcp", second, 0)
			q.answered(2)
			s.until("who waited is served", func() bool { q.hear(); return slices.Equal(clientsOf(q), []int{1}) })
			s.pass(2 * time.Duration(settleAfter))
			s.step()
			if s.heard("closed") {
				t.Error(s.told)
			}
			continue
		}
		s.pass(time.Duration(settleAfter))
		s.until("it is closed", func() bool { return s.heard("closed") })
	}
}

func TestTheAskerDiesWhileItIsBeingBound(t *testing.T) {
	s := newStepped(t, Config{})
	p := s.peer()
	p.ask(1, "tcp", "127.0.0.1:0", 0)
	for len(s.l.asked) == 0 {
		s.step()
	}
	p.die(Removal{})
	s.l.forgetSlot(p.k.slot) // it may have been bound just before
	s.until("it is closed", func() bool { return len(s.l.asked) == 0 && s.l.defunct == 0 && s.l.closing == 0 })
}

// TCP and UDP of one address have one name, and so one line of counts: those of TCP,
// in whatever order they were asked for.
func TestOneNameForTCPAndUDP(t *testing.T) {
	for _, order := range [][]string{{"tcp", "udp"}, {"udp", "tcp"}} {
		s := newStepped(t, Config{})
		p := s.peer()
		for i, network := range order {
			p.ask(uint64(i+1), network, "127.0.0.1:0", 0)
			s.byAddress(p.answered(uint64(i + 1)))
		}
		if n := len(s.l.names); n != 1 {
			t.Fatalf("%v: %d names", order, n)
		}
		if n := s.l.names[0]; n.Shared || !n.Open || n.Network != "tcp" {
			t.Errorf("%v: %+v", order, n.ListenerInfo)
		}
		leave := func(network string) {
			seq := uint64(slices.Index(order, network) + 1)
			wire := p.answered(seq).Listener
			p.say(handoff.Frame{Type: handoff.Leave, Listener: wire})
			s.until(network+" is closed", func() bool { return s.l.byWire[wire] == nil })
		}
		leave("udp")
		if len(s.l.names) != 1 || !s.l.names[0].Open {
			t.Errorf("%v: the name went with its UDP", order)
		}
		leave("tcp")
		if len(s.l.names) != 0 {
			t.Errorf("%v: a name that nobody used stays", order)
		}
	}
}

const nobody = 65534

func TestAWorkersRights(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can have workers of another user")
	}
	s := newStepped(t, Config{})
	p := s.peer()
	p.k.rights = &Rights{UID: nobody, GID: nobody}
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	own := filepath.Join(dir, "own")
	if err := os.Mkdir(own, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(own, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	live, err := net.Listen("unix", filepath.Join(own, "roots"))
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	for i, tt := range []struct {
		network, address string
		want             syscall.Errno
	}{
		{"tcp", "127.0.0.1:80", unix.EACCES},
		{"udp", "127.0.0.1:53", unix.EACCES},
		{"unix", filepath.Join(dir, "s"), unix.EACCES},
		{"unix", filepath.Join(own, "roots"), unix.EADDRINUSE},
		{"unix", filepath.Join(own, "s"), 0},
	} {
		p.ask(uint64(i), tt.network, tt.address, 0)
		f := p.answered(uint64(i))
		if syscall.Errno(f.Arg) != tt.want {
			t.Errorf("%s: errno %d %s", tt.address, f.Arg, f.Payload)
		}
		if tt.want != 0 {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(tt.address, &st); err != nil || st.Uid != nobody || st.Gid != nobody {
			t.Errorf("%v: owned by %d:%d", err, st.Uid, st.Gid)
		}
		p.say(handoff.Frame{Type: handoff.Leave, Listener: f.Listener})
		s.until("it is closed", func() bool { return s.heard("closed ") })
		if _, err := os.Lstat(tt.address); !os.IsNotExist(err) {
			t.Errorf("the file is still there: %v", err)
		}
	}
	if os.Geteuid() != 0 || unix.Access(dir, unix.W_OK) != nil {
		t.Error("the worker's rights stayed with this process")
	}
}

// A handoff may cross the closing of its listener. Who has listened again by the time
// that it is answered is served on; who has not is out.
func TestClosedCrossesListeningAgain(t *testing.T) {
	for _, again := range []bool{true, false} {
		s := newStepped(t, Config{Configured: true})
		ln := s.listen("web")
		p := s.serving(ln)
		s.connect(ln, 1)
		s.settle()
		p.mustGet(1)
		p.say(handoff.Frame{Type: handoff.Leave, Listener: ln.wire})
		if again {
			p.ask(2, ln.network, ln.conf.Name, 0)
		}
		p.answer(1, handoff.Reject, handoff.ReasonClosed)
		s.settle()
		if again {
			p.mustGet(1)
			p.ack(1)
		} else if n := len(p.hear()); n > 0 {
			t.Errorf("the worker has left, and is given %d", n)
		}
		s.lawful()
	}
}

// Who rejects with closed what was handed over after it had listened is out, too.
func TestClosedWithoutLeaving(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	p := s.serving(ln)
	s.connect(ln, 1)
	s.settle()
	p.mustGet(1)
	p.answer(1, handoff.Reject, handoff.ReasonClosed)
	s.settle()
	if n := len(p.hear()); n > 0 {
		t.Errorf("it is given %d", n)
	}
}

// successor is a worker that serves a listener it has asked for, and another in its slot
// that has asked for the same.
func (s *stepped) successor() (old, succ *peer, ln *listener) {
	s.Helper()
	addr := freePort(s.TB)
	old = s.peer()
	old.ask(1, "tcp", addr, 0)
	ln = s.byAddress(old.answered(1))
	old.say(readyFrame)
	s.settle()
	succ = s.peer()
	succ.k.slot = old.k.slot
	succ.ask(1, "tcp", addr, 0)
	succ.answered(1)
	return old, succ, ln
}

// A successor that fails does not take the listener from the one that still serves it.
func TestFailedSuccessorLeavesTheAskedListener(t *testing.T) {
	for _, ready := range []bool{false, true} {
		s := newStepped(t, Config{})
		old, succ, ln := s.successor()
		if ready {
			succ.say(readyFrame)
			s.settle()
		}
		succ.die(Removal{Blame: true})
		s.settle()
		if ln.closing || len(ln.sockets()) == 0 {
			t.Errorf("ready=%v: the listener of the serving worker is closed", ready)
			continue
		}
		s.connect(ln, 1)
		s.settle()
		old.mustGet(1)
	}
}

// The old one drains, and its successor dies: the slot will get another, for which the listener stays.
func TestDeathBesideADrainingPredecessor(t *testing.T) {
	s := newStepped(t, Config{})
	old, succ, ln := s.successor()
	succ.say(readyFrame)
	s.settle()
	s.l.drain(old.id)
	s.settle()
	s.client(ln)
	s.settle()
	succ.mustGet(1)
	succ.die(Removal{Blame: true})
	s.settle()
	if ln.closing || len(ln.sockets()) == 0 {
		t.Errorf("the listener is closed although the slot gets a successor; dropped %v", ln.stats.Dropped)
	}
}

// A closed listener of the same name that still has connections is not what a worker means.
func TestResolveSkipsTheClosed(t *testing.T) {
	s := newStepped(t, Config{Configured: true, RescueLimit: 10})
	ln := s.listen("web")
	p := s.touching(ln)
	s.client(ln) // acked and not touched: its copy is kept
	s.settle()
	p.mustGet(1)
	p.ackOnly()
	ln.unwanted = true
	s.l.startClosing(ln)
	s.until("it is closed", func() bool { return len(ln.sockets()) == 0 })
	next := s.open(ListenerConfig{Name: "web", Network: "tcp4", Address: "127.0.0.1:0", UID: -1, GID: -1})
	q := s.peer()
	for i, address := range []string{"web", "127.0.0.1:4711"} { // the latter: the only one
		q.ask(uint64(i+1), "tcp", address, 0)
		f := q.answered(uint64(i + 1))
		if f.Arg != 0 || f.Listener != next.wire {
			t.Errorf("%s: errno %d, listener %d, want %d: %s", address, f.Arg, f.Listener, next.wire, f.Payload)
		}
	}
}

// A second slot's bind fails after the first slot's worker has left.
func TestUnusedAfterAFailedBind(t *testing.T) {
	s := newStepped(t, Config{Policy: SchedReuseport})
	addr := freePort(t)
	a := s.peer()
	a.ask(1, "tcp", addr, 0)
	f := a.answered(1)
	ln := s.byAddress(f)
	b := s.peer()
	ak := s.l.asked[ln.asked.key]
	ak.waiting = append(ak.waiting, asker{k: b.k, r: &request{seq: 1, network: "tcp", address: addr}}) // its bind is under way
	a.say(handoff.Frame{Type: handoff.Leave, Listener: ln.wire})
	s.step()
	s.l.bound(ak.key, b.k, s.l.closes, nil, os.NewSyscallError("socket", syscall.EMFILE))
	s.step()
	if !ln.closing && len(ln.sockets()) > 0 {
		t.Error("open for good, and nobody uses it")
	}
}
