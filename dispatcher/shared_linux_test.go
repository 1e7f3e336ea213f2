package dispatcher

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// join asks for a shared listener and returns the lent descriptor.
func (p *peer) join(network, name string) handoff.FD {
	p.Helper()
	p.ask(1, network, name, 0)
	p.settle()
	fd := p.shared()
	p.say(readyFrame)
	p.settle()
	return fd
}

func inode(t testing.TB, fd int) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestUnderNoneAllGetTheSameSocket(t *testing.T) {
	s := newStepped(t, Config{Policy: SchedNone, Configured: true})
	ln := s.listen("web")
	a, b := s.peer(), s.peer()
	fa, fb := a.join("tcp", "web"), b.join("tcp", "web")
	defer fa.Close()
	defer fb.Close()
	if inode(t, fa.Num()) != inode(t, fb.Num()) || inode(t, fa.Num()) != inode(t, ln.sock.fd.Num()) {
		t.Error("not the same socket")
	}
	s.connect(ln, 1)
	if !s.quiet() {
		t.Error("the loop wakes for what is the workers' to accept")
	}
	d, errno := accept(fb.Num())
	if errno != 0 {
		t.Fatal(errno)
	}
	_ = d.Close()
}

func TestReuseportGivesEachSlotItsOwn(t *testing.T) {
	r := run(t, Config{Policy: SchedReuseport, Configured: true})
	info := r.open(ListenerConfig{Name: "web", Network: "tcp4", Address: "127.0.0.1:0"})
	path := filepath.Join(t.TempDir(), "s")
	r.open(ListenerConfig{Name: "a:b", Network: "unix", Address: path})
	seen := map[uint64]int{}
	for range 2 { // a second time: the same
		for slot := range 3 {
			lent, err := r.Lend(slot)
			if err != nil {
				t.Fatal(err)
			}
			names := []string{lent[0].Name, lent[1].Name}
			if len(lent) != 2 || !slices.Equal(names, []string{"web", "a_b"}) {
				t.Fatalf("lent %v", names)
			}
			seen[inode(t, int(lent[0].File.Fd()))]++
			sa, err := unix.Getsockname(int(lent[0].File.Fd()))
			if err != nil || addressString(sa) != info.Address {
				t.Errorf("slot %d: %v, want %s", slot, sa, info.Address)
			}
			if fl, err := unix.FcntlInt(lent[0].File.Fd(), unix.F_GETFL, 0); err != nil || fl&unix.O_NONBLOCK != 0 {
				t.Errorf("lent with flags %#x %v: programs wait in accept", fl, err)
			}
			for _, x := range lent {
				_ = x.File.Close()
			}
		}
	}
	if len(seen) != 3 {
		t.Errorf("%d sockets for 3 slots", len(seen))
	}
}

// What the kernel hashes to a slot without a worker is handed to another slot's.
func TestReuseportTakesOverWhatNobodyAccepts(t *testing.T) {
	s, ln, second := twoSlots(t)
	a, b := s.peer(), s.peer()
	fa, fb := a.join("tcp", "web"), b.join("tcp", "web")
	defer fa.Close()
	_ = fb.Close()
	if inode(t, fa.Num()) == inode(t, second.fd.Num()) {
		t.Fatal("both slots have the same socket")
	}
	b.die(Removal{})
	var clients []net.Conn
	queued := func() bool { return isReadable(second.fd) }
	for !queued() && len(clients) < 200 {
		clients = append(clients, s.client(ln))
	}
	if !queued() {
		t.Fatal("the kernel hashes nobody to the second socket")
	}
	s.settle()
	a.mustGet()
	s.pass(reportEveryTime)
	s.settle()
	if got := a.hear(); len(got) != 1 {
		t.Fatalf("handed on %v, want the one", got)
	}
	a.ack(1)
	successor := s.peer()
	successor.k.slot = 1
	fd := successor.join("tcp", "web")
	defer fd.Close()
	s.settle()
	if ln.bySlot[1].taken {
		t.Error("still taken over although the slot has a worker")
	}
}

// Out of descriptors, or with a full queue, a socket that is taken over waits
// like the others.
func TestATakeoverWaitsWhileAcceptingPauses(t *testing.T) {
	s, ln, second := twoSlots(t)
	a, b := s.peer(), s.peer()
	fa, fb := a.join("tcp", "web"), b.join("tcp", "web")
	defer fa.Close()
	_ = fb.Close()
	b.die(Removal{})
	for n := 0; !isReadable(second.fd) && n < 200; n++ {
		s.client(ln)
	}
	s.l.acceptAt = s.l.clock.now() + int64(aLongTime)
	s.pass(reportEveryTime)
	s.settle() // fails if it spins
	if !ln.bySlot[1].taken {
		t.Fatal("not taken over")
	}
	a.mustGet()
	s.pass(aLongTime - reportEveryTime)
	s.settle()
	if len(a.hear()) == 0 {
		t.Error("nothing is accepted after the pause")
	}
}

func TestASharedUnixListenerClosesQuietly(t *testing.T) {
	s := newStepped(t, Config{Policy: SchedNone, Configured: true})
	path := filepath.Join(t.TempDir(), "s")
	ln := s.open(ListenerConfig{Name: "web", Network: "unix", Address: path, UID: -1, GID: -1})
	p := s.peer()
	fd := p.join("unix", "web")
	defer fd.Close()
	c := s.client(ln)
	idle := make(chan struct{})
	s.l.shutdown(idle)
	s.until("its file is removed", func() bool {
		_, err := os.Lstat(path)
		return os.IsNotExist(err)
	})
	if isClosed(idle) {
		t.Error("closed with a client in its queue")
	}
	d, errno := accept(fd.Num())
	if errno != 0 {
		t.Fatal(errno)
	}
	_ = d.Close()
	_ = c.Close()
	s.until("it is shut down", func() bool { return isClosed(idle) })
}

// twoSlots is a listener under reuseport with the sockets of two slots.
func twoSlots(t *testing.T) (s *stepped, ln *listener, second *socket) {
	t.Helper()
	s = newStepped(t, Config{Policy: SchedReuseport, Configured: true})
	ln = s.listen("web")
	second, err := bindSocket("tcp4", ln.addr, bindOptions{reuseport: true, uid: -1, gid: -1})
	if err != nil {
		t.Fatal(err)
	}
	ln.addSlot(1, second)
	return s, ln, second
}
