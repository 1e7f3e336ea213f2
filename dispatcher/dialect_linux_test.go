package dispatcher

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// dialect is a real channel whose worker has other traits, hangs up when the test
// says so, and may have to be read from before it takes a handoff.
type dialect struct {
	faulty
	traits handoff.Traits
	hungUp bool
}

func (d *dialect) Traits() handoff.Traits { return d.traits }
func (d *dialect) Held() bool             { return d.fails == unix.EAGAIN }

func (d *dialect) Receive() error {
	err := d.Conn.Receive()
	if err == unix.EAGAIN && d.hungUp { //nolint:errorlint // bare
		return io.EOF
	}
	return err
}

func (s *stepped) speaking(traits handoff.Traits) (*peer, *dialect) {
	s.Helper()
	var d *dialect
	p := s.peerOver(func(c *handoff.Conn) handoff.Channel { d = &dialect{faulty: faulty{Conn: c}, traits: traits}; return d })
	return p, d
}

// Workers that are all at their limit and do not say when they can take more are
// asked some dozen times a second, each with one connection.
func TestRejectingWithoutAgainIsPaced(t *testing.T) {
	s := newStepped(t, Config{Configured: true, Window: 4})
	ln := s.listen("web")
	var peers []*peer
	for range 3 {
		p, _ := s.speaking(handoff.Traits{NoAgain: true})
		peers = append(peers, p.ready(ln))
	}
	s.connect(ln, 20)
	rejects, start := 0, s.l.clock.now()
	for range 2000 { // of a millisecond
		s.settle()
		for _, p := range peers {
			if n := len(p.hear()); n > 0 {
				rejects += n
				p.reject(n)
			}
		}
		s.pass(time.Millisecond)
	}
	// The test's own time passes for the loop too: it can only mean more of them.
	took := int((s.l.clock.now() - start) / int64(time.Millisecond))
	if rejects < 3*2000/50 || rejects > 3*took/40+3*4+3*3 {
		t.Errorf("%d rejects in %d ms of 3 workers", rejects, took)
	}
	s.until("one is asked again", func() bool {
		s.pass(time.Millisecond)
		return len(peers[1].hear()) > 0
	})
	peers[1].ack(1)
	s.settle()
	if n := len(peers[1].hear()); n != 4 {
		t.Errorf("the one that took a connection was given %d, want its whole window", n)
	}
}

// A worker that is not ready is told to go, and is not to be ended before it does.
func TestDrainingBeforeReadyWaitsForTheHangUp(t *testing.T) {
	s := newStepped(t, Config{})
	plain := s.peer()
	node, _ := s.speaking(handoff.Traits{HangsUp: true})
	for _, p := range []*peer{plain, node} {
		s.l.drain(p.k.id)
		s.settle()
		if p.hear(); p.last(handoff.Drain) == nil {
			t.Errorf("worker %d was not told", p.k.id)
		}
	}
	if !s.heard("drained 1") || s.heard("drained 2") {
		t.Errorf("told %q", s.told)
	}
}

// A socket that a tool has made for itself does not mean that its program speaks to rrd,
// and the tool accepts from it before it is ready, as it never is.
func TestAPrivateSocketIsNoWord(t *testing.T) {
	for _, tt := range []struct {
		name   string
		traits handoff.Traits
		shared uint16
	}{
		{"Node", handoff.Traits{HangsUp: true}, handoff.ListeningShared},
		{"a worker that sets the flag itself", handoff.Traits{}, 0},
	} {
		s := newStepped(t, Config{})
		p, _ := s.speaking(tt.traits)
		path := filepath.Join(t.TempDir(), "s")
		p.say(handoff.Frame{Type: handoff.Listen, Seq: 1, Flags: handoff.ListenPrivate, Payload: []byte("unix\x00" + path)})
		if f := p.answered(1); f.Arg != 0 || f.Flags&handoff.ListeningShared != tt.shared || s.heard("spoke") != (tt.shared == 0) {
			t.Errorf("%s: errno %d, flags %d, told %q", tt.name, f.Arg, f.Flags, s.told)
		}
		p.ask(2, "tcp", "127.0.0.1:0", 0)
		p.answered(2)
		s.mustHear("spoke 1")
	}
}

// A worker that hangs up has done nothing wrong, and what it has not answered
// waits for its end.
func TestHangingUpIsNoFault(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	a, d := s.speaking(handoff.Traits{HangsUp: true, Untouched: true})
	a.ready(ln)
	s.connect(ln, 2)
	s.settle()
	a.mustGet(1, 2)
	a.ack(1)
	d.hungUp = true
	s.settle()
	s.step()
	s.mustHear("hung up 1")
	if s.times("hung up") != 1 || s.heard("broke") || a.k.stats.ProtocolErrors != 0 {
		t.Error(s.told)
	}
	b := s.serving(ln)
	s.connect(ln, 1)
	s.settle()
	b.mustGet(3)
	a.die(Removal{Blame: true})
	b.mustGet(2)
	if h := b.has[len(b.has)-1]; h.deaths != 0 {
		t.Errorf("%d deaths are put down to what the program has never seen", h.deaths)
	}
}

// An ack can wait in the process behind a message of the program's own, which serves the
// connection meanwhile: it is not served again.
func TestServedBeforeTheAckIsNotServedAgain(t *testing.T) {
	for name, tt := range map[string]struct {
		worker func(h handed)
		again  bool
	}{
		"untouched": {func(handed) {}, true},
		"a byte was read": {func(h handed) {
			var b [1]byte
			_, _ = unix.Read(h.fd.Num(), b[:])
		}, false},
		"a byte was written": {func(h handed) { _, _ = unix.Write(h.fd.Num(), []byte("x")) }, false},
		"shut down":          {func(h handed) { _ = unix.Shutdown(h.fd.Num(), unix.SHUT_RDWR) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStepped(t, Config{Configured: true})
			ln := s.listen("web")
			a, _ := s.speaking(handoff.Traits{HangsUp: true, NoClosed: true, Untouched: true})
			a.ready(ln)
			s.client(ln)
			s.settle()
			a.mustGet(1)
			tt.worker(a.has[0])
			a.die(Removal{Blame: true})
			b := s.serving(ln)
			got := clientsOf(b)
			if st := s.stats("web"); (len(got) == 1) != tt.again || (st.Acked == 0) != tt.again {
				t.Errorf("given to another: %v, want %v; %+v", got, tt.again, st)
			}
		})
	}
}

// BYE of a worker that hangs up says that it leaves of its own accord: it gets
// nothing more and its answers count.
func TestLeavingOfItsOwnAccord(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	a, d := s.speaking(handoff.Traits{HangsUp: true, NoClosed: true})
	a.ready(ln)
	s.connect(ln, 1)
	s.settle()
	a.mustGet(1)
	a.say(handoff.Frame{Type: handoff.Bye})
	s.settle()
	s.mustHear("leaves 1")
	b := s.serving(ln)
	s.connect(ln, 1)
	s.settle()
	b.mustGet(2)
	a.ack(1)
	s.settle()
	if st := s.stats("web"); st.Acked != 1 || st.InFlight != 1 {
		t.Errorf("%+v", st)
	}
	d.hungUp = true
	s.l.answers(a.k, false)
	s.step()
	s.mustHear("hung up 1")
	a.die(Removal{})
	if s.heard("broke") || a.k.stats.Lost != 0 {
		t.Errorf("%v, %d lost: it does not say what it closes", s.told, a.k.stats.Lost)
	}
}

// A failed send to a worker that hangs up leaves what it said before to be read.
func TestASendToWhoHasHungUp(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	a, d := s.speaking(handoff.Traits{HangsUp: true})
	a.ready(ln)
	s.connect(ln, 1)
	s.settle()
	a.mustGet(1)
	a.ack(1)
	s.l.cannotSend(a.k, unix.EPIPE, 0)
	s.settle()
	if st := s.stats("web"); st.Acked != 1 {
		t.Errorf("its answer was not read: %+v", st)
	}
	d.hungUp = true
	s.l.answers(a.k, false)
	s.step()
	s.mustHear("hung up 1")
	if s.heard("broke") {
		t.Error(s.told)
	}
}

func TestNobodyIsPingedWhoDoesNotAnswer(t *testing.T) {
	s := newStepped(t, Config{Configured: true, HangTimeout: time.Second, BusyAfter: time.Millisecond})
	ln := s.listen("web")
	a, _ := s.speaking(handoff.Traits{NoPong: true})
	a.ready(ln)
	s.l.beatAt = s.l.now
	for range 30 {
		s.pass(100 * time.Millisecond)
		s.step()
	}
	a.hear()
	if a.last(handoff.Ping) != nil || s.heard("hung") {
		t.Errorf("%v %v", a.heard, s.told)
	}
	s.connect(ln, 1) // what it owes still counts
	s.settle()
	for range 20 {
		s.pass(100 * time.Millisecond) // later at once would be the master's own fault
		s.settle()
	}
	s.mustHear("hung 1")
}

// A channel that has to be read from first takes nothing, and the loop sleeps
// meanwhile.
func TestAHeldChannelWaitsToBeRead(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	a, d := s.speaking(handoff.Traits{})
	a.ready(ln)
	d.fails = unix.EAGAIN
	s.connect(ln, 1)
	s.settle() // fails if it spins
	if st := s.stats("web"); st.Queued != 1 {
		t.Errorf("%+v", st)
	}
	d.fails = 0
	a.say(handoff.Frame{Type: handoff.Health})
	s.settle()
	a.mustGet(1)
}

// The n-th request of a worker for port 0 means the n-th such port of them all.
func TestPortZeroByOrdinal(t *testing.T) {
	s := newStepped(t, Config{})
	a, b := s.peer(), s.peer()
	ask := func(p *peer, seq uint64, ordinal uint32) *handoff.Frame {
		p.say(handoff.Frame{Type: handoff.Listen, Seq: seq, Listener: ordinal, Payload: []byte("tcp\x00127.0.0.1:0")})
		return p.answered(seq)
	}
	a0, a1 := ask(a, 1, 0), ask(a, 2, 1)
	b1, b0 := ask(b, 1, 1), ask(b, 2, 0)
	if a0.Listener == a1.Listener || a0.Listener != b0.Listener || a1.Listener != b1.Listener {
		t.Errorf("listeners %d %d, %d %d", a0.Listener, a1.Listener, b0.Listener, b1.Listener)
	}
	address := freePort(t)
	a.say(handoff.Frame{Type: handoff.Listen, Seq: 9, Listener: 3, Payload: []byte("tcp\x00" + address)})
	b.say(handoff.Frame{Type: handoff.Listen, Seq: 9, Listener: 0, Payload: []byte("tcp\x00" + address)})
	if a.answered(9).Listener != b.answered(9).Listener {
		t.Error("a fixed port can be had once only, whatever the ordinal")
	}
}

// What the first has left with a listener everyone gets, as long as it lives.
func TestDataStaysWithTheListener(t *testing.T) {
	s := newStepped(t, Config{})
	a, b := s.peer(), s.peer()
	ask := func(p *peer, seq uint64, data string) string {
		s.l.listenAsked(p.k, &handoff.Frame{Type: handoff.Listen, Seq: seq, Payload: []byte("tcp\x00127.0.0.1:0"), Data: []byte(data)})
		w := p.answered(seq).Listener
		return string(s.l.byWire[w].data)
	}
	if got := ask(a, 1, ""); got != "" {
		t.Errorf("%q", got)
	}
	if got := ask(b, 1, "first"); got != "first" {
		t.Errorf("%q", got)
	}
	a.die(Removal{})
	if got := ask(s.peer(), 1, "second"); got != "first" {
		t.Errorf("%q", got)
	}
}

// A worker that was asked to drain gives its listeners up because of that: they
// are there for its successor.
func TestLeavingWhileDrainingKeepsTheListener(t *testing.T) {
	s := newStepped(t, Config{})
	a := s.peer()
	a.ask(1, "tcp", "127.0.0.1:0", 0)
	wire := a.answered(1).Listener
	a.say(readyFrame)
	s.settle()
	s.l.drain(a.id)
	a.say(handoff.Frame{Type: handoff.Leave, Listener: wire})
	s.settle()
	a.die(Removal{})
	if s.heard("closed") || s.l.byWire[wire] == nil {
		t.Fatal(s.told)
	}
	s.l.forgetSlot(0)
	s.until("it is closed", func() bool { return s.heard("closed") })
}

// Programs that open and close servers all their life may.
func TestOnlyListenersThatAreOpenCount(t *testing.T) {
	s := newStepped(t, Config{})
	a := s.peer()
	a.k.listens = maxListens - 5 // as if it had so many
	for seq := range uint64(10) {
		a.ask(seq, "tcp", "127.0.0.1:0", 0)
		a.say(handoff.Frame{Type: handoff.Leave, Listener: a.answered(seq).Listener})
		s.settle()
	}
	if s.heard("broke") || s.heard("refused") {
		t.Fatal(s.told)
	}
}

// Nor does what the system refuses: programs try a port that is taken again and again.
func TestListensThatCannotBeBoundDoNotCount(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s := newStepped(t, Config{})
	a := s.peer()
	a.k.listens = maxListens - 5 // as if it had so many
	for seq := range uint64(10) {
		a.ask(seq, "tcp", taken.Addr().String(), 0)
		if f := a.answered(seq); syscall.Errno(f.Arg) != unix.EADDRINUSE {
			t.Fatalf("%+v", f)
		}
	}
	if s.heard("broke") {
		t.Error(s.told)
	}
}

func TestExactAndMappedAddresses(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	web := s.open(ListenerConfig{Name: "web", Network: "tcp4", Address: "127.0.0.1:0", As: 3000, UID: -1, GID: -1})
	port := web.addr[strings.LastIndexByte(web.addr, ':'):]
	for _, tt := range []struct {
		network, address string
		want             *listener
		errno            syscall.Errno
		says             string
	}{
		{"tcp", ":3000", web, 0, ""},
		{"tcp4", "127.0.0.1:3000", web, 0, ""},
		{"tcp4", "127.0.0.1" + port, nil, unix.EADDRNOTAVAIL, "--listen 127.0.0.1:0,as="}, // it is mapped
		{"tcp", ":13000", nil, unix.EADDRNOTAVAIL, "as=13000"},
		{"udp", ":3000", nil, unix.EADDRNOTAVAIL, "no --listen of rrd is for udp"},
		{"fd", "7", nil, unix.EINVAL, "--listen fd:7"},
	} {
		got, err := s.l.resolve(&link{}, &request{network: tt.network, address: tt.address, flags: handoff.ListenExact})
		if got != tt.want || tt.want == nil && (err == nil || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%s %s: %v, %v", tt.network, tt.address, got, err)
			continue
		}
		p := s.peer()
		p.say(handoff.Frame{Type: handoff.Listen, Seq: 1, Flags: handoff.ListenExact, Payload: []byte(tt.network + "\x00" + tt.address)})
		if f := p.answered(1); syscall.Errno(f.Arg) != tt.errno {
			t.Errorf("%s %s: errno %d, want %d", tt.network, tt.address, f.Arg, tt.errno)
		}
	}
}

// Descriptors of ours are not for programs to name, but for --listen fd:N.
func TestAskingForADescriptor(t *testing.T) {
	s := newStepped(t, Config{})
	a := s.peer()
	a.ask(1, "fd", "3", 0)
	if f := a.answered(1); syscall.Errno(f.Arg) != unix.EINVAL {
		t.Errorf("errno %d", f.Arg)
	}
	given := newStepped(t, Config{Configured: true})
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	file, err := tcp.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	sock, err := inherited(file)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := given.l.open(ListenerConfig{Name: "fd:7", Network: "fd", Address: "7", UID: -1, GID: -1}, sock, nil)
	if err != nil {
		t.Fatal(err)
	}
	b := given.peer()
	b.ask(1, "fd", "7", 0)
	if f := b.answered(1); f.Listener != ln.wire {
		t.Errorf("%+v", f)
	}
}

// A path that no socket address can hold, and the modes that a program asks for.
func TestLongPathsAndModes(t *testing.T) {
	s := newStepped(t, Config{})
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	a := s.peer()
	a.say(handoff.Frame{Type: handoff.Listen, Seq: 1, Flags: handoff.ListenReadable | handoff.ListenWritable, Payload: []byte("unix\x00" + path)})
	f := a.answered(1)
	if f.Arg != 0 || string(f.Payload) != "unix\x00"+path {
		t.Fatalf("errno %d %q", f.Arg, f.Payload)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o666 != 0o666 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	t.Chdir(dir)
	if c, err := net.Dial("unix", "s"); err != nil {
		t.Error(err)
	} else {
		_ = c.Close()
	}
	a.ask(2, "unix", filepath.Join(dir, strings.Repeat("s", 100)), 0)
	if f := a.answered(2); syscall.Errno(f.Arg) != unix.ENAMETOOLONG {
		t.Errorf("errno %d", f.Arg)
	}
	a.say(handoff.Frame{Type: handoff.Leave, Listener: f.Listener})
	s.until("the file is gone", func() bool { _, err := os.Stat(path); return os.IsNotExist(err) })
}

// A datagram socket that may share its address, and one that waits for nobody.
func TestSharedSocketsOfADialect(t *testing.T) {
	s := newStepped(t, Config{NonblockingShared: true})
	a := s.peer()
	a.say(handoff.Frame{Type: handoff.Listen, Seq: 1, Flags: handoff.ListenReuse, Payload: []byte("udp4\x00127.0.0.1:0")})
	ln := s.byAddress(a.answered(1))
	fd := ln.sock.fd.Num()
	if v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR); err != nil || v != 1 {
		t.Errorf("SO_REUSEADDR %d %v", v, err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("flags %#x %v", flags, err)
	}
	if !slices.Contains(a.k.joined, ln.wire) {
		t.Error("a shared listener does not count as asked for")
	}
}

// mumbling is a channel whose next frames cannot be understood.
type mumbling struct {
	faulty
	broken int
}

func (m *mumbling) Next(f *handoff.Frame) (bool, error) {
	if m.broken > 0 {
		m.broken--
		return false, errors.New("a broken line")
	}
	return m.Conn.Next(f)
}

// An ack behind what is not understood, in one message, counts at the worker's death.
func TestAckBehindBrokenLines(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	var m *mumbling
	p := s.peerOver(func(c *handoff.Conn) handoff.Channel { m = &mumbling{faulty: faulty{Conn: c}}; return m }).ready(ln)
	s.connect(ln, 1)
	s.settle()
	p.mustGet(1)
	m.broken = 2
	p.ack(1)
	p.die(Removal{}) // no turn in between
	if st := s.stats("web"); st.Acked != 1 || st.Queued != 0 {
		t.Errorf("an accepted connection is to be served again: %+v", st)
	}
}
