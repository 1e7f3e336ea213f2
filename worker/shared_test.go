package worker

import (
	"errors"
	"net"
	"syscall"
	"testing"
	"time"

	"rrd/handoff"
	"rrd/test/leakcheck"
)

// share makes a listener whose socket is lent to the worker.
func (m *master) share(ch *channel, id uint32, network string) (net.Listener, net.Listener) {
	m.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = m.TempDir() + "/s"
	}
	own, err := net.Listen(network, addr)
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { _ = own.Close() })
	c := later(func() (net.Listener, error) { return ch.listen(network, addr) })
	f := m.expect(handoff.Listen)
	f = handoff.Frame{Type: handoff.Listening, Seq: f.Seq, Listener: id, Flags: handoff.ListeningShared,
		Payload: []byte(network + "\x00" + own.Addr().String())}
	d := dup(m.TB, own.(syscall.Conn))
	defer d.Close()
	if err := m.c.Send(&f, d); err != nil {
		m.Fatal(err)
	}
	ln, err := wait(m.TB, c)
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { _ = ln.Close() })
	return ln, own
}

func dial(t testing.TB, ln net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial(ln.Addr().Network(), ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestSharedAccepts(t *testing.T) {
	leakcheck.Check(t)
	for _, network := range []string{"tcp", "unix"} {
		m := newMaster(t)
		ch := m.worker(0)
		ln, own := m.share(ch, 1, network)
		if ln.Addr().String() != own.Addr().String() {
			t.Errorf("Addr %v, want %v", ln.Addr(), own.Addr())
		}
		c := accept(t, ln)
		m.expect(handoff.Ready)
		client := dial(t, own)
		conn := accepted(t, c)
		exchange(t, client, conn)
		_ = conn.Close()
		_ = ln.Close()
		m.expect(handoff.Leave) // and no ACK or CLOSED before
	}
}

// The master hands off what it took from the socket of a slot without a worker.
func TestSharedAlsoTakesHandoffs(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln, own := m.share(ch, 1, "tcp")
	for range 5 {
		c := accept(t, ln)
		client, seq := m.handOff(1)
		exchange(t, client, accepted(t, c))
		m.until(handoff.Ack, seq)
		c = accept(t, ln)
		exchange(t, dial(t, own), accepted(t, c))
	}
}

func TestSharedHandoffNobodyTakes(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln, _ := m.share(ch, 1, "tcp")
	setTakeTime(ch, takeTime)
	_, seq := m.handOff(1)
	m.expectReject(seq, handoff.ReasonBusy)
	accept(t, ln)
	m.expect(handoff.Ready)
	m.expect(handoff.Again)
	_ = ln.Close()
}

// A connection whose client has reset it is acked before Accept blocks again, whatever
// timers there are.
func TestSharedHandoffResetIsAckedAtOnce(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(handoff.HelloCloses)
	ln, _ := m.share(ch, 1, "tcp")
	accept(t, ln)
	m.expect(handoff.Ready)
	client, seq := m.add("tcp", 1)
	if err := client.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	_ = client.Close()
	m.flush()
	if f := m.expect(handoff.Ack); f.Seq != seq {
		t.Errorf("ACK(%d), want %d", f.Seq, seq)
	}
	m.expect(handoff.Closed)
	_ = ln.Close()
}

func TestSharedDrainStopsAcceptingThenDrains(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln, own := m.share(ch, 1, "tcp")
	c := accept(t, ln)
	dial(t, own)
	conn := accepted(t, c)
	blocked := accept(t, ln)
	m.expect(handoff.Ready)
	m.send(handoff.Frame{Type: handoff.Drain})
	<-ch.drainC
	eventually(t, func() bool {
		ch.mu.Lock()
		defer ch.mu.Unlock()
		return ch.accepting == 0
	})
	other := accept(t, own) // another worker on the same socket
	client := dial(t, own)
	exchange(t, client, accepted(t, other))
	_ = conn.Close()
	m.expect(handoff.Drained)
	if len(blocked) > 0 {
		t.Error("Accept has returned")
	}
	_ = ln.Close()
	if _, err := wait(t, blocked); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept ends with %v", err)
	}
}

func TestSharedCloseEndsAccept(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln, own := m.share(ch, 1, "tcp")
	blocked := accept(t, ln)
	m.expect(handoff.Ready)
	_ = ln.Close()
	if _, err := wait(t, blocked); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept ends with %v", err)
	}
	m.expect(handoff.Leave)
	c := accept(t, own) // the socket lives on
	dial(t, own)
	accepted(t, c)
}

// A worker that finishes without a master leaves the address to the next master, and its
// program does not notice.
func TestSharedMasterGone(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		m := newMaster(t)
		ch := m.worker(0)
		exited := exits(ch)
		ln, own := m.share(ch, 1, network)
		c := accept(t, ln)
		client := dial(t, own)
		conn := accepted(t, c)
		blocked := accept(t, ln)
		m.die()
		<-ch.drainC
		bindAgain(t, own)
		exchange(t, client, conn)
		if exited.Load() > 0 || len(blocked) > 0 {
			t.Errorf("%s: %d exits, Accept has returned: %v", network, exited.Load(), len(blocked) > 0)
		}
		_ = conn.Close()
		eventually(t, func() bool { return exited.Load() > 0 })
		if err := ln.Close(); err != nil {
			t.Errorf("%s: Close: %v", network, err)
		}
		_, _ = wait(t, blocked)
	}
}

// bindAgain closes the last other descriptor of a listener and listens at its address.
func bindAgain(t *testing.T, own net.Listener) {
	t.Helper()
	addr := own.Addr()
	_ = own.Close() // removes the file of a unix socket
	eventually(t, func() bool {
		next, err := net.Listen(addr.Network(), addr.String())
		if err != nil {
			return false
		}
		_ = next.Close()
		return true
	})
}

// A client in the kernel's queue is served before the socket is given up.
func TestSharedMasterGoneServesTheQueue(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ch.orphanTime = time.Hour
	exited := exits(ch)
	ln, own := m.share(ch, 1, "tcp")
	m.die()
	<-ch.drainC
	client := dial(t, own)
	conn := accepted(t, accept(t, ln))
	exchange(t, client, conn)
	_ = conn.Close()
	blocked := accept(t, ln)
	ch.onOrphanTime()
	eventually(t, func() bool { return exited.Load() > 0 })
	_ = ln.Close()
	_, _ = wait(t, blocked)
}

// A worker that drains accepts nothing more: its successor does.
func TestSharedDrainThenMasterGone(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ch.orphanTime = time.Hour
	exits(ch)
	ln, own := m.share(ch, 1, "tcp")
	c := accept(t, ln)
	dial(t, own)
	accepted(t, c)
	m.send(handoff.Frame{Type: handoff.Drain})
	<-ch.drainC
	m.die()
	bindAgain(t, own)
}

// Another process shuts the socket down: Accept waits until the socket listens again.
func TestSharedShutDownByAnother(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln, own := m.share(ch, 1, "tcp")
	blocked := accept(t, ln)
	m.expect(handoff.Ready)
	rc, err := own.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	control := func(call func(fd int) error) {
		t.Helper()
		if cerr := rc.Control(func(fd uintptr) { err = call(int(fd)) }); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
	}
	control(func(fd int) error { return syscall.Shutdown(fd, syscall.SHUT_RDWR) })
	if _, err := net.Dial("tcp", own.Addr().String()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Fatalf("still open: %v", err)
	}
	// The port that the kernel had chosen is free now: bind(2) takes it again.
	addr := own.Addr().(*net.TCPAddr)
	control(func(fd int) error {
		return syscall.Bind(fd, &syscall.SockaddrInet4{Port: addr.Port, Addr: [4]byte(addr.IP.To4())})
	})
	control(func(fd int) error { return syscall.Listen(fd, 16) })
	client := dial(t, own)
	exchange(t, client, accepted(t, blocked))
	_ = ln.Close()
}

func TestPacketsMasterGone(t *testing.T) {
	leakcheck.Check(t)
	m := newMaster(t)
	ch := m.worker(0)
	exits(ch)
	c, own := m.sharePackets(ch, 4)
	addr := own.LocalAddr().String()
	_ = own.Close()
	read := later(func() (int, error) { n, _, err := c.ReadFrom(make([]byte, 8)); return n, err })
	m.die()
	<-ch.drainC
	var next net.PacketConn
	eventually(t, func() (ok bool) {
		var err error
		next, err = net.ListenPacket("udp", addr)
		return err == nil
	})
	defer next.Close()
	if _, err := c.WriteTo([]byte("x"), next.LocalAddr()); err != nil {
		t.Errorf("WriteTo: %v", err)
	}
	if _, from, err := next.ReadFrom(make([]byte, 8)); err != nil || from.String() == addr {
		t.Errorf("from %v: %v", from, err)
	}
	if len(read) > 0 {
		n, err := wait(t, read)
		t.Errorf("ReadFrom has returned: %d %v", n, err)
	}
	_ = c.Close()
	if _, err := wait(t, read); !errors.Is(err, net.ErrClosed) {
		t.Errorf("ReadFrom ends with %v", err)
	}
}

// sharePackets makes a datagram socket that is lent to the worker.
func (m *master) sharePackets(ch *channel, id uint32) (net.PacketConn, net.PacketConn) {
	m.Helper()
	own, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		m.Fatal(err)
	}
	m.Cleanup(func() { _ = own.Close() })
	asked := later(func() (net.PacketConn, error) { return ch.listenPacket("udp", ":53") })
	f := m.expect(handoff.Listen)
	f = handoff.Frame{Type: handoff.Listening, Seq: f.Seq, Listener: id,
		Flags: handoff.ListeningShared | handoff.ListeningPacket, Payload: []byte("udp\x00" + own.LocalAddr().String())}
	d := dup(m.TB, own.(*net.UDPConn))
	defer d.Close()
	if err := m.c.Send(&f, d); err != nil {
		m.Fatal(err)
	}
	c, err := wait(m.TB, asked)
	if err != nil {
		m.Fatal(err)
	}
	m.expect(handoff.Ready)
	return c, own
}

func TestPackets(t *testing.T) {
	leakcheck.Check(t)
	m := newMaster(t)
	ch := m.worker(0)
	c, own := m.sharePackets(ch, 4)
	client := later(func() (net.Conn, error) { return net.Dial("udp", own.LocalAddr().String()) })
	conn, err := wait(t, client)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("q")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 8)
	n, from, err := c.ReadFrom(b)
	if err != nil || n != 1 || from.String() != conn.LocalAddr().String() {
		t.Errorf("%d %v %v", n, from, err)
	}
	m.send(handoff.Frame{Type: handoff.Drain})
	m.expect(handoff.Drained)
	_ = c.Close()
	m.expect(handoff.Leave)
	if err := c.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
}

func TestWrongKindOfSocket(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	asked := later(func() (net.PacketConn, error) { return ch.listenPacket("udp", ":53") })
	f := m.expect(handoff.Listen)
	m.send(handoff.Frame{Type: handoff.Listening, Seq: f.Seq, Listener: 4, Payload: []byte("tcp\x00:1")})
	if _, err := wait(t, asked); !errors.Is(err, errWrongKind) {
		t.Errorf("%v", err)
	}
	m.expect(handoff.Leave)
	_, d := pair(t, "tcp")
	defer d.Close()
	again := later(func() (net.Listener, error) { return ch.listen("tcp", ":53") })
	f = m.expect(handoff.Listen)
	f = handoff.Frame{Type: handoff.Listening, Seq: f.Seq, Listener: 5, Flags: handoff.ListeningShared | handoff.ListeningPacket}
	if err := m.c.Send(&f, d); err != nil {
		t.Fatal(err)
	}
	if _, err := wait(t, again); !errors.Is(err, errWrongKind) {
		t.Errorf("%v", err)
	}
	m.expect(handoff.Leave)
}
