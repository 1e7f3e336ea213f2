package worker

import (
	"errors"
	"net"
	"slices"
	"testing"
	"time"

	"rrd/handoff"
	"rrd/test/leakcheck"
)

func TestAcceptSaysReadyThenAcksBeforeTheFirstByte(t *testing.T) {
	leakcheck.Check(t)
	m := newMaster(t)
	ch := m.worker(0)
	ln := m.listen(ch, 7)
	if got := ln.Addr().String(); got != "127.0.0.1:8080" {
		t.Errorf("Addr %s", got)
	}
	c := accept(t, ln)
	m.expect(handoff.Ready)
	client, seq := m.handOff(7)
	conn := accepted(t, c)
	if conn.RemoteAddr().String() != client.LocalAddr().String() {
		t.Errorf("remote address %v, want %v", conn.RemoteAddr(), client.LocalAddr())
	}
	if _, ok := conn.(*Conn).NetConn().(*net.TCPConn); !ok {
		t.Errorf("NetConn is a %T", conn.(*Conn).NetConn())
	}
	if f := m.expect(handoff.Ack); f.Seq != seq {
		t.Errorf("ack of %d, want %d", f.Seq, seq)
	}
	exchange(t, client, conn)
	_ = conn.Close()
	if f := m.expect(handoff.Closed); f.Arg != 1 {
		t.Errorf("CLOSED(%d), want 1", f.Arg)
	}
}

// The ack must be on its way when the client gets its first byte: the master
// could otherwise redispatch a request that was answered.
func TestAckLeavesBeforeTheFirstByte(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln := m.listen(ch, 1)
	for range 50 {
		client, _ := m.handOff(1)
		conn := accepted(t, accept(t, ln))
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		f, ok := m.poll(0, handoff.Ready, handoff.Closed)
		if !ok || f.Type != handoff.Ack {
			t.Fatalf("the client has a byte and the master %v %v", f.Type, ok)
		}
		_ = conn.Close()
	}
}

func TestAckLeavesByItself(t *testing.T) {
	m := newMaster(t)
	ln := m.listen(m.worker(0), 1)
	m.handOff(1)
	accepted(t, accept(t, ln))
	m.expect(handoff.Ready)
	m.expect(handoff.Ack) // with nobody in Accept and no byte read
}

func TestOrderIsKept(t *testing.T) {
	m := newMaster(t)
	ln := m.listen(m.worker(0), 1)
	var clients []net.Conn
	var seqs []uint64
	for i := range 40 {
		client, seq := m.add("tcp", 1)
		clients, seqs = append(clients, client), append(seqs, seq)
		if i%16 == 15 {
			m.flush()
		}
	}
	m.flush()
	for _, client := range clients {
		conn := accepted(t, accept(t, ln))
		if conn.RemoteAddr().String() != client.LocalAddr().String() {
			t.Fatalf("%v comes before %v", conn.RemoteAddr(), client.LocalAddr())
		}
	}
	m.expect(handoff.Ready)
	for _, seq := range seqs {
		if f := m.expect(handoff.Ack); f.Seq != seq {
			t.Fatalf("ack of %d, want %d", f.Seq, seq)
		}
	}
}

// Of eight connections that came in one message seven are accepted while no ack can
// leave, and then all acks leave together, with the last.
func TestAcksAreBatched(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln := m.listen(ch, 1)
	_, _ = m.handOff(1)
	accepted(t, accept(t, ln))
	m.expect(handoff.Ready)
	m.expect(handoff.Ack)

	ch.mu.Lock()
	ch.due = longAgo // none is rejected because this process gets no CPU for a while
	ch.mu.Unlock()
	ch.sendMu.Lock() // whoever wants to send, a tick too, waits
	for range 8 {
		m.add("tcp", 1)
	}
	m.flush()
	takenC := make(chan struct{})
	done := later(func() (int, error) {
		for i := range 8 {
			if i == 7 {
				close(takenC)
			}
			c, err := ln.Accept()
			if err != nil {
				return 0, err
			}
			t.Cleanup(func() { _ = c.Close() })
		}
		_, _ = ln.Accept() // blocks until the end
		return 0, nil
	})
	select {
	case <-takenC:
	case <-time.After(patience):
		t.Error("Accept waits for an ack to leave")
	}
	ch.sendMu.Unlock()
	m.mates = nil
	for range 8 {
		m.expect(handoff.Ack)
	}
	if !slices.Equal(m.mates, []int{8}) {
		t.Errorf("messages of %v frames, want all acks in one", m.mates)
	}
	_ = ln.Close()
	if _, err := wait(t, done); err != nil {
		t.Error(err)
	}
}

func TestNobodyTakesThenAgain(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln := m.listen(ch, 3)
	_, _ = m.handOff(3)
	accepted(t, accept(t, ln))
	m.expect(handoff.Ready)
	m.expect(handoff.Ack)

	setTakeTime(ch, takeTime)
	start := time.Now()
	client, seq := m.handOff(3)
	m.expectReject(seq, handoff.ReasonBusy)
	if d := time.Since(start); d < takeTime {
		t.Errorf("rejected after %v, want at least %v", d, takeTime)
	}
	setTakeTime(ch, time.Hour)
	c := accept(t, ln)
	if f := m.expect(handoff.Again); f.Listener != 3 {
		t.Errorf("AGAIN(%d), want 3", f.Listener)
	}
	// The very same connection can come once more.
	m.c.Add(seq, 3, 0, *m.copies[seq])
	m.flush()
	exchange(t, client, accepted(t, c))
	m.expect(handoff.Ack)
}

// parkedOnTwo are two listeners of endpoint 1, each with a goroutine that is parked in
// Accept, and another that reads.
func parkedOnTwo(t *testing.T) (m *master, ch *channel, first, second net.Listener, firstC, secondC <-chan result[net.Conn]) {
	m = newMaster(t)
	ch = m.worker(0)
	other := m.listen(ch, 2)
	first, second = m.listen(ch, 1), m.listen(ch, 1)
	accept(t, other)
	parked(t, ch, 0, waiterReads)
	firstC = accept(t, first)
	parked(t, ch, 1, waiterReads)
	secondC = accept(t, second)
	parked(t, ch, 2, waiterReads)
	m.expect(handoff.Ready)
	return m, ch, first, second, firstC, secondC
}

// A goroutine that is woken for a connection may find its listener closed: then another
// one of the endpoint takes it.
func TestClosedListenerPassesTheWakeUpOn(t *testing.T) {
	_, ch, first, _, firstC, secondC := parkedOnTwo(t)
	_, d := pair(t, "tcp")
	ch.mu.Lock()
	ch.pushLocked(ch.endpoints[1], handedOff{fd: d, seq: 1 << 40, at: time.Now()}) // wakes the first
	ln := first.(*listener)
	ln.closed = true // it runs only when mu is free
	ln.ep.listeners--
	ch.unlock()
	if _, err := wait(t, firstC); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept ends with %v", err)
	}
	accepted(t, secondC)
}

// Who is in Accept when a connection is given back all the same asks for more.
func TestAgainAfterExpiryInAccept(t *testing.T) {
	m, ch, _, _, _, _ := parkedOnTwo(t)
	ep := ch.endpoints[1]
	_, d := pair(t, "tcp")
	ch.mu.Lock()
	ep.queue = append(ep.queue, handedOff{fd: d, seq: 1 << 40, at: time.Now()}) // nobody is woken, or gets no CPU
	ch.takeTime = 0
	ch.expireLocked(ep, time.Now())
	ch.unlock()
	m.expectReject(1<<40, handoff.ReasonBusy)
	if f := m.expect(handoff.Again); f.Listener != 1 {
		t.Errorf("AGAIN(%d), want 1", f.Listener)
	}
}

// What cannot be made a connection goes back, and more is asked for.
func TestAgainAfterOther(t *testing.T) {
	m := newMaster(t)
	ln := m.listen(m.worker(0), 1)
	c := accept(t, ln)
	m.expect(handoff.Ready)
	packets, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := dup(t, packets.(*net.UDPConn))
	_ = packets.Close()
	m.copies[1<<40] = &d
	m.c.Add(1<<40, 1, 0, d)
	m.flush()
	m.expectReject(1<<40, handoff.ReasonOther)
	m.expect(handoff.Again)
	m.handOff(1)
	accepted(t, c)
}

// While every acceptor is busy the library itself reads and answers.
func TestBackgroundAnswersPing(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	m.listen(ch, 1) // nobody ever accepts
	for range 3 {
		m.barrier()
	}
	parked(t, ch, 0, backgroundReads)
}

func TestAcceptorAnswersPing(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln := m.listen(ch, 1)
	c := accept(t, ln)
	parked(t, ch, 0, waiterReads)
	m.barrier()
	m.handOff(1)
	accepted(t, c)
}

// The background gives the role up to whoever comes into Accept, and has it back
// when that one has left for good.
func TestRoleGoesFromBackgroundToAcceptorAndBack(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln := m.listen(ch, 1)
	for range 20 {
		parked(t, ch, 0, backgroundReads)
		c := accept(t, ln)
		parked(t, ch, 0, waiterReads)
		m.handOff(1)
		accepted(t, c)
	}
}

// Many goroutines on two listeners: each connection arrives once, on its own
// listener, whoever reads.
func TestManyAcceptorsOnTwoListeners(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(handoff.HelloTouches)
	lns := []net.Listener{m.listen(ch, 1), m.listen(ch, 2)}
	const acceptors, rounds = 4, 60
	type got struct {
		listener      int
		local, remote string // a client may have the same port twice, to two servers
	}
	gotC := make(chan got, rounds)
	var ends []<-chan result[int]
	for i, ln := range lns {
		for range acceptors {
			ends = append(ends, later(func() (int, error) {
				for {
					c, err := ln.Accept()
					if err != nil {
						return 0, err
					}
					gotC <- got{i, c.LocalAddr().String(), c.RemoteAddr().String()}
					_ = c.Close()
				}
			}))
		}
	}
	want := make(map[got]bool)
	for i := range rounds {
		client, _ := m.add("tcp", uint32(i%2+1))
		want[got{i % 2, client.RemoteAddr().String(), client.LocalAddr().String()}] = true
		if i%5 == 4 {
			m.flush()
		}
	}
	m.flush()
	for range rounds {
		select {
		case g := <-gotC:
			if !want[g] {
				t.Fatalf("%v twice or on the wrong listener", g)
			}
			delete(want, g)
		case <-time.After(patience):
			t.Fatalf("%d connections did not arrive", len(want))
		}
	}
	acks := 0
	for acks < rounds {
		if f := m.next(handoff.Ready, handoff.Closed, handoff.Touched); f.Type != handoff.Ack {
			t.Fatalf("%v", f)
		}
		acks++
	}
	_, _ = lns[0].Close(), lns[1].Close()
	for _, c := range ends {
		if _, err := wait(t, c); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept ends with %v", err)
		}
	}
}

func TestCloseEndsAcceptAndLeaves(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln, other := m.listen(ch, 1), m.listen(ch, 2)
	reader := accept(t, ln)
	parked(t, ch, 0, waiterReads)
	second := accept(t, ln)
	otherC := accept(t, other)
	parked(t, ch, 2, waiterReads)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []<-chan result[net.Conn]{reader, second} {
		if _, err := wait(t, c); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept ends with %v", err)
		}
	}
	m.expect(handoff.Ready)
	if f := m.expect(handoff.Leave); f.Listener != 1 {
		t.Errorf("LEAVE(%d), want 1", f.Listener)
	}
	// The other listener goes on, and what is late for the first goes back.
	_, late := m.handOff(1)
	_, _ = m.handOff(2)
	m.expectReject(late, handoff.ReasonClosed)
	accepted(t, otherC)
	m.expect(handoff.Ack)
	if err := ln.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Close: %v", err)
	}
}

func TestCloseRejectsWhatIsQueued(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln := m.listen(ch, 1)
	_, seq := m.handOff(1)
	eventually(t, func() bool {
		ch.mu.Lock()
		defer ch.mu.Unlock()
		return len(ch.endpoints[1].queue) == 1
	})
	_ = ln.Close()
	m.expectReject(seq, handoff.ReasonClosed)
	m.expect(handoff.Leave)
}

// Two listeners of one address are one to the master.
func TestTwoListenersOfOneID(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	first, second := m.listen(ch, 1), m.listen(ch, 1)
	c := accept(t, first)
	parked(t, ch, 0, waiterReads)
	d := accept(t, second)
	parked(t, ch, 1, waiterReads)
	m.handOff(1)
	accepted(t, c)
	m.handOff(1)
	accepted(t, d)
	_ = first.Close()
	c = accept(t, second)
	m.handOff(1)
	accepted(t, c)
	_ = second.Close()
	for _, want := range []handoff.Type{handoff.Ready, handoff.Ack, handoff.Ack, handoff.Ack, handoff.Leave} {
		m.expect(want)
	}
}

func TestUnknownListenerIsRejected(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln := m.listen(ch, 1)
	_, stray := m.handOff(9)
	m.handOff(1)
	accepted(t, accept(t, ln))
	m.expect(handoff.Ready)
	m.expectReject(stray, handoff.ReasonClosed)
	m.expect(handoff.Ack)
}

// A frame of a later version is passed over.
func TestUnknownFrameIsIgnored(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	m.listen(ch, 1)
	m.send(handoff.Frame{Type: 15, Seq: 1})
	m.barrier()
}

// What is no stream socket cannot be served.
func TestStrangeDescriptorIsRejected(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln := m.listen(ch, 1)
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := dup(t, udp.(*net.UDPConn))
	_ = udp.Close()
	m.copies[100] = &d
	m.c.Add(100, 1, 0, d)
	m.flush()
	c := accept(t, ln)
	m.expect(handoff.Ready)
	m.expectReject(100, handoff.ReasonOther)
	m.handOff(1)
	accepted(t, c)
}

// A client that reset its connection while it was under way is nobody's loss.
func TestResetConnectionIsAckedAndPassedOver(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(handoff.HelloTouches)
	ln := m.listen(ch, 1)
	client, seq := m.add("tcp", 1)
	_ = client.(*net.TCPConn).SetLinger(0)
	_ = client.Close()
	m.flush()
	c := accept(t, ln)
	m.expect(handoff.Ready)
	if f := m.expect(handoff.Ack); f.Seq != seq {
		t.Errorf("ack of %d", f.Seq)
	}
	if f := m.expect(handoff.Touched); f.Seq != seq {
		t.Errorf("touched %d", f.Seq)
	}
	next, _ := m.handOff(1)
	if conn := accepted(t, c); conn.RemoteAddr().String() != next.LocalAddr().String() {
		t.Errorf("got %v", conn.RemoteAddr())
	}
}
