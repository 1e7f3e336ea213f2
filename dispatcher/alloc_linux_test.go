//go:build !race

package dispatcher

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// acker is a channel whose worker acks all that it is sent, at once and without
// a process: what is left to measure is the loop's own.
type acker struct {
	event   int // readable while there are answers
	batch   []uint64
	answers []uint64
	reading bool
}

func (a *acker) Traits() handoff.Traits { return handoff.Traits{} }

func (a *acker) Num() int { return a.event }

func (a *acker) Add(seq uint64, _, _ uint32, _ handoff.FD) bool {
	a.batch = append(a.batch, seq)
	return len(a.batch) == handoff.MaxFrames
}

var one = [8]byte{1}

func (a *acker) Flush() error {
	a.answers = append(a.answers, a.batch...)
	a.batch = a.batch[:0]
	_, err := unix.Write(a.event, one[:])
	return err
}

func (a *acker) Receive() error {
	if len(a.answers) == 0 {
		return unix.EAGAIN
	}
	var b [8]byte
	_, _ = unix.Read(a.event, b[:])
	a.reading = true
	return nil
}

func (a *acker) Next(f *handoff.Frame) (bool, error) {
	if len(a.answers) == 0 {
		return false, nil
	}
	n := len(a.answers) - 1
	*f = handoff.Frame{Type: handoff.Ack, Seq: a.answers[n]}
	a.answers = a.answers[:n]
	return true, nil
}

func (a *acker) Send(*handoff.Frame, handoff.FD) error { return nil }

func (a *acker) Unread() (handoff.FD, bool) { return handoff.FD{}, false }

func (a *acker) Close() error { return unix.Close(a.event) }

// ackers adds n workers that are ready and ack.
func (s *stepped) ackers(ln *listener, n int) {
	s.Helper()
	for i := range n {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			s.Fatal(err)
		}
		if err := s.l.add(Worker{ID: uint64(i + 1), Slot: i, Channel: &acker{event: fd}}); err != nil {
			s.Fatal(err)
		}
		k := s.l.byID[uint64(i+1)]
		k.ready, k.state = true, handoff.Serving
		s.l.table.serve(k.idx, ln.id)
		s.l.review(k)
	}
}

// rawClients are sockets without the runtime's poller, which allocates.
type rawClients struct {
	to  unix.Sockaddr
	fds [32]int
	buf [1]byte
}

func (c *rawClients) connect() error {
	for i := range c.fds {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		c.fds[i] = fd
		if err := unix.Connect(fd, c.to); err != nil {
			return err
		}
	}
	return nil
}

// end waits until each was closed by the master, whose copy was the only one.
func (c *rawClients) end() error {
	for _, fd := range c.fds {
		if n, err := unix.Read(fd, c.buf[:]); n != 0 || err != nil {
			return fmt.Errorf("read: %d, %w", n, err)
		}
		_ = unix.Close(fd)
	}
	return nil
}

func newRawClients(ln *listener) *rawClients {
	ap := netip.MustParseAddrPort(ln.addr)
	return &rawClients{to: &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}}
}

// dispatchAll runs turns until n more connections were acked.
func (s *stepped) dispatchAll(ln *listener, n int) error {
	for want := ln.stats.Acked + uint64(n); ln.stats.Acked < want; {
		s.d.poll.wake()
		if err := s.l.turn(); err != nil {
			return err
		}
	}
	return nil
}

// TestAConnectionAllocatesNothing counts over the whole loop: wait, accept,
// pair, send, read the answer, close.
func TestAConnectionAllocatesNothing(t *testing.T) {
	for _, workers := range []int{1, 8} {
		s := newStepped(t, Config{Configured: true})
		ln := s.listen("web")
		s.ackers(ln, workers)
		c := newRawClients(ln)
		round := func() {
			err := c.connect()
			if err == nil {
				err = s.dispatchAll(ln, len(c.fds))
			}
			if err == nil {
				err = c.end()
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		for range 4 {
			round()
		}
		if n := testing.AllocsPerRun(100, round); n != 0 {
			t.Errorf("%d workers: %v allocations for %d connections", workers, n, len(c.fds))
		}
	}
}

// BenchmarkLoop is the loop's cost of a connection, the kernel's for accepting
// and closing included, the client's and the worker's not. It must not grow with
// the workers.
func BenchmarkLoop(b *testing.B) {
	for _, workers := range []int{1, 4, 64, 256, 1024} {
		b.Run(fmt.Sprintf("%dworkers", workers), func(b *testing.B) {
			s := newStepped(b, Config{Configured: true})
			ln := s.listen("web")
			s.ackers(ln, workers)
			c := newRawClients(ln)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				if err := c.connect(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if err := s.dispatchAll(ln, len(c.fds)); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := c.end(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(c.fds)), "ns/conn")
		})
	}
}
