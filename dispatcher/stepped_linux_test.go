package dispatcher

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/dispatcher/internal/aside"
	"rrd/handoff"
	"rrd/test/leakcheck"
)

// stepped is a Dispatcher whose loop the test turns by hand, and whose time it
// moves: everything real but the goroutine, so that the order of things is the
// test's and a turn too many can be seen.
type stepped struct {
	testing.TB
	d       *Dispatcher
	l       *loop
	told    []string // what the hooks were told
	clients int
	peers   uint64
	pids    int // of helpers, made up

	// newHelper has a helper made, and killHelper ends one that hangs. helpers waits for
	// their ends.
	newHelper  func()
	killHelper func()
	helpers    sync.WaitGroup
}

const aLongTime = time.Hour

var readyFrame = handoff.Frame{Type: handoff.Ready}

// newStepped makes one in which nobody becomes late unless cfg says so. Hooks
// write into told.
func newStepped(t testing.TB, cfg Config) *stepped {
	t.Helper()
	leakcheck.Check(t)
	if cfg.BusyAfter == 0 {
		cfg.BusyAfter = aLongTime
	}
	p, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	s := &stepped{TB: t}
	s.newHelper = s.startHelper
	cfg.Hooks = s.hooks()
	s.d = newDispatcher(cfg, p)
	s.d.lingering.start()
	s.l = newLoop(s.d)
	s.l.beatAt = math.MaxInt64 // no heartbeat: a test of it sets this
	t.Cleanup(func() {
		s.lawful()
		s.l.finish()
		close(s.d.ended)
		s.d.helpers.Wait()
		s.d.lingering.stop()
		s.helpers.Wait()
		s.lawful()
	})
	return s
}

// startHelper makes a helper out of a goroutine: everything real but the process.
func (s *stepped) startHelper() {
	s.Helper()
	socket := s.addHelper()
	s.helpers.Go(func() {
		aside.Serve(socket)
		_ = socket.Close()
	})
}

// addHelper gives the loop a helper that the test plays, and returns its end.
func (s *stepped) addHelper() handoff.FD {
	s.Helper()
	socket, child, err := HelperPair()
	if err != nil {
		s.Fatal(err)
	}
	end, err := handoff.Own(int(child.Fd())).Dup()
	if err != nil {
		s.Fatal(err)
	}
	_ = child.Close()
	s.pids++
	if err := s.l.addHelper(s.pids, socket); err != nil {
		s.Fatal(err)
	}
	s.d.poll.wake()
	return end
}

func (s *stepped) tell(format string, args ...any) {
	s.told = append(s.told, fmt.Sprintf(format, args...))
}

func (s *stepped) hooks() Hooks {
	return Hooks{
		Spoke:   func(w uint64) { s.tell("spoke %d", w) },
		Ready:   func(w uint64) { s.tell("ready %d", w) },
		Drained: func(w uint64) { s.tell("drained %d", w) },
		Broke:   func(w uint64, why string) { s.tell("broke %d %s", w, why) },
		Health:  func(w uint64, ok bool) { s.tell("health %d %v", w, ok) },
		Hung:    func(w uint64, _ time.Duration) { s.tell("hung %d", w) },
		HungUp:  func(w uint64) { s.tell("hung up %d", w) },
		Leaves:  func(w uint64) { s.tell("leaves %d", w) },
		Opened:  func(i ListenerInfo) { s.tell("opened %s %s asked=%v", i.Name, i.Network, i.Asked) },
		Closed:  func(i ListenerInfo) { s.tell("closed %s", i.Name) },
		Dropped: func(ln string, r DropReason, n uint64) { s.tell("dropped %s %s %d", ln, r, n) },
		Waiting: func(ln string, n int, why string) { s.tell("waiting %s %d: %s", ln, n, why) },
		AcceptPaused: func(ln string, err error, p time.Duration) {
			s.tell("paused %s %v %v", ln, err, p)
		},
		Refused: func(w uint64, network, address string, err error) {
			s.tell("refused %d %s %s: %v", w, network, address, err)
		},
		HelperWanted: func() {
			s.newHelper()
		},
		HelperUseless: func(pid int) {
			s.tell("useless %d", pid)
			if s.killHelper != nil {
				s.killHelper()
			}
		},
		TicketsRotated: func(serial uint64, n int) { s.tell("rotated %d %d", serial, n) },
		Ignored:        func(i ListenerInfo) { s.tell("ignored %s", i.Name) },
		Rearmed: func(r Rearm) {
			s.tell("rearmed %s %d times, replaced=%v: %s", r.Listener.Name, r.Times, r.Replaced, r.Why)
		},
		Filtered:    func(f Filter) { s.tell("filtered %s %d times: %s", f.Listener.Name, f.Times, f.Kind) },
		Unreachable: func(i ListenerInfo, err error) { s.tell("unreachable %s: %v", i.Name, err) },
	}
}

// heard reports whether a hook was told what begins like this.
func (s *stepped) heard(prefix string) bool { return s.times(prefix) > 0 }

func (s *stepped) times(prefix string) int {
	n := 0
	for _, t := range s.told {
		if strings.HasPrefix(t, prefix) {
			n++
		}
	}
	return n
}

func (s *stepped) mustHear(prefix string) {
	s.Helper()
	if !s.heard(prefix) {
		s.Fatalf("no hook was told %q, only %q", prefix, s.told)
	}
}

// step runs one turn, whether there is something to do or not, and the hooks.
func (s *stepped) step() {
	s.Helper()
	s.d.poll.wake()
	if err := s.l.turn(); err != nil {
		s.Fatal(err)
	}
	for len(s.d.events.calls) > 0 {
		calls := s.d.events.calls
		s.d.events.calls = nil
		for _, call := range calls {
			call()
		}
	}
	if err := integrity(s.l.table); err != nil {
		s.Fatal(err)
	}
}

// quiet reports whether the loop would go to sleep now and how long.
func (s *stepped) quiet() bool {
	if look(s.d.poll.ep, unix.POLLIN) != 0 {
		return false
	}
	at := s.l.nextDeadline()
	return at == 0 || at > s.l.clock.now()
}

// settle runs turns until the loop would sleep and every helper has answered; it
// fails if that takes long.
func (s *stepped) settle() {
	s.Helper()
	s.step()
	for n := 0; !s.quiet() || !s.l.aside.Quiet(); n++ {
		if n == 2000 {
			s.Fatalf("the loop spins: %d turns and nothing left to do", n)
		}
		if s.quiet() {
			s.awaitEvent()
		}
		s.step()
	}
}

// awaitEvent waits for something to happen, as an answer of a helper.
func (s *stepped) awaitEvent() {
	p := []unix.PollFd{{Fd: int32(s.d.poll.ep.Num()), Events: unix.POLLIN}}
	_, _ = unix.Poll(p, int(patience/time.Millisecond))
}

// until runs turns until ok, waiting for helpers of the loop.
func (s *stepped) until(what string, ok func() bool) {
	s.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			s.Fatalf("waited in vain until %s", what)
		}
		p := []unix.PollFd{{Fd: int32(s.d.poll.ep.Num()), Events: unix.POLLIN}}
		_, _ = unix.Poll(p, 5)
		s.step()
	}
}

// pass lets time pass for the loop.
func (s *stepped) pass(d time.Duration) {
	s.l.clock.start = s.l.clock.start.Add(-d)
}

func (s *stepped) lawful() {
	s.Helper()
	for _, ln := range s.l.copyStats().Listeners {
		if missing, ok := ln.Lawful(); !ok {
			s.Errorf("the law is broken: %d missing of %+v", missing, ln)
		}
	}
}

func (s *stepped) stats(name string) ListenerStats {
	s.Helper()
	st := s.l.copyStats()
	i := slices.IndexFunc(st.Listeners, func(ln ListenerStats) bool { return ln.Name == name })
	if i < 0 {
		s.Fatalf("no listener %q", name)
	}
	return st.Listeners[i]
}

// listen opens a TCP listener on loopback.
func (s *stepped) listen(name string) *listener {
	s.Helper()
	return s.open(ListenerConfig{Name: name, Network: "tcp4", Address: "127.0.0.1:0", UID: -1, GID: -1})
}

func (s *stepped) open(c ListenerConfig) *listener {
	s.Helper()
	sock, err := bindSocket(c.Network, c.Address, bindOptions{replaceStale: true, backlog: c.Backlog, mode: c.Mode,
		uid: c.UID, gid: c.GID, reuseport: s.d.cfg.Policy == SchedReuseport && isTCP(c.Network)})
	if err != nil {
		s.Fatal(err)
	}
	ln, err := s.l.open(c, sock, nil)
	if err != nil {
		_ = sock.close()
		s.Fatal(err)
	}
	return ln
}

// client connects and says its number, from 1, by which hear knows it again.
func (s *stepped) client(ln *listener) net.Conn {
	s.Helper()
	network := "tcp"
	if ln.network == "unix" {
		network = "unix"
	}
	c, err := net.DialTimeout(network, ln.addr, patience)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { _ = c.Close() })
	s.clients++
	if _, err := c.Write([]byte{byte(s.clients)}); err != nil {
		s.Fatal(err)
	}
	return c
}

func (s *stepped) connect(ln *listener, n int) {
	s.Helper()
	for range n {
		s.client(ln)
	}
}

// mustEnd waits for a client's connection to be closed by us.
func (s *stepped) mustEnd(c net.Conn) {
	s.Helper()
	_ = c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		s.Errorf("the client's connection was not closed: %v", err)
	}
}

// peer is a worker's side of a channel, played by the test.
type peer struct {
	*stepped
	id    uint64
	port  *handoff.Port
	raw   int // the worker's end once more, as a child of the worker might have it
	k     *link
	heard []handoff.Frame // frames but handoffs
	has   []handed        // handoffs not answered
}

// handed is one handoff as it came.
type handed struct {
	seq    uint64
	client int
	deaths uint32
	fd     handoff.FD
}

// peer adds a worker that has said nothing.
func (s *stepped) peer() *peer {
	s.Helper()
	return s.peerOver(func(c *handoff.Conn) handoff.Channel { return c })
}

func (s *stepped) peerOver(channel func(*handoff.Conn) handoff.Channel) *peer {
	s.Helper()
	master, port, raw := newChannel(s.TB)
	s.peers++
	p := &peer{stepped: s, id: s.peers, port: port, raw: raw}
	if err := s.l.add(Worker{ID: p.id, Slot: int(p.id) - 1, Channel: channel(master)}); err != nil {
		s.Fatal(err)
	}
	p.k = s.l.byID[p.id]
	s.Cleanup(func() {
		for i := range p.has {
			_ = p.has[i].fd.Close()
		}
		_ = port.Close()
		_ = unix.Close(raw)
	})
	return p
}

// newChannel returns both ends and a duplicate of the worker's.
func newChannel(t testing.TB) (master *handoff.Conn, port *handoff.Port, raw int) {
	t.Helper()
	master, child, err := handoff.Pair()
	if err != nil {
		t.Fatal(err)
	}
	var fds [2]int
	for i := range fds {
		if fds[i], err = unix.FcntlInt(child.Fd(), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
	}
	_ = child.Close()
	if port, err = handoff.OpenPort(fds[0]); err != nil {
		t.Fatal(err)
	}
	return master, port, fds[1]
}

// serving adds a worker that serves these listeners and is ready.
func (s *stepped) serving(lns ...*listener) *peer {
	s.Helper()
	return s.peer().ready(lns...)
}

func (p *peer) ready(lns ...*listener) *peer {
	p.Helper()
	for i, ln := range lns {
		p.say(handoff.Frame{Type: handoff.Listen, Seq: uint64(i + 1), Payload: []byte(ln.network + "\x00" + ln.conf.Name)})
	}
	p.say(handoff.Frame{Type: handoff.Ready})
	p.step()
	p.hear()
	return p
}

// say sends frames in one message.
func (p *peer) say(frames ...handoff.Frame) {
	p.Helper()
	var b []byte
	for i := range frames {
		b = frames[i].Append(b)
	}
	p.send(b)
}

func (p *peer) send(b []byte) {
	p.Helper()
	if err := p.port.Send(b); err != nil {
		p.Fatal(err)
	}
}

// hear receives all that has come and returns the clients of the handoffs among
// it, in order.
func (p *peer) hear() []int {
	p.Helper()
	var clients []int
	var m handoff.Message
	for {
		err := p.port.TryReceive(&m)
		if err == unix.EAGAIN { //nolint:errorlint // bare
			return clients
		}
		if err != nil {
			p.Fatalf("worker %d: %v", p.id, err)
		}
		k := 0
		for _, f := range m.Frames[:m.N] {
			if f.Type != handoff.Handoff {
				f.Payload = slices.Clone(f.Payload)
				p.heard = append(p.heard, f)
				continue
			}
			h := handed{seq: f.Seq, deaths: f.Arg, fd: handoff.Own(m.FDs[k].Release())}
			k++
			h.client = whoIs(p.TB, h.fd)
			p.has = append(p.has, h)
			clients = append(clients, h.client)
		}
		m.Close()
	}
}

// whoIs looks at the number that a client has sent.
func whoIs(t testing.TB, d handoff.FD) int {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(d.Num()), Events: unix.POLLIN}}
	if n, err := unix.Poll(p, int(patience/time.Millisecond)); err != nil || n == 0 {
		t.Fatalf("a client has said nothing: %v", err)
	}
	var b [1]byte
	n, _, err := unix.Recvfrom(d.Num(), b[:], unix.MSG_PEEK)
	if err != nil || n == 0 {
		return -1
	}
	return int(b[0])
}

// die closes what the worker's process had and has it removed.
func (p *peer) die(how Removal) {
	p.Helper()
	for i := range p.has {
		_ = p.has[i].fd.Close()
	}
	p.has = nil
	_ = p.port.Close()
	p.l.remove(p.id, how)
	p.settle()
}

// answer answers the first n unanswered handoffs in one message and closes them.
func (p *peer) answer(n int, as handoff.Type, reason handoff.Reason) {
	p.Helper()
	var frames []handoff.Frame
	for i := range n {
		frames = append(frames, handoff.Frame{Type: as, Seq: p.has[i].seq, Arg: uint32(reason)})
		_ = p.has[i].fd.Close()
	}
	p.has = p.has[n:]
	p.say(frames...)
}

func (p *peer) ack(n int) { p.Helper(); p.answer(n, handoff.Ack, 0) }

func (p *peer) reject(n int) { p.Helper(); p.answer(n, handoff.Reject, handoff.ReasonBusy) }

func (p *peer) again(ln *listener) {
	p.Helper()
	p.say(handoff.Frame{Type: handoff.Again, Listener: ln.wire})
}

// mustHear fails unless exactly these clients have come.
func (p *peer) mustGet(want ...int) {
	p.Helper()
	if got := p.hear(); !slices.Equal(got, want) {
		p.Fatalf("worker %d got %v, want %v", p.id, got, want)
	}
}

func (p *peer) last(of handoff.Type) *handoff.Frame {
	for i := len(p.heard) - 1; i >= 0; i-- {
		if p.heard[i].Type == of {
			return &p.heard[i]
		}
	}
	return nil
}

// faulty is a real channel whose sending the test makes fail: what was added is
// kept here until a Flush may pass.
type faulty struct {
	*handoff.Conn
	adds  []func()
	fails syscall.Errno // every Flush and Send fails with it
	tries int
}

func (f *faulty) Add(seq uint64, listener, deaths uint32, d handoff.FD) bool {
	f.adds = append(f.adds, func() { f.Conn.Add(seq, listener, deaths, d) })
	return len(f.adds) == handoff.MaxFrames
}

func (f *faulty) Flush() error {
	adds := f.adds
	f.adds = nil
	f.tries++
	if f.fails != 0 {
		return f.fails
	}
	for _, add := range adds {
		add()
	}
	return f.Conn.Flush()
}

func (f *faulty) Send(frame *handoff.Frame, share handoff.FD) error {
	if f.fails != 0 {
		f.tries++
		return f.fails
	}
	return f.Conn.Send(frame, share)
}
