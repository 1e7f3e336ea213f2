package pool

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var alive = new(atomic.Bool) // of a process: it has not ended

// slowSink counts lines, each of which takes it some time.
type slowSink struct {
	each        time.Duration
	lines, lost atomic.Uint64
	told        atomic.Uint64
}

func (s *slowSink) record(l Line) {
	time.Sleep(s.each)
	s.lines.Add(1)
	s.lost.Add(l.Lost)
}

func (s *slowSink) printer() *printer {
	p := newPrinter(Output{Mode: OutputJSON, Record: s.record, Lost: func(n uint64) { s.told.Add(n) }})
	p.start()
	return p
}

// burst has a slot write n lines, and returns how long its reader was held.
func burst(p *printer, slot, n int, text string) time.Duration {
	began := time.Now()
	c := &capture{out: p}
	c.read(Worker{Slot: slot}, stdout(), strings.NewReader(strings.Repeat(text+"\n", n)))
	return time.Since(began)
}

// A burst of a worker waits for a slow sink, and loses nothing.
func TestSlowSinkLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slowSink{each: time.Millisecond}
		p := s.printer()
		const n = 30_000
		if held := burst(p, 0, n, "line"); held < n*s.each*3/10 {
			t.Errorf("held for %v: the bound was not reached", held)
		}
		for p.flush() > 0 { // flush has a limit of its own
		}
		p.close()
		if got := s.lines.Load(); got != n {
			t.Errorf("%d lines of %d", got, n)
		}
		if lost, _ := p.losses(); lost != 0 || s.told.Load() != 0 {
			t.Errorf("%d lost, %d told", lost, s.told.Load())
		}
	})
}

// A sink that takes nothing holds a worker for a second in all, loses what comes beyond the
// bound, and says how much. When it goes on, the count comes with the next line.
func TestStoppedSinkHoldsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goC := make(chan struct{})
		var lines, lost, told atomic.Uint64
		p := newPrinter(Output{Mode: OutputJSON, Lost: func(n uint64) { told.Add(n) }, Record: func(l Line) {
			<-goC
			lines.Add(1)
			lost.Add(l.Lost)
		}})
		p.start()
		synctest.Wait()
		const n = 60_000
		if held := burst(p, 0, n, "line"); held != stallAfter {
			t.Errorf("held for %v, want %v", held, stallAfter)
		}
		// The bound is the slot's own, and a stall is known by now.
		if held := burst(p, 1, 1000, "line"); held != 0 {
			t.Errorf("another slot was held for %v", held)
		}
		if held := burst(p, 1, n, "line"); held != 0 {
			t.Errorf("another slot was held for %v in the stall", held)
		}
		time.Sleep(2 * lossEvery)
		dropped, _ := p.losses()
		kept := uint64(2 * maxQueued / (4 + lineCost))
		if all := uint64(2*n + 1000); dropped < all-kept-2 || dropped > all-kept+2 {
			t.Errorf("%d of %d lost, want about %d", dropped, all, all-kept)
		}
		if told.Load() != dropped {
			t.Errorf("told of %d, want %d", told.Load(), dropped)
		}
		close(goC)
		p.close()
		if lines.Load()+dropped != 2*n+1000 || lost.Load() != dropped {
			t.Errorf("%d lines tell of %d lost, want %d", lines.Load(), lost.Load(), dropped)
		}
	})
}

// The end of the pool waits for a stuck sink no longer than a worker does, and counts what
// is left.
func TestCloseCountsWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goC := make(chan struct{})
		var told atomic.Uint64
		p := newPrinter(Output{Mode: OutputJSON, Record: func(Line) { <-goC }, Lost: func(n uint64) { told.Add(n) }})
		p.start()
		burst(p, 0, 10, "line")
		began := time.Now()
		p.close()
		if d := time.Since(began); d != stallAfter {
			t.Errorf("close took %v", d)
		}
		if lost, _ := p.losses(); lost != 9 || told.Load() != 9 { // one is with the sink
			t.Errorf("%d lost, %d told", lost, told.Load())
		}
		close(goC)
		<-p.doneC
	})
}

// A sink that works at one long line is not stopped.
func TestALongLineIsProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bytes atomic.Uint64
		p := newPrinter(Output{Mode: OutputJSON, Accepted: bytes.Load, Record: func(l Line) {
			if len(l.Text) > 100 {
				for range 20 {
					time.Sleep(stallAfter / 2)
					bytes.Add(1)
				}
			}
		}})
		p.start()
		burst(p, 0, 1, strings.Repeat("x", 1000))
		burst(p, 0, 30_000, "line")
		p.close()
		if lost, _ := p.losses(); lost != 0 {
			t.Errorf("%d lost", lost)
		}
	})
}

// What is left of a dead process is taken at once, so that its slot is not held.
func TestADeadProcessIsNotHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slowSink{each: 100 * time.Millisecond}
		p := s.printer()
		c := &capture{out: p}
		began := time.Now()
		time.AfterFunc(time.Second, func() {
			c.ended.Store(true) // as finish does
			p.poke()
		})
		c.read(Worker{}, stdout(), strings.NewReader(strings.Repeat("line\n", 20_000)))
		if held := time.Since(began); held != time.Second {
			t.Errorf("held for %v after its end", held-time.Second)
		}
		if lost, _ := p.losses(); lost != 0 {
			t.Errorf("%d lost", lost)
		}
		p.close()
		<-p.doneC
	})
}

// A freeze has readers rest that wait for room, and the lines cross in the State.
func TestLinesCrossAnUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &slowSink{each: 10 * time.Millisecond}
		p := s.printer()
		const n = 20_000
		readC := make(chan struct{})
		go func() {
			burst(p, 7, n, "line")
			close(readC)
		}()
		time.Sleep(10 * time.Second)
		p.hurry()
		<-readC
		left := p.flush()
		lines, more := p.pending(maxSavedOutput)
		if left == 0 || len(lines) != left || more > 1 {
			t.Fatalf("%d lines left, %d saved, %d lost", left, len(lines), more)
		}
		next := &slowSink{}
		q := next.printer()
		q.restore(5, 2, lines)
		q.close()
		if got := next.lines.Load(); got != uint64(left) || next.lost.Load() != 2 {
			t.Errorf("%d lines of %d, which tell of %d lost", got, left, next.lost.Load())
		}
		if lines, more := p.pending(10 * (4 + lineCost)); len(lines) != 10 || more < uint64(left)-11 {
			t.Errorf("%d lines within the bound, %d more", len(lines), more)
		}
		p.close()
		<-p.doneC
		if lost, _ := p.losses(); s.lines.Load()+lost != n {
			t.Errorf("%d written and %d lost of %d", s.lines.Load(), lost, n)
		}
	})
}

// A line that the sink fails to take is lost, and so is what it would have told.
func TestAFailedWriteIsALoss(t *testing.T) {
	fails := 1
	var tells []uint64
	p := newPrinter(Output{Mode: OutputPrefix, Writer: &strings.Builder{}})
	p.sink = func(l Line) error {
		if fails--; fails >= 0 {
			return errors.New("no space left")
		}
		tells = append(tells, l.Lost)
		return nil
	}
	p.lost = 3
	for range 3 {
		p.put(Line{Text: []byte("x")}, alive)
	}
	p.start()
	p.close()
	if len(tells) != 2 || tells[0] != 4 || tells[1] != 0 {
		t.Errorf("the lines tell of %v lost, want 4 and 0", tells)
	}
}
