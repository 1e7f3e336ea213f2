package worker

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"rrd/handoff"
)

// TestStorm plays a master with a window before acceptors that come and go, on a
// listener of each kind. Every connection is served exactly once, whatever was
// rejected in between, and at the end every one is acked and closed.
func TestStorm(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("STORM_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("STORM_SEED=%d", seed)
	s := &storm{master: newMaster(t), rnd: rand.New(rand.NewPCG(seed, 1)),
		waiting: map[uint64]uint32{}, flying: map[uint64]uint32{}}
	ch := s.worker(handoff.HelloTouches)
	setTakeTime(ch, takeTime)
	shared, _ := s.share(ch, 3, "tcp")
	lns := []net.Listener{s.listen(ch, 1), s.listen(ch, 2), shared}
	var acceptors sync.WaitGroup
	for i := range 6 {
		pause := rand.New(rand.NewPCG(seed, uint64(i+2)))
		acceptors.Go(func() { acceptSlowly(lns[i%len(lns)], pause) })
	}

	const n, window = 300, 6
	for range n {
		s.start(uint32(s.rnd.IntN(3) + 1))
		for len(s.flying) >= window || s.rnd.IntN(3) == 0 && s.inFlight() {
			s.step()
		}
	}
	for s.inFlight() {
		s.step()
	}
	for _, c := range s.answers {
		if _, err := wait(t, c); err != nil {
			t.Errorf("client: %v", err)
		}
	}
	s.send(handoff.Frame{Type: handoff.Drain})
	if !s.until(handoff.Drained, 0) {
		t.Error("no DRAINED")
	}
	for _, f := range s.got {
		s.count(f)
	}
	if s.acked != n || s.closed != n || s.touched != n {
		t.Errorf("%d acked, %d touched, %d closed, want %d of each", s.acked, s.touched, s.closed, n)
	}
	t.Logf("%d rejects", s.rejects)
	for _, ln := range lns {
		_ = ln.Close()
	}
	acceptors.Wait()
}

// acceptSlowly serves one connection at a time, now and then after a pause that
// is longer than a connection may lie.
func acceptSlowly(ln net.Listener, rnd *rand.Rand) {
	for {
		switch rnd.IntN(12) {
		case 0:
			time.Sleep(takeTime + time.Duration(rnd.IntN(10))*time.Millisecond) // load, not order
		case 1, 2:
			time.Sleep(time.Duration(rnd.IntN(3000)) * time.Microsecond)
		}
		c, err := ln.Accept()
		if err != nil {
			return
		}
		echo(c)
	}
}

type storm struct {
	*master
	rnd     *rand.Rand
	waiting map[uint64]uint32 // rejected: seq to listener
	flying  map[uint64]uint32 // sent and not answered
	answers []<-chan result[int]

	acked, touched, closed, rejects int
}

func (s *storm) inFlight() bool { return len(s.flying)+len(s.waiting) > 0 }

// start connects a client that wants its own bytes back, once.
func (s *storm) start(listener uint32) {
	client, seq := s.add("tcp", listener)
	s.answers = append(s.answers, later(func() (int, error) {
		text := fmt.Sprint("connection ", seq)
		if _, err := io.WriteString(client, text); err != nil {
			return 0, err
		}
		_ = client.(*net.TCPConn).CloseWrite()
		b, err := io.ReadAll(client)
		if err == nil && string(b) != text {
			err = fmt.Errorf("connection %d got %q", seq, b)
		}
		return 0, err
	}))
	// Also to a busy listener: a handoff may cross its reject.
	s.flying[seq] = listener
	s.flush()
}

// step reads one frame and acts on it.
func (s *storm) step() {
	s.Helper()
	f := s.next()
	s.count(f)
	switch f.Type {
	case handoff.Again:
		for seq, listener := range s.waiting {
			if listener == f.Listener {
				delete(s.waiting, seq)
				s.flying[seq] = listener
				if s.c.Add(seq, listener, 1, *s.copies[seq]) {
					s.flush()
				}
			}
		}
		s.flush()
	case handoff.Reject:
		if handoff.Reason(f.Arg) != handoff.ReasonBusy {
			s.Fatalf("rejected: %v", handoff.Reason(f.Arg))
		}
		listener := s.flying[f.Seq]
		delete(s.flying, f.Seq)
		s.waiting[f.Seq] = listener
	case handoff.Ack:
		if _, ok := s.flying[f.Seq]; !ok {
			s.Fatalf("ack of %d, which is not in flight", f.Seq)
		}
		delete(s.flying, f.Seq)
	}
}

func (s *storm) count(f handoff.Frame) {
	switch f.Type {
	case handoff.Ack:
		s.acked++
	case handoff.Touched:
		s.touched++
	case handoff.Closed:
		s.closed += int(f.Arg)
	case handoff.Reject:
		s.rejects++
	}
}
