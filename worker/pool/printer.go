package pool

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxQueued bounds the captured bytes of a slot that are not written yet. Its readers
	// wait at this bound, so the worker waits in its write.
	maxQueued = 1 << 20
	// deadQueued is more, for what is left in the pipes of a process that has ended.
	deadQueued = 2 << 20
	// lineCost is added to the length of a line, so that empty lines are bounded too.
	lineCost = 64
	// stallAfter is how long the sink may take nothing before lines are dropped.
	stallAfter = time.Second
	// flushLimit is how long the end of the pool and a freeze wait for a sink that is slow
	// and takes something.
	flushLimit = 5 * time.Second
	// lossEvery is the time between reports of lost lines.
	lossEvery = time.Second
)

// printer hands captured lines to the sink, in the order in which they came. While the
// sink takes something, a worker that writes faster waits. A sink that takes nothing for
// stallAfter costs lines and holds no worker any longer. Every lost line is counted.
type printer struct {
	sink     func(Line) error
	accepted func() uint64     // bytes that the sink has taken; nil: whole lines show it
	tell     func(lost uint64) // or nil
	wakeC    chan struct{}     // one token: there is something to write, or to end for
	doneC    chan struct{}     // closed when print has returned

	mu      sync.Mutex
	queue   []Line
	bySlot  map[int]int // bytes in queue
	writing bool        // a line is with the sink
	changeC chan struct{}
	waiters int
	moved   time.Time // when the sink took something last, or was given something
	seen    uint64    // accepted() then
	hurried bool      // a freeze: no reader waits for room
	resting bool      // a freeze: the sink gets nothing, for the queue is in the State
	ending  bool
	lost    uint64
	told    uint64 // of lost, in lines that the sink got
	logged  uint64 // of lost, by tell
}

func newPrinter(o Output) *printer {
	p := &printer{
		accepted: o.Accepted, tell: o.Lost, wakeC: make(chan struct{}, 1), doneC: make(chan struct{}),
		bySlot: make(map[int]int), changeC: make(chan struct{}), moved: time.Now(),
	}
	p.sink = func(l Line) error { o.Record(l); return nil }
	if o.Mode == OutputPrefix {
		p.sink = func(l Line) error { return printPrefixed(o.Writer, l) }
	}
	return p
}

// start starts the goroutines that write and tell; close waits for print.
func (p *printer) start() {
	go p.print()
	if p.tell != nil {
		go p.tellLosses() // ends when print does
	}
}

func (p *printer) print() {
	defer close(p.doneC)
	for range p.wakeC {
		for {
			l, ok := p.next()
			if !ok {
				break
			}
			p.written(l, p.sink(l))
		}
		if p.isOver() {
			return
		}
	}
}

// next takes the oldest line.
func (p *printer) next() (Line, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 || p.resting {
		return Line{}, false
	}
	l := p.queue[0]
	p.queue[0] = Line{}
	p.queue = p.queue[1:]
	p.writing = true
	l.Lost = p.lost - p.told
	p.told = p.lost
	p.took()
	return l, true
}

func (p *printer) written(l Line, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.writing = false
	p.bySlot[l.Worker.Slot] -= cost(l)
	if p.bySlot[l.Worker.Slot] <= 0 {
		delete(p.bySlot, l.Worker.Slot)
	}
	if err != nil {
		p.lost++
		p.told -= l.Lost // its report did not reach the sink
	}
	p.took()
	p.changed()
}

// took notes progress. Preconditions: mu is locked.
func (p *printer) took() {
	p.moved = time.Now()
	if p.accepted != nil {
		p.seen = p.accepted()
	}
}

// changed wakes the goroutines that wait for room or for the end. Preconditions: mu is
// locked.
func (p *printer) changed() {
	if p.waiters > 0 {
		close(p.changeC)
		p.changeC = make(chan struct{})
	}
}

// stalledIn returns how long the sink may still take nothing; 0: it is stalled.
// Preconditions: mu is locked.
func (p *printer) stalledIn() time.Duration {
	if p.accepted != nil && p.accepted() != p.seen {
		p.took()
	}
	return max(stallAfter-time.Since(p.moved), 0)
}

// wait unlocks mu until something changes, or d has passed. Preconditions: mu is locked.
func (p *printer) wait(d time.Duration) {
	changeC := p.changeC
	p.waiters++
	p.mu.Unlock()
	timer := time.NewTimer(d)
	select {
	case <-changeC:
	case <-timer.C:
	}
	timer.Stop()
	p.mu.Lock()
	p.waiters--
}

func (p *printer) isOver() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ending && len(p.queue) == 0
}

func cost(l Line) int { return len(l.Text) + lineCost }

// put queues a line. If the slot has too much in the queue, put waits until the sink has
// taken some of it, and drops the line if the sink takes nothing. If ended is set, put takes
// the rest of the dead process's pipes without waiting.
func (p *printer) put(l Line, ended *atomic.Bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for !p.hurried {
		limit, dead := maxQueued, ended.Load()
		if dead {
			limit = deadQueued
		}
		if p.bySlot[l.Worker.Slot]+cost(l) <= limit {
			break
		}
		left := p.stalledIn()
		if left == 0 || dead || p.ending {
			p.lost++
			return
		}
		p.wait(left)
	}
	if len(p.queue) == 0 && !p.writing {
		p.took()
	}
	p.queue = append(p.queue, l)
	p.bySlot[l.Worker.Slot] += cost(l)
	p.wake()
}

func (p *printer) wake() {
	select {
	case p.wakeC <- struct{}{}:
	default:
	}
}

// hurry begins a freeze, in which no reader waits for room.
func (p *printer) hurry() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hurried = true
	p.changed()
}

// rest has the sink get nothing until goOn.
func (p *printer) rest() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.resting = true
}

// goOn ends a freeze.
func (p *printer) goOn() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hurried, p.resting = false, false
	p.wake()
}

// poke wakes the goroutines that wait for room.
func (p *printer) poke() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.changed()
}

// flush waits until what is queued is written, or the sink takes nothing, or is too slow.
// It returns how many lines are left.
func (p *printer) flush() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	end := time.Now().Add(flushLimit)
	p.took() // a stopped sink may have gone on just now
	for len(p.queue) > 0 || p.writing {
		left := min(p.stalledIn(), time.Until(end))
		if left <= 0 {
			break
		}
		p.wait(left)
	}
	return len(p.queue)
}

// close waits until what is queued is written, but not for long: a goroutine that is
// stuck in the sink is left behind, and what is left is counted as lost.
func (p *printer) close() {
	p.mu.Lock()
	p.ending = true
	p.changed()
	p.mu.Unlock()
	p.wake()
	left := p.flush()
	p.mu.Lock()
	if left > 0 {
		p.lost += uint64(len(p.queue))
		p.queue = nil
	}
	stuck := p.writing
	p.mu.Unlock()
	p.wake()
	if !stuck {
		<-p.doneC
	}
	p.tellLost()
}

// pending returns the lines that were not written, at most limit bytes of them, and how
// many more there are.
func (p *printer) pending(limit int) (lines []Line, more uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.writing {
		more++ // the sink will not end it
	}
	for i, l := range p.queue {
		if limit -= cost(l); limit < 0 {
			return slices.Clone(p.queue[:i]), more + uint64(len(p.queue)-i)
		}
	}
	return slices.Clone(p.queue), more
}

// losses returns the number of lost lines, and how many of them no written line reports.
func (p *printer) losses() (lost, untold uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost, p.lost - p.told
}

// restore goes on with the losses and lines of another program's printer.
func (p *printer) restore(lost, untold uint64, lines []Line) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost, p.told, p.logged = lost, lost-untold, lost-untold
	for _, l := range lines {
		p.queue = append(p.queue, l)
		p.bySlot[l.Worker.Slot] += cost(l)
	}
	p.wake()
}

// tellLosses reports lost lines until print returns.
func (p *printer) tellLosses() {
	ticker := time.NewTicker(lossEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			p.tellLost()
		case <-p.doneC:
			return
		}
	}
}

func (p *printer) tellLost() {
	if p.tell == nil {
		return
	}
	p.mu.Lock()
	n := p.lost - p.logged
	p.logged = p.lost
	p.mu.Unlock()
	if n > 0 {
		p.tell(n)
	}
}

// printPrefixed writes a line; a "+" marks one that continues in the next.
func printPrefixed(w io.Writer, l Line) error {
	var b []byte
	if l.Lost > 0 {
		b = fmt.Appendf(b, "[rrd] %d lines of workers were lost, their output was not taken\n", l.Lost)
	}
	b = fmt.Appendf(b, "[slot %d] ", l.Worker.Slot)
	b = append(b, l.Text...)
	if l.More {
		b = append(b, '+')
	}
	_, err := w.Write(append(b, '\n'))
	return err
}
