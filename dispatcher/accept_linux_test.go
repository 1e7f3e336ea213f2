package dispatcher

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/dispatcher/internal/aside"
)

// outOfDescriptors runs fn while this process may open none. Nothing else may
// run meanwhile: the stepped loop is this goroutine.
func outOfDescriptors(t *testing.T, fn func()) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &was); err != nil {
		t.Fatal(err)
	}
	low := unix.Rlimit{Cur: 0, Max: was.Max}
	if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &low, nil); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Prlimit(0, unix.RLIMIT_NOFILE, &was, nil); err != nil {
			t.Fatal(err)
		}
	}()
	fn()
}

func TestOutOfDescriptorsPausesAndResumes(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	p := s.serving(ln)
	s.connect(ln, 3)
	outOfDescriptors(t, func() {
		s.step()
		want := pauseMin
		for range 9 {
			if s.l.pause != want || !s.stats("web").Paused {
				t.Fatalf("pause %v, want %v; %+v", s.l.pause, want, s.stats("web"))
			}
			if look(s.d.poll.ep, unix.POLLIN) != 0 {
				t.Fatal("the listener is still watched: the loop spins")
			}
			s.pass(s.l.pause)
			s.step() // looks again from the next turn on
			s.step()
			want = min(2*want, pauseMax)
		}
	})
	if st := s.stats("web"); st.AcceptErrors[AcceptEMFILE] != 10 || st.Pauses[PauseFDLimit] != 10 || st.Accepted != 0 {
		t.Errorf("%+v", st)
	}
	if n := s.times("paused web"); n == 0 || n > 3 {
		t.Errorf("told %d times of %v", n, s.told)
	}
	s.pass(pauseMax)
	s.settle()
	p.mustGet(1, 2, 3)
	if s.l.pause != 0 {
		t.Errorf("the next pause begins at %v", 2*s.l.pause)
	}
}

func TestAFullQueueStopsAcceptingAndResumes(t *testing.T) {
	s := newStepped(t, Config{Configured: true, QueueLimit: 16})
	a, b := s.listen("a"), s.listen("b")
	s.connect(a, 40)
	s.connect(b, 5)
	s.settle()
	sa, sb := s.stats("a"), s.stats("b")
	if sa.Accepted+sb.Accepted != 16 || !sa.Paused || sa.Pauses[PauseQueueFull] != 1 {
		t.Fatalf("%+v %+v", sa, sb)
	}
	if sa.KernelKnown && sa.KernelQueue+sb.KernelQueue != 45-16 {
		t.Errorf("the kernel has %d + %d, want %d", sa.KernelQueue, sb.KernelQueue, 45-16)
	}
	s.pass(time.Minute)
	s.settle()
	p := s.serving(a, b)
	for served := 0; served < 45; served += len(p.has) {
		s.settle()
		p.hear()
		if len(p.has) == 0 {
			t.Fatalf("nothing more after %d", served)
		}
		n := len(p.has)
		p.ack(n)
		served += n
	}
	s.settle()
	if sa, sb = s.stats("a"), s.stats("b"); sa.Acked != 40 || sb.Acked != 5 || sa.Paused {
		t.Errorf("%+v %+v", sa, sb)
	}
}

func TestAQueueLimitOfOne(t *testing.T) {
	s := newStepped(t, Config{Configured: true, QueueLimit: 1, Window: 1})
	ln := s.listen("web")
	p := s.serving(ln)
	s.connect(ln, 5)
	for i := range 5 {
		s.settle()
		p.mustGet(i + 1)
		p.ack(1)
	}
}

func TestTheQueueTimeoutDropsTheOldest(t *testing.T) {
	s := newStepped(t, Config{Configured: true, QueueTimeout: time.Hour})
	ln := s.listen("web")
	old := s.client(ln)
	s.settle()
	s.pass(time.Hour / 2)
	s.connect(ln, 1)
	s.settle()
	s.pass(time.Hour / 2)
	s.settle()
	if st := s.stats("web"); st.Dropped[DropQueueTimeout] != 1 || st.Queued != 1 {
		t.Errorf("%+v", st)
	}
	s.pass(reportEveryTime)
	s.settle()
	s.mustHear("dropped web queue_timeout 1")
	s.mustEnd(old)
	if p := s.serving(ln); len(p.has) != 1 || p.has[0].client != 2 {
		t.Errorf("it got %v", p.has)
	}
}

const reportEveryTime = time.Duration(reportEvery)

func TestAClientThatResetsWhileItWaitsIsGone(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	gone := s.client(ln).(*net.TCPConn)
	s.connect(ln, 1)
	s.settle()
	if err := gone.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	_ = gone.Close()
	s.pass(time.Duration(goneAfter) + time.Millisecond)
	p := s.serving(ln)
	if len(p.has) != 1 || p.has[0].client != 2 {
		t.Errorf("it got %v", p.has)
	}
	if st := s.stats("web"); st.Dropped[DropClientGone] != 1 {
		t.Errorf("%+v", st)
	}
	// Told although nothing else happens.
	s.pass(reportEveryTime)
	s.settle()
	s.mustHear("dropped web client_gone 1")
}

func TestWhatWaitsIsToldOnceASecondAndWhy(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	s.connect(ln, 1)
	wait := func() {
		s.pass(reportEveryTime)
		s.settle()
		s.pass(reportEveryTime / 2)
		s.settle()
	}
	s.settle()
	wait()
	p := s.peer()
	p.say(readyFrame)
	wait()
	if n := s.times("waiting web 1: no worker is ready"); n != 1 {
		t.Errorf("%d times of %q", n, s.told)
	}
	s.mustHear("waiting web 1: no ready worker serves this listener")
}

// What the kernel has dropped is told of closed sockets, too.
func TestDropsOfAClosedSocketCount(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.open(ListenerConfig{Name: "web", Network: "tcp4", Address: "127.0.0.1:0", Backlog: 1, UID: -1, GID: -1})
	port := netip.MustParseAddrPort(ln.addr).Port()
	s.until("the kernel drops", func() bool {
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(c) })
		_ = unix.Connect(c, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(port)})
		f, _ := aside.QueueInline(ln.sock.fd)
		return f.Drops > 0
	})
	before := s.stats("web").KernelDrops
	s.l.closeSockets(ln)
	if after := s.stats("web").KernelDrops; before == 0 || after < before {
		t.Errorf("%d, before %d", after, before)
	}
}
