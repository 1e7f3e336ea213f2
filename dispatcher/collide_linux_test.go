package dispatcher

import (
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// granted asks and returns the listener that the worker gets.
func (p *peer) granted(seq uint64, network, address string) *listener {
	p.Helper()
	p.ask(seq, network, address, 0)
	return p.byAddress(p.answered(seq))
}

func (p *peer) leave(ln *listener) {
	p.say(handoff.Frame{Type: handoff.Leave, Listener: ln.wire})
}

// A program tries a port and then listens there, without a pause.
func TestABindWaitsForAListenerThatCloses(t *testing.T) {
	for _, tt := range []struct{ name, network, first, then string }{
		{"another address", "tcp", "127.0.0.1:PORT", "0.0.0.0:PORT"},
		{"the same again", "tcp", "127.0.0.1:PORT", "127.0.0.1:PORT"},
		{"the port of listen(0)", "tcp", "127.0.0.1:0", "127.0.0.1:PORT"},
		{"another family", "tcp", "0.0.0.0:PORT", "[::]:PORT"},
		{"UDP", "udp", "0.0.0.0:PORT", "127.0.0.1:PORT"},
		{"UDP, the port of bind(0)", "udp", "127.0.0.1:0", "127.0.0.1:PORT"},
		{"an abstract unix socket", "unix", "@rrd-test-collide-" + freePort(t), ""},
	} {
		s := newStepped(t, Config{})
		_, port, _ := net.SplitHostPort(freePort(t))
		at := func(address string) string {
			if len(address) > 5 && address[len(address)-4:] == "PORT" {
				return address[:len(address)-4] + port
			}
			return address
		}
		p, other := s.peer(), s.peer()
		ln := p.granted(1, tt.network, at(tt.first))
		if tt.network != "unix" {
			_, port, _ = net.SplitHostPort(ln.addr)
		} else {
			tt.then = tt.first
		}
		p.leave(ln)
		p.ask(2, tt.network, at(tt.then), 0)
		other.ask(2, tt.network, at(tt.then), 0) // while that waits
		if got := p.answered(2); got.Arg != 0 {
			t.Errorf("%s: %v %s", tt.name, syscall.Errno(got.Arg), got.Payload)
		} else if got.Listener == ln.wire {
			t.Errorf("%s: it has the listener that it left", tt.name)
		}
		if got := other.answered(2); got.Arg != 0 {
			t.Errorf("%s: the other one gets %v", tt.name, syscall.Errno(got.Arg))
		}
	}
}

// Workers try a port in step: the first one waits until the others have closed it, but
// not for ever, and never for itself or for a stranger.
func TestABindWaitsForOtherWorkers(t *testing.T) {
	s := newStepped(t, Config{})
	a, b := s.peer(), s.peer()
	loopback := "127.0.0.1:" + widePort(t)
	ln := a.granted(1, "tcp", loopback)
	b.ask(1, "tcp", loopback, 0)
	b.answered(1)
	_, port, _ := net.SplitHostPort(ln.addr)

	a.ask(2, "tcp", "0.0.0.0:"+port, 0) // has it itself
	if f := a.answered(2); syscall.Errno(f.Arg) != unix.EADDRINUSE {
		t.Errorf("its own address: %v", syscall.Errno(f.Arg))
	}
	a.leave(ln)
	a.ask(3, "tcp", "0.0.0.0:"+port, 0)
	s.until("the bind has failed", func() bool { return s.l.giveUpAt != 0 })
	b.leave(ln)
	wide := s.byAddress(a.answered(3))

	c := s.peer()
	c.ask(4, "tcp", "127.0.0.1:"+port, 0)
	s.until("the bind has failed", func() bool { return s.l.giveUpAt != 0 })
	s.pass(time.Duration(stepWait))
	if f := c.answered(4); syscall.Errno(f.Arg) != unix.EADDRINUSE || s.l.giveUpAt != 0 {
		t.Errorf("after %v: %v", time.Duration(stepWait), syscall.Errno(f.Arg))
	}
	if s.l.asked["tcp|127.0.0.1:"+port] != nil {
		t.Error("the failed address is not forgotten")
	}
	c.ask(5, "tcp", "127.0.0.1:"+port, 0)
	s.until("the bind has failed", func() bool { return s.l.giveUpAt != 0 })
	c.die(Removal{})
	a.leave(wide)
	s.until("all is closed", func() bool { return s.l.closing == 0 && len(s.l.asked) == 0 })
}

// Who asks for the port that listen(0) has given shares it with the workers that still
// have it.
func TestThePortOfListenZeroIsShared(t *testing.T) {
	s := newStepped(t, Config{})
	a, b := s.peer(), s.peer()
	ln := a.granted(1, "tcp", ":0")
	b.ask(1, "tcp", ":0", 0)
	b.answered(1)
	_, port, _ := net.SplitHostPort(ln.addr)
	a.leave(ln)
	if got := a.granted(2, "tcp", ":"+port); got != ln {
		t.Errorf("got %s %s, want the open one", got.network, got.addr)
	}
	b.leave(ln)
	s.settle()
	if ln.closing {
		t.Fatal("it closes, and a worker has it")
	}
	if got := b.granted(2, "tcp", ":"+port); got != ln {
		t.Errorf("got %s %s, want the open one", got.network, got.addr)
	}
	a.ask(3, "tcp", ":"+port, 0) // has it already
	if f := a.answered(3); syscall.Errno(f.Arg) != unix.EADDRINUSE {
		t.Errorf("twice in one worker: %v", syscall.Errno(f.Arg))
	}
}
