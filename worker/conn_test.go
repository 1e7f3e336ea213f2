package worker

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"rrd/handoff"
)

// connPair is one handed-off connection, acked; the master keeps its copy.
func connPair(t testing.TB, network string, flags uint16) (*master, net.Conn, net.Conn, uint64) {
	t.Helper()
	m := newMaster(t)
	m.keep = true
	ln := m.listen(m.worker(flags), 1)
	client, seq := m.add(network, 1)
	m.flush()
	conn := accepted(t, accept(t, ln))
	m.expect(handoff.Ready)
	m.expect(handoff.Ack)
	return m, client, conn, seq
}

// net.Buffers has a way of its own into the connections of package net.
func TestAckLeavesBeforeBuffersAreWritten(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		m := newMaster(t)
		ch := m.worker(0)
		ln := m.listen(ch, 1)
		ch.mu.Lock()
		ch.tickArmed = true // it never fires
		ch.mu.Unlock()
		_, _ = m.add(network, 1)
		_, _ = m.add(network, 1)
		m.flush()
		conn := accepted(t, accept(t, ln)) // its ack would leave with the other's
		if ch.flushed.Load() > 0 {
			t.Fatal("an ack has left already")
		}
		b := net.Buffers{[]byte("a"), []byte("b")}
		if n, err := b.WriteTo(conn); n != 2 || err != nil {
			t.Fatal(n, err)
		}
		if ch.flushed.Load() == 0 {
			t.Error("a byte was written before the ack")
		}
	}
}

func TestTouchedOnce(t *testing.T) {
	for name, touch := range map[string]func(client net.Conn, c *Conn){
		"read":       func(client net.Conn, c *Conn) { _, _ = client.Write([]byte("x")); _, _ = c.Read(make([]byte, 1)) },
		"write":      func(_ net.Conn, c *Conn) { _, _ = c.Write([]byte("x")) },
		"read from":  func(_ net.Conn, c *Conn) { _, _ = c.ReadFrom(strings.NewReader("x")) },
		"write to":   func(client net.Conn, c *Conn) { _ = client.Close(); _, _ = c.WriteTo(io.Discard) },
		"raw":        func(_ net.Conn, c *Conn) { _, _ = c.SyscallConn() },
		"linger":     func(_ net.Conn, c *Conn) { _ = c.SetLinger(0) },
		"close read": func(_ net.Conn, c *Conn) { _ = c.CloseRead() },
		"half close": func(_ net.Conn, c *Conn) { _ = c.CloseWrite() },
		"close":      func(_ net.Conn, c *Conn) { _ = c.Close() },
		"net conn":   func(_ net.Conn, c *Conn) { c.NetConn() },
		"file": func(_ net.Conn, c *Conn) {
			if f, err := c.File(); err == nil {
				_ = f.Close()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, client, conn, seq := connPair(t, "tcp", handoff.HelloTouches)
			touch(client, conn.(*Conn))
			if f := m.expect(handoff.Touched); f.Seq != seq {
				t.Errorf("TOUCHED(%d), want %d", f.Seq, seq)
			}
			_ = conn.Close()
			if f := m.expect(handoff.Closed); f.Arg != 1 {
				t.Errorf("CLOSED(%d)", f.Arg)
			}
		})
	}
}

func TestTouchedUnixOnce(t *testing.T) {
	for name, touch := range map[string]func(client net.Conn, c *UnixConn){
		"read":      func(client net.Conn, c *UnixConn) { _, _ = client.Write([]byte("x")); _, _ = c.Read(make([]byte, 1)) },
		"read from": func(client net.Conn, c *UnixConn) { _ = client.Close(); _, _, _ = c.ReadFrom(make([]byte, 1)) },
		"read unix": func(client net.Conn, c *UnixConn) { _ = client.Close(); _, _, _ = c.ReadFromUnix(make([]byte, 1)) },
		"read msg": func(client net.Conn, c *UnixConn) {
			_ = client.Close()
			_, _, _, _, _ = c.ReadMsgUnix(make([]byte, 1), nil)
		},
		"write":      func(_ net.Conn, c *UnixConn) { _, _ = c.Write([]byte("x")) },
		"write to":   func(_ net.Conn, c *UnixConn) { _, _ = c.WriteTo([]byte("x"), c.RemoteAddr()) },
		"write unix": func(_ net.Conn, c *UnixConn) { _, _ = c.WriteToUnix([]byte("x"), nil) },
		"write msg":  func(_ net.Conn, c *UnixConn) { _, _, _ = c.WriteMsgUnix([]byte("x"), nil, nil) },
		"raw":        func(_ net.Conn, c *UnixConn) { _, _ = c.SyscallConn() },
		"close read": func(_ net.Conn, c *UnixConn) { _ = c.CloseRead() },
		"half close": func(_ net.Conn, c *UnixConn) { _ = c.CloseWrite() },
		"net conn":   func(_ net.Conn, c *UnixConn) { c.NetConn() },
		"file": func(_ net.Conn, c *UnixConn) {
			if f, err := c.File(); err == nil {
				_ = f.Close()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, client, conn, seq := connPair(t, "unix", handoff.HelloTouches)
			touch(client, conn.(*UnixConn))
			if f := m.expect(handoff.Touched); f.Seq != seq {
				t.Errorf("TOUCHED(%d), want %d", f.Seq, seq)
			}
		})
	}
}

// A deadline or an address is no touch: net/http asks for both before it reads.
func TestLookingIsNoTouch(t *testing.T) {
	m, _, conn, _ := connPair(t, "tcp", handoff.HelloTouches)
	_ = conn.SetDeadline(longAgo)
	_, _ = conn.LocalAddr(), conn.RemoteAddr()
	_ = conn.(*Conn).SetKeepAlive(false)
	m.barrier()
	if len(m.got) > 0 {
		t.Errorf("says %v", m.got)
	}
}

// The master still has its copy of the connection, and the client sees the end
// all the same.
func TestCloseIsSeenAtOnce(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		_, client, conn, _ := connPair(t, network, 0)
		if _, err := conn.Write([]byte("bye")); err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(client)
		if string(got) != "bye" || err != nil {
			t.Errorf("%s: client reads %q, %v", network, got, err)
		}
		if err := conn.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: second Close: %v", network, err)
		}
	}
}

// What a reader sees between the two halves of Close is a close as well.
func TestShutdownLooksLikeClose(t *testing.T) {
	_, _, conn, _ := connPair(t, "tcp", 0)
	c := conn.(*Conn)
	if err := c.h.ended("read", c.TCPConn, io.EOF); err != io.EOF {
		t.Errorf("before Close: %v", err)
	}
	_ = conn.Close()
	var op *net.OpError
	if err := c.h.ended("read", c.TCPConn, io.EOF); !errors.Is(err, net.ErrClosed) || !errors.As(err, &op) || op.Op != "read" {
		t.Errorf("after Close: %v", err)
	}
}

// Close during a Read looks as it does without rrd.
func TestCloseDuringRead(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		m, client, conn, _ := connPair(t, network, handoff.HelloTouches)
		c := later(func() (int, error) { return conn.Read(make([]byte, 1)) })
		m.expect(handoff.Touched) // the read has begun
		_ = conn.Close()
		if _, err := wait(t, c); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: Read ends with %v", network, err)
		}
		if _, err := conn.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: Write after Close: %v", network, err)
		}
		_ = client
	}
}

func TestLingerZeroResetsWhenTheCopyGoes(t *testing.T) {
	m, client, conn, seq := connPair(t, "tcp", handoff.HelloTouches)
	if err := conn.(*Conn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if f := m.expect(handoff.Touched); f.Seq != seq {
		t.Fatal(f)
	}
	_ = m.copies[seq].Close()
	if _, err := client.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("client reads %v, want a reset", err)
	}
}

// A descriptor that the program has taken out of the connection lives on.
func TestFileOutlivesClose(t *testing.T) {
	_, client, conn, _ := connPair(t, "tcp", 0)
	f, err := conn.(*Conn).File()
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	if _, err := f.Write([]byte("still here")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 10)
	if _, err := io.ReadFull(client, b); err != nil || string(b) != "still here" {
		t.Errorf("client reads %q, %v", b, err)
	}
	_ = f.Close()
}

// The promoted methods keep sendfile: a LimitedReader is how net/http calls.
func TestReadFromFile(t *testing.T) {
	_, client, conn, _ := connPair(t, "tcp", 0)
	name := t.TempDir() + "/f"
	want := bytes.Repeat([]byte("0123456789"), 5000)
	if err := os.WriteFile(name, want, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	read := later(func() ([]byte, error) { return io.ReadAll(client) })
	lr := &io.LimitedReader{R: f, N: 40_000}
	if n, err := conn.(*Conn).ReadFrom(lr); n != 40_000 || err != nil || lr.N != 0 {
		t.Errorf("ReadFrom %d, %v, %d left", n, err, lr.N)
	}
	_ = conn.Close()
	if got, err := wait(t, read); err != nil || !bytes.Equal(got, want[:40_000]) {
		t.Errorf("client has %d bytes, %v", len(got), err)
	}
}

// From one connection to another, also of the other kind, in every way to ask.
func TestCopyBetweenConns(t *testing.T) {
	for _, way := range []string{"tcp to tcp", "tcp to unix", "unix to tcp", "limited"} {
		t.Run(way, func(t *testing.T) {
			from, to := "tcp", "tcp"
			switch way {
			case "tcp to unix":
				to = "unix"
			case "unix to tcp":
				from = "unix"
			}
			_, in, src, _ := connPair(t, from, 0)
			_, out, dst, _ := connPair(t, to, 0)
			if _, err := in.Write([]byte("through")); err != nil {
				t.Fatal(err)
			}
			_ = in.Close()
			var r io.Reader = src
			if way == "limited" {
				r = io.LimitReader(src, 100)
			}
			if n, err := io.Copy(dst, r); n != 7 || err != nil {
				t.Errorf("Copy %d, %v", n, err)
			}
			_ = dst.Close()
			if got, err := io.ReadAll(out); string(got) != "through" || err != nil {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

// TOUCHED leaves with an ack where one is near, and else with Close, long before the
// timer that bounds it.
func TestTouchedLeavesWithClose(t *testing.T) {
	m, client, conn, seq := connPair(t, "tcp", handoff.HelloTouches)
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	c := conn.(*Conn)
	if c.h.state.Load()&alone == 0 {
		t.Error("the first connection has an ack near that TOUCHED could leave with")
	}
	c.h.ch.mu.Lock()
	c.h.ch.later.Stop()
	c.h.ch.mu.Unlock()
	_ = conn.Close()
	if f := m.expect(handoff.Touched); f.Seq != seq {
		t.Errorf("TOUCHED(%d), want %d", f.Seq, seq)
	}
	m.expect(handoff.Closed)
}
