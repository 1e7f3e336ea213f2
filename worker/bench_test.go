package worker

import (
	"io"
	"net"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// newBenchmark has a listener and one connection, of which copies are handed off
// again and again: the cost of the worker's side and of the channel, without that
// of connecting.
func newBenchmark(b *testing.B, flags uint16) (*master, net.Listener, handoff.FD) {
	b.Helper()
	m := newMaster(b)
	m.keep = true
	ch := m.worker(flags)
	ln := m.listen(ch, 1)
	ch.mu.Lock()
	ch.due = longAgo // none is rejected because this process gets no CPU for a while
	ch.mu.Unlock()
	_, d := pair(b, "tcp")
	b.Cleanup(func() { _ = d.Close() })
	return m, ln, d
}

// drop reads what the worker has said so far.
func (m *master) drop() {
	for m.c.Receive() == nil {
	}
}

// BenchmarkAccept hands off, accepts, touches and closes, so many connections to
// a message.
func BenchmarkAccept(b *testing.B) {
	for name, batch := range map[string]int{"batch=1": 1, "batch=4": 4, "batch=16": 16} {
		b.Run(name, func(b *testing.B) {
			m, ln, d := newBenchmark(b, handoff.HelloTouches)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				if n%batch == 0 {
					for range batch {
						m.seq++
						m.c.Add(m.seq, 1, 0, d)
					}
					m.flush()
				}
				n++
				c, err := ln.Accept()
				if err != nil {
					b.Fatal(err)
				}
				// All that a program does, but on the shared socket: no shutdown.
				h := &c.(*Conn).h
				h.touch()
				h.state.Or(plain)
				_ = c.Close()
				if n%64 == 0 {
					m.drop()
				}
			}
		})
	}
}

// BenchmarkFileConn is the part of it that package net takes.
func BenchmarkFileConn(b *testing.B) {
	_, d := pair(b, "tcp")
	defer d.Close()
	var u funnel
	defer u.close()
	b.ReportAllocs()
	for b.Loop() {
		num, err := unix.FcntlInt(uintptr(d.Num()), unix.F_DUPFD_CLOEXEC, 0) // as the channel does
		if err != nil {
			b.Fatal(err)
		}
		fd := handoff.Own(num)
		c, err := u.conn(&fd)
		if err != nil {
			b.Fatal(err)
		}
		_ = c.Close()
	}
}

// BenchmarkReadWrite is what Conn adds to a connection that is in use.
func BenchmarkReadWrite(b *testing.B) {
	m := newMaster(b)
	ln := m.listen(m.worker(0), 1)
	client, _ := m.handOff(1)
	conn := accepted(b, accept(b, ln))
	go func() { _, _ = io.Copy(client, client) }() // ends with the connection
	for name, c := range map[string]net.Conn{"worker.Conn": conn, "net.TCPConn": conn.(*Conn).TCPConn} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			buf := make([]byte, 16)
			for b.Loop() {
				if _, err := c.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
