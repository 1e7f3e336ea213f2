package dispatcher

import (
	"net"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/dispatcher/internal/aside"
	"rrd/handoff"
)

// The process that was started is dead, its child goes on reading.
func TestDisown(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	shell, other := s.serving(ln), s.serving(ln)
	s.connect(ln, 1)
	s.settle()
	shell.mustGet(1)
	s.connect(ln, 2)
	s.settle() // 2 to other, 3 to the shell's child, which has not read it
	s.l.disown(shell.id)
	s.l.disown(99)
	s.settle()
	s.connect(ln, 1)
	s.settle()
	other.mustGet(2, 3, 4)
	shell.mustGet()
	if shell.last(handoff.Drain) == nil {
		t.Error("it was not told to drain")
	}
	if st := s.stats("web"); st.InFlight != 4 {
		t.Errorf("what it has read is not held: %+v", st)
	}
	shell.ack(1)
	s.settle()
	if st := s.stats("web"); st.Acked != 1 {
		t.Errorf("%+v", st)
	}
}

// A recalled LISTENING has lost its descriptor: it is lent anew.
func TestARecalledAnswerIsSaidAgainWithItsSocket(t *testing.T) {
	s := newStepped(t, Config{Policy: SchedNone, Configured: true})
	ln := s.listen("web")
	p := s.peer()
	p.ask(1, "tcp", "web", 0)
	s.settle()
	s.l.recall(p.k, RedispatchRecalled, true)
	fd := p.shared()
	defer fd.Close()
	if inode(t, fd.Num()) != inode(t, ln.sock.fd.Num()) {
		t.Error("another socket")
	}
	if len(p.heard) != 2 || p.heard[0].Type != handoff.Hello || p.heard[1].Seq != 1 {
		t.Errorf("heard %+v", p.heard)
	}
}

func TestTheSocketOfASlotThatIsNoMore(t *testing.T) {
	s, ln, second := twoSlots(t)
	a, b := s.peer(), s.peer()
	fa, fb := a.join("tcp", "web"), b.join("tcp", "web")
	defer fa.Close()
	_ = fb.Close()
	queued := 0
	for n := 0; n < 32; n++ {
		s.client(ln)
	}
	for _, k := range []int{second.fd.Num()} {
		f, _ := aside.QueueInline(handoff.Own(k))
		n := f.Length
		queued += int(n)
	}
	b.die(Removal{})
	s.l.forgetSlot(1)
	for range 200 {
		s.pass(reportEveryTime / 100)
		s.settle()
		if a.hear(); len(a.has) > 0 {
			a.ack(len(a.has))
		}
	}
	if len(ln.bySlot) != 1 {
		t.Errorf("%d sockets are left", len(ln.bySlot))
	}
	if got := a.k.stats.Acks; int(got) != queued {
		t.Errorf("%d handed on of the %d in its queue", got, queued)
	}
}

// close(2) of the last copy of a socket that lingers waits; the loop must not,
// however many a worker prepares.
func TestLingeringConnectionsDoNotHoldTheLoop(t *testing.T) {
	const n = closers + lingerQueue + 10
	s := newStepped(t, Config{Configured: true, Window: n})
	ln := s.listen("web")
	p := s.serving(ln)
	clients := make([]net.Conn, n)
	for i := range clients {
		clients[i] = s.client(ln)
		s.settle()
	}
	p.hear()
	filler := make([]byte, 1<<20)
	for i := range p.has {
		d := &p.has[i].fd
		if err := unix.SetsockoptLinger(d.Num(), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 3600}); err != nil {
			t.Fatal(err)
		}
		for { // the client reads nothing: what is sent stays unsent
			if _, err := unix.Write(d.Num(), filler); err != nil {
				break
			}
		}
	}
	start := time.Now()
	p.ack(n) // closes the worker's copies: ours are the last
	s.settle()
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("the loop waited for %v", took)
	}
	for _, c := range clients {
		_ = c.Close() // a reset: the closers are let go
	}
}

func TestErrorsOfAcceptAreClassed(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	for errno, want := range map[syscall.Errno]AcceptError{
		unix.EMFILE: AcceptEMFILE, unix.ENFILE: AcceptENFILE, unix.ENOBUFS: AcceptNobufs, unix.ENOMEM: AcceptNomem,
		unix.ECONNABORTED: AcceptAborted, unix.EPROTO: AcceptAborted, unix.EPERM: AcceptOther, unix.ENETDOWN: AcceptOther,
	} {
		before := ln.stats.AcceptErrors[want]
		s.l.acceptAt = 0
		s.l.acceptFailed(ln, errno)
		if ln.stats.AcceptErrors[want] != before+1 || (s.l.acceptAt != 0) != (want != AcceptAborted) {
			t.Errorf("%v: counted %v, stops until %v", errno, ln.stats.AcceptErrors, s.l.acceptAt)
		}
	}
}

func TestLabels(t *testing.T) {
	seen := map[string]bool{}
	label := func(s string) {
		if s == "" || seen[s] {
			t.Errorf("label %q is empty or used twice", s)
		}
		seen[s] = true
	}
	kinds := []func(){
		func() { each(NumDropReasons, func(i DropReason) { label(i.String()) }) },
		func() { each(NumAcceptErrors, func(i AcceptError) { label(i.String()) }) },
		func() { each(NumPauseReasons, func(i PauseReason) { label(i.String()) }) },
		func() { each(NumFailures, func(i Failure) { label(i.String()) }) },
		func() { each(NumRedispatches, func(i Redispatch) { label(i.String()) }) },
	}
	for _, kind := range kinds {
		clear(seen)
		kind()
	}
	if got := FDBudget(SchedRR, 4096, 4, 4, 2, 1024); got != 4096+2*4*10+2+1024+64 {
		t.Errorf("budget %d", got)
	}
	if got := FDBudget(SchedReuseport, 0, 4, 4, 2, 0); got != 80+8+64 {
		t.Errorf("budget under reuseport %d", got)
	}
}

func each[T ~uint8](n T, fn func(T)) {
	for i := range n {
		fn(i)
	}
}

// A worker may shut the socket down that it was lent: nobody can accept from it, and nothing spins.
func TestSocketThatAWorkerShutDown(t *testing.T) {
	s, _, _ := twoSlots(t)
	a, b := s.peer(), s.peer()
	fa, fb := a.join("tcp", "web"), b.join("tcp", "web")
	defer fa.Close()
	if err := unix.Shutdown(fb.Num(), unix.SHUT_RD); err != nil {
		t.Fatal(err)
	}
	_ = fb.Close()
	b.die(Removal{})
	s.settle()
	s.pass(reportEveryTime)
	s.mustRest()
}

// mustRest has the loop turn as it does by itself, asleep while there is nothing to do.
func (s *stepped) mustRest() {
	s.Helper()
	turns := 0
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); turns++ {
		ms := 50
		if at := s.l.nextDeadline(); at > 0 {
			ms = min(ms, max(0, int((at-s.l.clock.now())/1e6)))
		}
		p := []unix.PollFd{{Fd: int32(s.d.poll.ep.Num()), Events: unix.POLLIN}}
		_, _ = unix.Poll(p, ms)
		s.step()
	}
	if turns > 200 {
		s.Errorf("the loop spins: %d turns in 300 ms", turns)
	}
}

// A worker that closes its listener and lives on leaves a socket that nobody serves.
func TestSlotThatItsWorkerLeftIsTakenOver(t *testing.T) {
	s, ln, _ := twoSlots(t)
	a, b := s.peer(), s.peer()
	fa, fb := a.join("tcp", "web"), b.join("tcp", "web")
	defer fa.Close()
	_ = fb.Close()
	b.say(handoff.Frame{Type: handoff.Leave, Listener: ln.wire})
	s.settle()
	s.pass(reportEveryTime)
	s.settle()
	if !ln.bySlot[1].taken {
		t.Error("nobody accepts from the socket of the slot whose worker has left it")
	}
}

// A slot's socket is made, and its worker never comes.
func TestSlotWithoutAnyWorkerIsTakenOver(t *testing.T) {
	s := newStepped(t, Config{Policy: SchedReuseport, Configured: true})
	ln := s.listen("web")
	a := s.peer()
	fa := a.join("tcp", "web")
	defer fa.Close()
	done := make(chan error)
	go func() { done <- s.d.prepareSlot(1) }() // as Lend does before the spawn that fails
	s.until("the socket is made", func() bool {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return true
		default:
			return false
		}
	})
	s.pass(reportEveryTime)
	s.settle()
	if !ln.bySlot[1].taken {
		t.Error("nobody accepts from the socket of a slot that has no worker")
	}
}

// All slots are forgotten: one socket stays, and they can come back.
func TestAllSlotsForgotten(t *testing.T) {
	s, ln, _ := twoSlots(t)
	s.l.forgetSlot(0)
	s.l.forgetSlot(1)
	s.settle()
	s.pass(5 * time.Second)
	s.settle()
	if len(ln.sockets()) == 0 || s.l.defunct < 0 {
		t.Errorf("%d sockets of an open listener, %d defunct", len(ln.sockets()), s.l.defunct)
	}
	done := make(chan error, 1)
	go func() { done <- s.d.prepareSlot(0) }() // as Add does
	s.until("slot 0 has its socket, if it gets one", func() bool { return len(done) > 0 })
	p := s.peer()
	p.ask(1, "tcp", "web", 0)
	if f := p.answered(1); f.Arg != 0 {
		t.Errorf("slot 0 comes back: errno %d %s", f.Arg, f.Payload)
	}
}

// The socket may belong to others as well, and be shut down by them.
func TestInheritedSocketShutDown(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	_ = s.serving(ln)
	_ = unix.Shutdown(ln.sock.fd.Num(), unix.SHUT_RD)
	s.step()
	s.mustRest()
}
