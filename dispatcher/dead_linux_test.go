package dispatcher

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"rrd/dispatcher/internal/aside"
	"rrd/handoff"
)

// shutDown ends a listening socket for all that have it.
func shutDown(t testing.TB, fd handoff.FD) {
	t.Helper()
	if err := unix.Shutdown(fd.Num(), unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
}

// disconnect is connect(2) with AF_UNSPEC.
func disconnect(t testing.TB, fd handoff.FD) {
	t.Helper()
	var sa unix.RawSockaddrAny // family AF_UNSPEC
	if _, _, errno := syscall.Syscall(unix.SYS_CONNECT, uintptr(fd.Num()), uintptr(unsafe.Pointer(&sa)), 16); errno != 0 {
		t.Fatal(errno)
	}
}

// lookShared has the loop look at the shared listeners, until ok.
func (s *stepped) lookShared(what string, ok func() bool) {
	s.Helper()
	s.pass(time.Duration(ignoredEvery))
	s.until(what, ok)
}

// served accepts a client through a worker's descriptor.
func (s *stepped) acceptedBy(fd handoff.FD, ln *listener) {
	s.Helper()
	s.client(ln)
	d, errno := accept(fd.Num())
	if errno != 0 {
		s.Fatal(errno)
	}
	_ = d.Close()
}

// Every worker's descriptor works again.
func TestAShutDownListenerListensAgain(t *testing.T) {
	for name, harm := range map[string]func(testing.TB, handoff.FD){"shutdown": shutDown, "connect": disconnect} {
		t.Run(name, func(t *testing.T) {
			s := newStepped(t, Config{Policy: SchedNone, Configured: true})
			ln := s.open(ListenerConfig{Name: "web", Network: "tcp4", Address: freePort(t), UID: -1, GID: -1})
			a, b := s.peer(), s.peer()
			fa, fb := a.join("tcp", "web"), b.join("tcp", "web")
			defer fa.Close()
			defer fb.Close()
			for i := range 2 {
				harm(t, fa)
				s.lookShared("it listens again", func() bool { return !ln.sock.isDead() })
				s.until("the helper has answered", func() bool { return s.l.revivals.busy == 0 })
				s.step()
				if i == 0 {
					s.mustHear("rearmed web 1 times, replaced=false: a process that shares its socket has shut it down")
				}
				s.acceptedBy(fb, ln)
			}
			if n := s.stats("web").Rearmed; n != 2 {
				t.Errorf("counted %d", n)
			}
			if n := s.times("rearmed"); n != 1 {
				t.Errorf("told %d times within a second", n)
			}
		})
	}
}

// It is found at the death of the worker that has done it, without a wait for a look.
func TestAShutDownListenerIsFoundAtADeath(t *testing.T) {
	s := newStepped(t, Config{Policy: SchedNone, Configured: true})
	ln := s.open(ListenerConfig{Name: "web", Network: "tcp4", Address: freePort(t), UID: -1, GID: -1})
	a := s.peer()
	fa := a.join("tcp", "web")
	shutDown(t, fa)
	_ = fa.Close()
	a.die(Removal{})
	s.until("it listens again", func() bool { return s.heard("rearmed web") })
	s.client(ln)
}

// A port that the kernel has chosen is given up with the shutdown, and a unix socket stays
// shut down: a new socket takes the address.
func TestAShutDownListenerIsReplaced(t *testing.T) {
	for network, address := range map[string]string{"tcp4": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "s")} {
		t.Run(network, func(t *testing.T) {
			s := newStepped(t, Config{Policy: SchedNone, Configured: true})
			ln := s.open(ListenerConfig{Name: "web", Network: network, Address: address, UID: -1, GID: -1})
			a := s.peer()
			fa := a.join(strings.TrimRight(network, "4"), "web")
			defer fa.Close()
			if err := unix.Shutdown(fa.Num(), unix.SHUT_RD); err != nil {
				t.Fatal(err)
			}
			s.lookShared("it is replaced", func() bool { return s.heard("rearmed") })
			s.mustHear("rearmed web 1 times, replaced=true: a process that shares its socket has shut it down")
			b := s.peer()
			fb := b.join(strings.TrimRight(network, "4"), "web")
			defer fb.Close()
			s.acceptedBy(fb, ln)
		})
	}
}

// helped is run with helpers, each a goroutine.
func helped(t *testing.T, cfg Config) *running {
	t.Helper()
	var r *running
	var helpers sync.WaitGroup
	t.Cleanup(helpers.Wait) // after Close, with which they end
	cfg.Hooks.HelperWanted = func() {
		socket, child, err := HelperPair()
		if err != nil {
			t.Error(err)
			return
		}
		n, err := unix.FcntlInt(child.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		_ = child.Close()
		if err != nil {
			t.Error(err)
			return
		}
		end := handoff.Own(n)
		helpers.Go(func() {
			aside.Serve(end)
			_ = end.Close()
		})
		if err := r.AddHelper(1, socket); err != nil {
			t.Error(err)
		}
	}
	r = run(t, cfg)
	return r
}

// A worker's start waits for its socket.
func TestLendGivesAListeningSocket(t *testing.T) {
	for _, policy := range []Policy{SchedNone, SchedReuseport} {
		r := helped(t, Config{Policy: policy, Configured: true})
		r.open(ListenerConfig{Name: "web", Network: "tcp4", Address: freePort(t), UID: -1, GID: -1})
		for range 3 {
			lent, err := r.Lend(0)
			if err != nil || len(lent) != 1 {
				t.Fatal(lent, err)
			}
			fd := int(lent[0].File.Fd())
			if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
				t.Errorf("%s: lent a socket that does not listen: %v", policy, err)
			}
			_ = unix.Shutdown(fd, unix.SHUT_RDWR)
			_ = lent[0].File.Close()
		}
	}
}

func TestADeadInheritedSocketIsUnreachable(t *testing.T) {
	s := newStepped(t, Config{Policy: SchedNone, Configured: true})
	outer, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer outer.Close()
	f, err := outer.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	sock, err := inherited(f)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := s.l.open(ListenerConfig{Name: "web", Network: "fd", Address: "3"}, sock, nil)
	if err != nil {
		t.Fatal(err)
	}
	shutDown(t, ln.sock.fd)
	for range 3 {
		s.lookShared("it is told", func() bool { return s.heard("unreachable web") })
	}
	s.mustHear("unreachable web: a process that shares its socket has shut it down: restart the service")
	s.lookAgain() // that its file is there does not help
	if n := s.times("unreachable"); n != 1 || s.stats("web").Unreachable == "" {
		t.Errorf("told %d times: %v", n, s.told)
	}
}

// Another process is faster and has the port: it is told, and tried again.
func TestADeadListenerWhosePortIsTaken(t *testing.T) {
	s := newStepped(t, Config{Policy: SchedNone, Configured: true})
	ln := s.listen("web")
	a := s.peer()
	fa := a.join("tcp", "web")
	defer fa.Close()
	shutDown(t, fa)
	other, err := net.Listen("tcp", ln.addr)
	if err != nil {
		t.Fatal(err)
	}
	s.lookShared("it is told", func() bool { return s.heard("unreachable web") })
	s.mustHear("unreachable web: a process that shares its socket has shut it down, and its address cannot be bound again: bind: address already in use")
	_ = other.Close()
	s.pass(time.Duration(reviveRetry))
	s.until("it is replaced", func() bool { return s.heard("rearmed web") })
	if why := s.stats("web").Unreachable; why != "" {
		t.Errorf("still unreachable: %s", why)
	}
	s.client(ln)
}

func TestADeadDatagramSocketIsUnreachable(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.open(ListenerConfig{Name: "dns", Network: "udp4", Address: "127.0.0.1:0", UID: -1, GID: -1})
	if err := unix.Shutdown(ln.sock.fd.Num(), unix.SHUT_RD); err != unix.ENOTCONN {
		t.Fatal(err)
	}
	s.lookShared("it is told", func() bool { return s.heard("unreachable dns") })
}

// dropAll is a socket filter.
func dropAll(t testing.TB, fd handoff.FD, option int, verdict uint32) {
	t.Helper()
	prog := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: verdict}}
	if err := unix.SetsockoptSockFprog(fd.Num(), unix.SOL_SOCKET, option, &unix.SockFprog{Len: 1, Filter: &prog[0]}); err != nil {
		t.Fatal(err)
	}
}

func TestAFilterOfAWorkerIsRemoved(t *testing.T) {
	s := newStepped(t, Config{Policy: SchedNone, Configured: true})
	ln := s.listen("web")
	a := s.peer()
	fa := a.join("tcp", "web")
	defer fa.Close()
	s.lookShared("it was looked", func() bool { return s.l.aside.Quiet() })
	if s.heard("filtered") {
		t.Fatalf("there was none: %v", s.told)
	}
	dropAll(t, fa, unix.SO_ATTACH_FILTER, 0)
	s.lookShared("it is removed", func() bool { return s.heard("filtered web 1 times: socket") })
	s.acceptedBy(fa, ln)
	if st := s.stats("web"); st.Filters != [NumFilterKinds]uint64{1, 0} {
		t.Errorf("counted %v", st.Filters)
	}
}

func TestAReuseportProgramOfAWorkerIsRemoved(t *testing.T) {
	s, ln, _ := twoSlots(t)
	a := s.peer()
	fa := a.join("tcp", "web")
	defer fa.Close()
	dropAll(t, fa, unix.SO_ATTACH_REUSEPORT_CBPF, 0)
	s.lookShared("it is removed", func() bool { return s.heard("filtered web 1 times: reuseport") })
	if st := s.stats(ln.conf.Name); st.Filters[ReuseportProgram] != 1 {
		t.Errorf("counted %v", st.Filters)
	}
}

// A filter that is locked cannot be removed: the socket is replaced.
func TestALockedFilterTakesANewSocket(t *testing.T) {
	s := newStepped(t, Config{Policy: SchedNone, Configured: true})
	ln := s.open(ListenerConfig{Name: "web", Network: "tcp4", Address: freePort(t), UID: -1, GID: -1})
	a := s.peer()
	fa := a.join("tcp", "web")
	defer fa.Close()
	dropAll(t, fa, unix.SO_ATTACH_FILTER, 0)
	if err := unix.SetsockoptInt(fa.Num(), unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 1); err != nil {
		t.Fatal(err)
	}
	s.lookShared("it is replaced", func() bool { return s.heard("rearmed") })
	s.mustHear("rearmed web 1 times, replaced=true: a process that shares its socket has locked a socket filter on it")
	b := s.peer()
	fb := b.join("tcp", "web")
	defer fb.Close()
	s.acceptedBy(fb, ln)
}

// The filter that turns clients away at the end is rrd's own.
func TestOurOwnFilterStays(t *testing.T) {
	for _, how := range []string{"closing", "stopped"} {
		t.Run(how, func(t *testing.T) {
			s := newStepped(t, Config{Policy: SchedNone, Configured: true})
			ln := s.listen("web")
			s.client(ln) // holds up the end
			if how == "closing" {
				s.l.startClosing(ln)
			} else {
				ctx, cancel := context.WithCancel(t.Context())
				stopped := make(chan error, 1)
				go func() { stopped <- s.d.StopListener(ctx, ln.conf.Name, ln.conf.Address) }() // received below
				defer func() {
					cancel()
					s.until("the stop has ended", func() bool { return len(stopped) > 0 })
				}()
				s.until("it is asked for", func() bool { return ln.stopped })
			}
			for range 3 {
				s.pass(time.Duration(ignoredEvery) / 4)
				s.step()
				s.l.lookForIgnored()
			}
			s.until("the helper has answered", func() bool { return s.l.aside.Quiet() })
			if s.heard("filtered") {
				t.Errorf("our own filter was taken for one of a worker: %v", s.told)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			var dialer net.Dialer
			if c, err := dialer.DialContext(ctx, "tcp", ln.addr); err == nil || !os.IsTimeout(err) && !strings.Contains(err.Error(), "deadline") {
				if c != nil {
					_ = c.Close()
				}
				t.Errorf("a new client: %v", err)
			}
		})
	}
}

// The process that has opened an inherited socket may have attached a filter.
func TestAFilterOfAnInheritedSocketStays(t *testing.T) {
	for _, filtered := range []bool{true, false} {
		s := newStepped(t, Config{Policy: SchedNone, Configured: true})
		var lc net.ListenConfig
		lc.SetMultipathTCP(false) // it takes no filter
		outer, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		f, err := outer.(*net.TCPListener).File()
		_ = outer.Close()
		if err != nil {
			t.Fatal(err)
		}
		const passAll = 0xffffffff
		if filtered {
			dropAll(t, handoff.Own(int(f.Fd())), unix.SO_ATTACH_FILTER, passAll)
		}
		sock, err := inherited(f)
		if err != nil {
			t.Fatal(err)
		}
		ln, err := s.l.open(ListenerConfig{Name: "web", Network: "fd", Address: "3"}, sock, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !filtered {
			dropAll(t, ln.sock.fd, unix.SO_ATTACH_FILTER, passAll)
		}
		s.pass(time.Duration(ignoredEvery))
		s.step()
		s.until("the helper has answered", func() bool { return s.l.aside.Quiet() && !ln.sock.probing })
		s.step()
		if s.heard("filtered") == filtered {
			t.Errorf("there before: %v, told: %v", filtered, s.told)
		}
	}
}

// A socket that closes while a helper is at it is no longer counted, and the answer that
// comes later counts for nothing.
func TestAListenerClosesWhileItIsRevived(t *testing.T) {
	s := newStepped(t, Config{Policy: SchedNone, Configured: true, HangTimeout: hangIn})
	s.hangingHelper()
	ln := s.open(ListenerConfig{Name: "web", Network: "tcp4", Address: freePort(t), UID: -1, GID: -1})
	shutDown(t, ln.sock.fd)
	s.l.reviveAll()
	s.until("a helper is at it", func() bool { return s.l.aside.Fresh(s.l.now) })
	s.l.startClosing(ln)
	s.pass(time.Duration(closeWait))
	s.rest()
	if len(ln.sockets()) > 0 || s.l.revivals.busy != 0 {
		t.Errorf("%d sockets, %d are revived", len(ln.sockets()), s.l.revivals.busy)
	}
	s.run(hangIn)
	s.mustHear("useless 1")
	if s.l.revivals.busy != 0 {
		t.Errorf("%d are revived after the answer", s.l.revivals.busy)
	}
}
