package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

func at(network, address string) ListenerConfig {
	return ListenerConfig{Name: address, Network: network, Address: address, UID: -1, GID: -1}
}

func TestCovers(t *testing.T) {
	for _, tt := range []struct {
		wide, narrow ListenerConfig
		covers       bool
	}{
		{at("tcp", ":80"), at("tcp4", "127.0.0.1:80"), true},
		{at("tcp", ":80"), at("tcp6", "[::1]:80"), true},
		{at("tcp", ":80"), at("tcp4", "0.0.0.0:80"), true},
		{at("tcp4", "0.0.0.0:80"), at("tcp4", "127.0.0.1:80"), true},
		{at("tcp4", "0.0.0.0:80"), at("tcp6", "[::1]:80"), false},
		{at("tcp4", "0.0.0.0:80"), at("tcp", ":80"), false},
		{at("tcp4", "127.0.0.1:80"), at("tcp", ":80"), false},
		{at("tcp4", "127.0.0.1:80"), at("tcp4", "127.0.0.1:80"), false},
		{at("tcp", ":80"), at("tcp", ":80"), false},
		{at("tcp", ":80"), at("tcp4", "127.0.0.1:81"), false},
		{at("tcp", ":80"), at("udp4", "127.0.0.1:80"), false},
		{at("tcp", ":80"), at("unix", "/tmp/x"), false},
	} {
		if got := Covers(tt.wide, tt.narrow); got != tt.covers {
			t.Errorf("%s covers %s: %v", tt.wide.Address, tt.narrow.Address, got)
		}
	}
}

// overlapping are pairs of addresses that exclude each other, for one port.
var overlapping = [][2][2]string{
	{{"tcp", ":%s"}, {"tcp4", "127.0.0.1:%s"}},
	{{"tcp4", "127.0.0.1:%s"}, {"tcp", ":%s"}},
	{{"tcp4", "0.0.0.0:%s"}, {"tcp", ":%s"}},
	{{"tcp", ":%s"}, {"tcp4", "0.0.0.0:%s"}},
	{{"tcp4", "127.0.0.1:%s"}, {"tcp4", "0.0.0.0:%s"}},
	{{"udp", ":%s"}, {"udp4", "127.0.0.1:%s"}},
}

// An address that overlaps one of ours is ours to bind, if that one is to go. Afterwards no
// socket has SO_REUSEPORT, and no other process can join the port.
func TestListenBeside(t *testing.T) {
	for _, pair := range overlapping {
		t.Run(pair[0][0]+pair[0][1]+" to "+pair[1][1], func(t *testing.T) {
			s := newStepped(t, Config{Configured: true})
			old := s.open(at(pair[0][0], fmt.Sprintf(pair[0][1], widePort(t))))
			_, port, _ := net.SplitHostPort(old.addr)
			next := at(pair[1][0], fmt.Sprintf(pair[1][1], port))
			beside := func(leaving ...ListenerConfig) error {
				done := make(chan error, 1)
				go func() { // received below
					if len(leaving) > 0 {
						if err := s.d.TryBeside(next, leaving); err != nil {
							t.Errorf("try: %v", err)
						}
					}
					_, err := s.d.ListenBeside(next, leaving)
					done <- err
				}()
				var err error
				s.until("it listens", func() bool {
					select {
					case err = <-done:
						return true
					default:
						return false
					}
				})
				return err
			}
			old.conf.Address = old.addr // port 0 is resolved
			if err := beside(); !errors.Is(err, syscall.EADDRINUSE) {
				t.Fatalf("with nothing leaving: %v", err)
			}
			if err := beside(old.conf); err != nil {
				t.Fatal(err)
			}
			for _, ln := range s.l.listeners {
				if v, err := unix.GetsockoptInt(ln.sock.fd.Num(), unix.SOL_SOCKET, unix.SO_REUSEPORT); err != nil || v != 0 {
					t.Errorf("%s has SO_REUSEPORT %d, %v", ln.addr, v, err)
				}
			}
			if !maySeal() {
				t.Skip("without CAP_NET_ADMIN a wildcard address cannot be sealed")
			}
			for _, address := range []string{"127.0.0.1", "0.0.0.0", "[::]"} {
				network := "tcp"
				if old.sock.packet() {
					network = "udp"
				}
				if o, err := bindSocket(network, address+":"+port, bindOptions{reuseport: true}); err == nil {
					t.Errorf("another process can listen at %s:%s", address, port)
					_ = o.close()
				}
			}
		})
	}
}

// If another process has the port too, the address is taken, and nothing is left behind.
func TestListenBesideAStranger(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	old := s.open(at("tcp4", "127.0.0.1:"+widePort(t)))
	_, port, _ := net.SplitHostPort(old.addr)
	stranger, err := net.Listen("tcp4", "127.0.0.2:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	done := make(chan error, 1)
	go func() { // received below
		_, err := s.d.ListenBeside(at("tcp", ":"+port), []ListenerConfig{old.conf})
		done <- err
	}()
	s.until("it has failed", func() bool { return len(done) > 0 })
	if err := <-done; !errors.Is(err, syscall.EADDRINUSE) {
		t.Error(err)
	}
	if v, err := unix.GetsockoptInt(old.sock.fd.Num(), unix.SOL_SOCKET, unix.SO_REUSEPORT); err != nil || v != 0 {
		t.Errorf("SO_REUSEPORT is %d, %v", v, err)
	}
}

// overlap opens two listeners of one port, of which the first is to go.
func (s *stepped) overlap(old, next [2]string) (leaving, coming *listener) {
	s.Helper()
	leaving = s.open(at(old[0], fmt.Sprintf(old[1], "0")))
	leaving.conf.Address = leaving.addr
	_, port, _ := net.SplitHostPort(leaving.addr)
	done := make(chan error, 1)
	go func() { // received below
		_, err := s.d.ListenBeside(at(next[0], fmt.Sprintf(next[1], port)), []ListenerConfig{leaving.conf})
		done <- err
	}()
	s.until("both listen", func() bool { return len(done) > 0 })
	if err := <-done; err != nil {
		s.Fatal(err)
	}
	return leaving, s.l.listeners[leaving.id+1]
}

// dial connects to loopback at ln's port.
func (s *stepped) dial(ln *listener) {
	s.Helper()
	_, port, _ := net.SplitHostPort(ln.addr)
	local := *ln
	local.addr = "127.0.0.1:" + port
	s.client(&local)
}

// The narrower socket gets the clients. Whichever generation has workers takes them: those
// of the wider listener have it under the number that they know.
func TestWorkersOfTheWiderListenerServeTheNarrower(t *testing.T) {
	wide, narrow := [2]string{"tcp", ":%s"}, [2]string{"tcp4", "127.0.0.1:%s"}
	for name, tt := range map[string]struct {
		old, next [2]string
		worker    func(leaving, coming *listener) *listener
	}{
		"narrow to wide": {narrow, wide, func(_, coming *listener) *listener { return coming }},
		"wide to narrow": {wide, narrow, func(leaving, _ *listener) *listener { return leaving }},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStepped(t, Config{Configured: true, Window: 1})
			leaving, coming := s.overlap(tt.old, tt.next)
			of := tt.worker(leaving, coming)
			p := s.serving(of)
			s.dial(of)
			s.settle()
			p.mustGet(1)
			p.reject(1)
			p.again(of)
			s.settle()
			p.mustGet(1)
			p.ack(1)
			s.settle()
			s.dial(of)
			s.settle()
			p.mustGet(2)
			p.ack(1)
			s.settle()
			p.say(handoff.Frame{Type: handoff.Leave, Listener: of.wire})
			s.settle()
			s.dial(of)
			s.settle()
			p.mustGet()
		})
	}
}

// When the narrower listener closes, a client that waits in it is served, and the next client
// reaches the wider one.
func TestTheNarrowerListenerCloses(t *testing.T) {
	s := newStepped(t, Config{Configured: true, Window: 4})
	leaving, coming := s.overlap([2]string{"tcp4", "127.0.0.1:%s"}, [2]string{"tcp", ":%s"})
	p := s.serving(coming)
	s.dial(coming)
	leaving.unwanted = true
	s.l.startClosing(leaving)
	s.until("it is closed", func() bool { return len(leaving.sockets()) == 0 })
	s.dial(coming)
	s.settle()
	p.mustGet(1, 2)
	if st := s.stats(coming.conf.Name); st.Accepted != 1 {
		t.Errorf("%+v", st)
	}
	p.ack(2)
	s.settle()
}

// When the wider listener closes, its workers are given nothing of the narrower one.
func TestTheWiderListenerCloses(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	leaving, coming := s.overlap([2]string{"tcp", ":%s"}, [2]string{"tcp4", "127.0.0.1:%s"})
	old := s.serving(leaving)
	s.l.startClosing(leaving)
	s.until("it is closed", func() bool { return len(leaving.sockets()) == 0 })
	s.dial(coming)
	s.settle()
	old.mustGet()
	p := s.serving(coming) // it has heard of the client
	if len(p.has) != 1 {
		t.Fatalf("the new worker has %d clients", len(p.has))
	}
	p.ack(1)
	s.settle()
}

// A shared socket that was stopped is shut down when it closes, although a worker holds it:
// the next client reaches the wider listener.
func TestAStoppedListenerIsShutDown(t *testing.T) {
	s := newStepped(t, Config{Configured: true, Policy: SchedNone})
	leaving, coming := s.overlap([2]string{"tcp4", "127.0.0.1:%s"}, [2]string{"tcp", ":%s"})
	held, err := leaving.sock.fd.Dup() // as a worker has it
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close() //nolint:errcheck // a duplicate
	done := make(chan error, 1)
	go func() { // received below
		err := s.d.StopListener(context.Background(), leaving.conf.Name, leaving.conf.Address)
		if err == nil {
			err = s.d.CloseListener(context.Background(), leaving.conf.Name, leaving.conf.Address)
		}
		done <- err
	}()
	s.until("it is closed", func() bool { return len(done) > 0 })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s.until("it is shut down", func() bool { return isDead(held) })
	s.dial(coming)
	if !isReadable(coming.sock.fd) {
		t.Error("the client did not reach the wider listener")
	}
}

// A successor may ask for an address that overlaps the one that its predecessor asked for.
// Its workers serve both, also across an upgrade in place, and no client is dropped when the
// narrower one goes.
func TestASuccessorAsksForAWiderAddress(t *testing.T) {
	s := newStepped(t, Config{Window: 4})
	old := s.peer()
	old.ask(1, "tcp", "127.0.0.1:"+widePort(t), 0)
	narrow := s.byAddress(old.answered(1))
	old.say(readyFrame)
	s.settle()
	_, port, _ := net.SplitHostPort(narrow.addr)
	next := s.peer()
	next.k.slot = old.k.slot
	next.ask(1, "tcp", ":"+port, 0)
	f := next.answered(1)
	if f.Arg != 0 {
		t.Fatalf("refused: %s", f.Payload)
	}
	wide := s.byAddress(f)
	next.say(readyFrame)
	s.settle()
	for range 2 { // it asks for nothing more
		s.pass(900 * time.Millisecond)
		s.settle()
	}
	s.l.setReplaced(old.id, true)
	s.dial(wide)
	s.settle()
	old.mustGet()
	next.mustGet(1)
	next.ack(1)
	s.upgrade(old, next)
	narrow, wide = s.l.byWire[narrow.wire], s.l.byWire[wide.wire]
	s.dial(wide)
	s.settle()
	next.mustGet(2)
	next.ack(1)
	s.l.drain(old.id)
	s.settle()
	old.die(Removal{})
	s.until("the narrower one is closed", func() bool { return len(narrow.sockets()) == 0 })
	s.dial(wide)
	s.settle()
	next.mustGet(3)
	next.ack(1)
	s.settle()
	for _, ln := range s.l.copyStats().Listeners {
		if ln.Dropped != [NumDropReasons]uint64{} {
			t.Errorf("dropped: %+v", ln)
		}
	}
}

// An address that overlaps one which a worker of another slot has asked for is taken, as it
// is for any program.
func TestAnotherSlotAsksForAWiderAddress(t *testing.T) {
	s := newStepped(t, Config{})
	a := s.peer()
	a.ask(1, "tcp", "127.0.0.1:0", 0)
	ln := s.byAddress(a.answered(1))
	a.say(readyFrame)
	s.settle()
	_, port, _ := net.SplitHostPort(ln.addr)
	b := s.peer()
	b.ask(1, "tcp", ":"+port, 0)
	s.settle()
	s.until("it is answered", func() bool { s.pass(900 * time.Millisecond); b.hear(); return b.last(handoff.Listening) != nil })
	if f := b.last(handoff.Listening); syscall.Errno(f.Arg) != syscall.EADDRINUSE {
		t.Errorf("%v %s", syscall.Errno(f.Arg), f.Payload)
	}
}
