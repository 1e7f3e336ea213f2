package dispatcher

import (
	"slices"
	"testing"
	"time"

	"rrd/handoff"
)

func TestOneAfterAnotherGoesRoundExactly(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	var ps []*peer
	for range 4 {
		ps = append(ps, s.serving(ln))
	}
	for i := range 40 {
		s.client(ln)
		s.settle()
		ps[i%4].mustGet(i + 1)
		ps[i%4].ack(1)
		s.settle()
	}
	for _, p := range ps {
		if st := p.k.stats; st.Handoffs != 10 || st.Acks != 10 {
			t.Errorf("worker %d: %d handoffs, %d acks", p.id, st.Handoffs, st.Acks)
		}
	}
	if st := s.stats("web"); st.Accepted != 40 || st.Acked != 40 {
		t.Errorf("%+v", st)
	}
}

func TestABatchIsOneMessageAWorker(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	a, b := s.serving(ln), s.serving(ln)
	s.connect(ln, 10)
	s.settle()
	a.mustGet(1, 3, 5, 7)
	b.mustGet(2, 4, 6, 8)
	b.ack(4)
	s.settle()
	b.mustGet(9, 10)
}

// Every second one is rejected: it goes to the next worker, nobody overtakes.
func TestEverySecondIsRejectedOnce(t *testing.T) {
	s := newStepped(t, Config{Configured: true, Window: 1})
	ln := s.listen("web")
	ps := []*peer{s.serving(ln), s.serving(ln)}
	var order []int
	const n = 100
	rejects := 0
	for i := range n {
		s.client(ln)
		s.settle()
		for {
			p := ps[0]
			if p.hear(); len(p.has) == 0 {
				p = ps[1]
				p.hear()
			}
			if len(p.has) != 1 {
				t.Fatalf("connection %d is with nobody", i)
			}
			if p.has[0].client%2 == 0 && rejects < (i+1)/2 {
				rejects++
				p.reject(1)
				s.settle()
				p.again(ln)
				continue
			}
			order = append(order, p.has[0].client)
			p.ack(1)
			break
		}
		s.settle()
		s.pass(againEveryTime)
		s.settle()
	}
	if !slices.IsSorted(order) || len(order) != n {
		t.Errorf("served in the order %v", order)
	}
	got := ps[0].k.stats.Rejects[handoff.ReasonBusy] + ps[1].k.stats.Rejects[handoff.ReasonBusy]
	if got != n/2 || s.l.stats.Redispatches[RedispatchRejected] != n/2 {
		t.Errorf("%d rejects, %d redispatches, want %d", got, s.l.stats.Redispatches[RedispatchRejected], n/2)
	}
}

const againEveryTime = time.Duration(againEvery)

func TestAllRejectThenOneSaysAgain(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	ps := []*peer{s.serving(ln), s.serving(ln), s.serving(ln)}
	s.connect(ln, 5)
	s.settle()
	for _, p := range ps {
		if p.hear(); len(p.has) > 0 {
			p.reject(len(p.has))
		}
	}
	s.settle()
	// What came back from the first was offered to those that had said nothing yet.
	for range ps {
		for _, p := range ps {
			if p.hear(); len(p.has) > 0 {
				p.reject(len(p.has))
			}
		}
		s.settle()
	}
	if st := s.stats("web"); st.Queued != 5 || st.InFlight != 0 {
		t.Fatalf("%+v", st)
	}
	turns := s.l.turns
	for range 3 {
		if !s.quiet() {
			t.Fatal("the loop does not sleep while everybody rejects")
		}
		s.pass(300 * time.Millisecond)
		s.settle()
	}
	if n := s.l.turns - turns; n > 6 {
		t.Errorf("%d turns while everybody rejects", n)
	}
	for _, p := range ps {
		p.mustGet()
	}
	ps[1].again(ln)
	s.settle()
	ps[1].mustGet(1, 2, 3, 4)
	ps[1].ack(4)
	s.settle()
	ps[1].mustGet(5)
}

func TestAgainIsHeededOncePer5ms(t *testing.T) {
	s := newStepped(t, Config{Configured: true, Window: 1})
	ln := s.listen("web")
	p := s.serving(ln)
	s.connect(ln, 1)
	s.settle()
	p.mustGet(1)
	p.reject(1)
	p.again(ln)
	s.settle()
	p.mustGet(1) // the first counts at once
	p.k.againAt[ln.id] = s.l.clock.now() + int64(aLongTime) - againEvery
	p.reject(1)
	p.again(ln)
	p.again(ln)
	s.settle()
	p.mustGet()
	if len(s.l.agains) != 1 {
		t.Fatalf("%d AGAINs kept for later, want 1", len(s.l.agains))
	}
	s.pass(aLongTime)
	s.settle()
	p.mustGet(1)
}

func TestRejectAfterAgainTakesItBack(t *testing.T) {
	s := newStepped(t, Config{Configured: true, Window: 2})
	ln := s.listen("web")
	p := s.serving(ln)
	s.connect(ln, 2)
	s.settle()
	p.mustGet(1, 2)
	p.again(ln) // counts, says nothing new
	s.settle()
	p.k.againAt[ln.id] = s.l.clock.now() + int64(aLongTime) - againEvery
	p.reject(1)
	p.again(ln)
	s.settle()
	p.reject(1)
	s.settle()
	s.pass(aLongTime)
	s.settle()
	p.mustGet()
}

func TestTwoListenersAreOfferedInTurn(t *testing.T) {
	s := newStepped(t, Config{Configured: true, Window: 1})
	a, b := s.listen("a"), s.listen("b")
	p := s.serving(a, b)
	var got []int
	s.connect(a, 3)
	s.connect(b, 3)
	for range 6 {
		s.settle()
		got = append(got, p.hear()...)
		p.ack(1)
	}
	s.settle()
	fromB := 0
	for _, c := range got[:4] {
		if c > 3 {
			fromB++
		}
	}
	if len(got) != 6 || fromB == 0 {
		t.Errorf("served %v: the second listener starves", got)
	}
}

func TestAHalfClosedClientIsServed(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	c := s.client(ln)
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	s.settle()
	s.pass(time.Second)
	if p := s.serving(ln); len(p.has) != 1 || s.stats("web").Dropped[DropClientGone] != 0 {
		t.Errorf("a client that has only said that it will write no more is not served: %+v", s.stats("web"))
	}
}
