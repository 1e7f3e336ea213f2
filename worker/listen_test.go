package worker

import (
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"

	"rrd/handoff"
	"rrd/test/leakcheck"
)

func TestListenErrors(t *testing.T) {
	for _, c := range []struct {
		name string
		arg  syscall.Errno
		text string
		want string
	}{
		{"errno", syscall.EADDRINUSE, "", "listen tcp :80: bind: address already in use"},
		{"advice", syscall.EINVAL, "several listeners: name one of a, b (--listen NAME=ADDR)",
			"listen tcp :80: several listeners: name one of a, b (--listen NAME=ADDR) (invalid argument)"},
		{"advice that says it", syscall.EACCES, "port 80 is below 1024: permission denied", "listen tcp :80: port 80 is below 1024: permission denied"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMaster(t)
			ch := m.worker(0)
			asked := later(func() (net.Listener, error) { return ch.listen("tcp", ":80") })
			f := m.expect(handoff.Listen)
			m.send(handoff.Frame{Type: handoff.Listening, Seq: f.Seq, Arg: uint32(c.arg), Payload: []byte(c.text)})
			_, err := wait(t, asked)
			var op *net.OpError
			if !errors.Is(err, c.arg) || !errors.As(err, &op) || op.Op != "listen" {
				t.Errorf("%#v", err)
			}
			if err == nil || err.Error() != c.want {
				t.Errorf("got  %v\nwant %v", err, c.want)
			}
		})
	}
}

func TestListenUnix(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	asked := later(func() (net.Listener, error) { return ch.listen("unix", "/tmp/x.sock") })
	f := m.expect(handoff.Listen)
	if string(f.Payload) != "unix\x00/tmp/x.sock" {
		t.Errorf("LISTEN of %q", f.Payload)
	}
	m.send(handoff.Frame{Type: handoff.Listening, Seq: f.Seq, Listener: 1, Payload: f.Payload})
	ln, err := wait(t, asked)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if a := ln.Addr(); a.Network() != "unix" || a.String() != "/tmp/x.sock" {
		t.Errorf("Addr %v %v", a.Network(), a)
	}
	client, _ := m.add("unix", 1)
	m.flush()
	conn := accepted(t, accept(t, ln))
	if _, ok := conn.(*UnixConn); !ok {
		t.Fatalf("Accept returns a %T", conn)
	}
	exchange(t, client, conn)
	_ = conn.Close()
	if _, err := client.Read(make([]byte, 1)); err == nil {
		t.Error("no end after Close")
	}
}

func TestListenTooLong(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	if _, err := ch.listen("unix", strings.Repeat("x", handoff.MaxPayload)); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("%v", err)
	}
}

func TestListenNonsenseAnswerLeavesAgain(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	asked := later(func() (net.Listener, error) { return ch.listen("tcp", ":80") })
	f := m.expect(handoff.Listen)
	m.send(handoff.Frame{Type: handoff.Listening, Seq: f.Seq, Listener: 5, Payload: []byte("tcp\x00what")})
	if _, err := wait(t, asked); err == nil {
		t.Error("no error")
	}
	if f := m.expect(handoff.Leave); f.Listener != 5 {
		t.Errorf("LEAVE(%d)", f.Listener)
	}
}

// A LEAVE must not cross a LISTEN whose answer may be the same listener.
func TestLeaveWaitsForAListenUnderWay(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln := m.listen(ch, 1)
	asked := later(func() (net.Listener, error) { return ch.listen("tcp", ":8080") })
	f := m.expect(handoff.Listen)
	_ = ln.Close()
	_, seq := m.handOff(1)
	m.expectReject(seq, handoff.ReasonClosed)
	m.send(handoff.Frame{Type: handoff.Listening, Seq: f.Seq, Listener: 1, Payload: []byte("tcp\x00127.0.0.1:8080")})
	second, err := wait(t, asked)
	if err != nil {
		t.Fatal(err)
	}
	m.handOff(1)
	accepted(t, accept(t, second))
	m.expect(handoff.Ready)
	m.expect(handoff.Ack)
	_ = second.Close()
	m.expect(handoff.Leave)
}

// Several goroutines listen at once; each gets its own answer.
func TestListenConcurrently(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	var asked [4]<-chan result[net.Listener]
	for i := range asked {
		asked[i] = later(func() (net.Listener, error) { return ch.listen("unix", string(rune('a'+i))) })
	}
	for range asked {
		f := m.expect(handoff.Listen)
		m.send(handoff.Frame{Type: handoff.Listening, Seq: f.Seq, Listener: uint32(f.Seq), Payload: f.Payload})
	}
	for i, c := range asked {
		ln, err := wait(t, c)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := ln.Addr().String(), string(rune('a'+i)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
		_ = ln.Close()
	}
}

func TestAloneListenAcceptsConns(t *testing.T) {
	leakcheck.Check(t)
	for _, network := range []string{"tcp", "unix"} {
		addr := "127.0.0.1:0"
		if network == "unix" {
			addr = t.TempDir() + "/s"
		}
		ln, err := Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		client, err := net.Dial(network, ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conn := accepted(t, accept(t, ln))
		switch conn.(type) {
		case *Conn, *UnixConn:
		default:
			t.Errorf("Accept returns a %T", conn)
		}
		exchange(t, client, conn)
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		if err := conn.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("second Close: %v", err)
		}
		_ = client.Close()
		_ = ln.Close()
	}
}

func TestAlonePackets(t *testing.T) {
	c, err := ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.WriteTo([]byte("x"), c.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2)
	if n, _, err := c.ReadFrom(b); n != 1 || err != nil {
		t.Errorf("%d %v", n, err)
	}
}

func TestAlone(t *testing.T) {
	if Active() {
		t.Error("active")
	}
	select {
	case <-Draining():
		t.Error("draining")
	default:
	}
	if _, err := Listen("udp", ":0"); !errors.As(err, new(net.UnknownNetworkError)) {
		t.Errorf("Listen udp: %v", err)
	}
	if _, err := ListenPacket("tcp", ":0"); !errors.As(err, new(net.UnknownNetworkError)) {
		t.Errorf("ListenPacket tcp: %v", err)
	}
}
