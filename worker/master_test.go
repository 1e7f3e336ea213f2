package worker

import (
	"io"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// patience bounds every wait of a test; only a failing one takes it all.
const patience = 10 * time.Second

// master is the other end of a channel, played by the test's goroutine.
type master struct {
	testing.TB
	c      *handoff.Conn
	child  *os.File // the worker's end, for a role; nil once it is inherited
	seq    uint64
	got    []handoff.Frame        // read and not yet asked for
	mates  []int                  // frames in each message that was read
	copies map[uint64]*handoff.FD // kept until the ack
	keep   bool                   // keep them also after the ack
}

// newMaster makes a channel; what is left of it goes with the test.
func newMaster(t testing.TB) *master {
	t.Helper()
	c, child, err := handoff.Pair()
	if err != nil {
		t.Fatal(err)
	}
	m := &master{TB: t, c: c, child: child, copies: make(map[uint64]*handoff.FD)}
	t.Cleanup(m.die)
	return m
}

// die closes everything, as the death of the master does.
func (m *master) die() {
	if m.child != nil {
		_ = m.child.Close()
	}
	_ = m.c.Close()
	for _, d := range m.copies {
		_ = d.Close()
	}
	clear(m.copies)
}

// worker makes this process the worker, with HELLO said.
func (m *master) worker(flags uint16) *channel {
	m.Helper()
	ch := openTestChannel(m.TB, m.child)
	m.child = nil
	m.send(handoff.Frame{Type: handoff.Hello, Arg: 1, Flags: flags, Seq: 30_000})
	return ch
}

// openTestChannel takes ownership of child. On the channel a connection may lie as long
// as it needs: on a busy machine the goroutine that takes it may get no CPU for longer
// than takeTime. See setTakeTime.
func openTestChannel(t testing.TB, child *os.File) *channel {
	t.Helper()
	fd, err := syscall.Dup(int(child.Fd()))
	_ = child.Close()
	if err != nil {
		t.Fatal(err)
	}
	port, err := handoff.OpenPort(fd)
	if err != nil {
		t.Fatal(err)
	}
	ch := newChannel(port)
	ch.takeTime = time.Hour
	ch.exit = func(code int) { t.Errorf("exit(%d) called", code) }
	t.Cleanup(func() { _ = port.Close(); ch.funnel.close() })
	return ch
}

func (m *master) send(f handoff.Frame) {
	m.Helper()
	if err := m.c.Send(&f, handoff.FD{}); err != nil {
		m.Fatalf("send %v: %v", f.Type, err)
	}
}

// next returns the next frame that is none of those types.
func (m *master) next(but ...handoff.Type) handoff.Frame {
	m.Helper()
	f, ok := m.poll(patience, but...)
	if !ok {
		m.Fatal("the worker says nothing")
	}
	return f
}

// poll is next with its own patience.
func (m *master) poll(d time.Duration, but ...handoff.Type) (handoff.Frame, bool) {
	m.Helper()
	deadline := time.Now().Add(d)
	for {
		for len(m.got) > 0 {
			f := m.got[0]
			m.got = m.got[1:]
			if !slices.Contains(but, f.Type) {
				return f, true
			}
		}
		if !m.read(time.Until(deadline)) {
			return handoff.Frame{}, false
		}
	}
}

// read waits for a message.
func (m *master) read(d time.Duration) bool {
	m.Helper()
	p := []unix.PollFd{{Fd: int32(m.c.Num()), Events: unix.POLLIN}}
	n, err := unix.Poll(p, max(0, int(d.Milliseconds())))
	if err == unix.EINTR {
		return m.read(d)
	}
	if n == 0 {
		return false
	}
	if err := m.c.Receive(); err != nil {
		if err == io.EOF {
			return false
		}
		m.Fatalf("receive: %v", err)
	}
	mates := 0
	for {
		var f handoff.Frame
		ok, err := m.c.Next(&f)
		if err != nil {
			m.Fatalf("decode: %v", err)
		}
		if !ok {
			m.mates = append(m.mates, mates)
			return true
		}
		mates++
		f.Payload = slices.Clone(f.Payload)
		m.got = append(m.got, f)
		if d := m.copies[f.Seq]; d != nil && f.Type == handoff.Ack && !m.keep {
			_ = d.Close()
			delete(m.copies, f.Seq)
		}
	}
}

// expect wants a frame of that type next, but for CLOSED, which comes whenever.
func (m *master) expect(want handoff.Type) handoff.Frame {
	m.Helper()
	var but []handoff.Type
	if want != handoff.Closed {
		but = []handoff.Type{handoff.Closed}
	}
	f := m.next(but...)
	if f.Type != want {
		m.Fatalf("the worker says %v %+v, want %v", f.Type, f, want)
	}
	return f
}

func (m *master) expectReject(seq uint64, why handoff.Reason) {
	m.Helper()
	if f := m.expect(handoff.Reject); f.Seq != seq || f.Arg != uint32(why) {
		m.Fatalf("reject of %d, %v, want of %d, %v", f.Seq, handoff.Reason(f.Arg), seq, why)
	}
}

// barrier returns when the worker has read everything that was sent before.
func (m *master) barrier() {
	m.Helper()
	m.seq++
	m.send(handoff.Frame{Type: handoff.Ping, Seq: m.seq})
	if !m.until(handoff.Pong, m.seq) {
		m.Fatal("no PONG")
	}
}

// until reads to a frame, leaving those before it for next.
func (m *master) until(typ handoff.Type, seq uint64) bool {
	m.Helper()
	for deadline := time.Now().Add(patience); ; {
		for i, f := range m.got {
			if f.Type == typ && f.Seq == seq {
				m.got = slices.Delete(m.got, i, i+1)
				return true
			}
		}
		if !m.read(time.Until(deadline)) {
			return false
		}
	}
}

// pair is a connection through a listener of the test: the client's end and a
// descriptor of the server's.
func pair(t testing.TB, network string) (net.Conn, handoff.FD) {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = t.TempDir() + "/s"
	}
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial(network, ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	t.Cleanup(func() { _ = client.Close() })
	_ = client.SetDeadline(time.Now().Add(patience))
	return client, dup(t, server.(syscall.Conn))
}

// dup duplicates the descriptor of c.
func dup(t testing.TB, c syscall.Conn) handoff.FD {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var d handoff.FD
	var derr error
	err = rc.Control(func(fd uintptr) {
		var n int
		if n, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); derr == nil {
			d = handoff.Own(n)
		}
	})
	if err != nil || derr != nil {
		t.Fatal(err, derr)
	}
	return d
}

// add puts a handoff of a new connection into the batch.
func (m *master) add(network string, listener uint32) (client net.Conn, seq uint64) {
	m.Helper()
	client, d := pair(m.TB, network)
	m.seq++
	m.c.Add(m.seq, listener, 0, d)
	m.copies[m.seq] = &d
	return client, m.seq
}

func (m *master) flush() {
	m.Helper()
	if err := m.c.Flush(); err != nil {
		m.Fatalf("flush: %v", err)
	}
}

// handOff hands a new TCP connection off.
func (m *master) handOff(listener uint32) (client net.Conn, seq uint64) {
	m.Helper()
	client, seq = m.add("tcp", listener)
	m.flush()
	return client, seq
}

// result carries what a goroutine of the worker's side got.
type result[T any] struct {
	v   T
	err error
}

// later runs f, whose result the test waits for, on a goroutine.
func later[T any](f func() (T, error)) <-chan result[T] {
	c := make(chan result[T], 1)
	go func() { // ends with f; waited for by wait or by the leak check
		v, err := f()
		c <- result[T]{v, err}
	}()
	return c
}

func wait[T any](t testing.TB, c <-chan result[T]) (T, error) {
	t.Helper()
	select {
	case r := <-c:
		return r.v, r.err
	case <-time.After(patience):
		t.Fatal("waited in vain")
		panic("unreachable")
	}
}

// listen makes a listener that the master dispatches for.
func (m *master) listen(ch *channel, id uint32) net.Listener {
	m.Helper()
	c := later(func() (net.Listener, error) { return ch.listen("tcp", ":8080") })
	f := m.expect(handoff.Listen)
	if string(f.Payload) != "tcp\x00:8080" {
		m.Fatalf("LISTEN of %q", f.Payload)
	}
	m.send(handoff.Frame{Type: handoff.Listening, Seq: f.Seq, Listener: id, Payload: []byte("tcp\x00127.0.0.1:8080")})
	ln, err := wait(m.TB, c)
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { _ = ln.Close() })
	return ln
}

// accept starts an Accept; its connection is closed with the test.
func accept(t testing.TB, ln net.Listener) <-chan result[net.Conn] {
	return later(func() (net.Conn, error) {
		c, err := ln.Accept()
		if c != nil {
			t.Cleanup(func() { _ = c.Close() })
		}
		return c, err
	})
}

// accepted takes the result of accept.
func accepted(t testing.TB, c <-chan result[net.Conn]) net.Conn {
	t.Helper()
	conn, err := wait(t, c)
	if err != nil {
		t.Fatalf("accept: %v", err)
	}
	return conn
}

// parked waits until n goroutines wait in Accept without the reading role, and,
// if reading, one with it.
func parked(t testing.TB, ch *channel, n int, reading role) {
	t.Helper()
	eventually(t, func() bool {
		ch.mu.Lock()
		defer ch.mu.Unlock()
		return len(ch.waiting) == n && ch.role == reading
	})
}

// eventually polls for what no event tells of.
func eventually(t testing.TB, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatal("never came true")
		}
	}
}

// setTakeTime is for tests of connections that nobody takes.
func setTakeTime(ch *channel, d time.Duration) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.takeTime = d
}

// exits makes the channel's exit visible.
func exits(ch *channel) *atomic.Int32 {
	n := new(atomic.Int32)
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.exit = func(int) { n.Add(1) }
	return n
}

func exchange(t testing.TB, client, server net.Conn) {
	t.Helper()
	b := make([]byte, 4)
	if _, err := client.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(server, b); err != nil || string(b) != "ping" {
		t.Fatalf("server reads %q, %v", b, err)
	}
	if _, err := server.Write([]byte("pong")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(client, b); err != nil || string(b) != "pong" {
		t.Fatalf("client reads %q, %v", b, err)
	}
}
