package worker

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"rrd/handoff"
)

// channel is this process's conversation with the master.
type channel struct {
	port         *handoff.Port
	funnel       funnel        // open as long as this process
	drainC       chan struct{} // closed by drainLocked
	exit         func(code int)
	beforeListen func() // once, before the first Listen

	flushed atomic.Uint64 // acks that have left
	sendMu  sync.Mutex    // held while sending; taken before mu
	spare   []byte        // the other buffer of out

	mu sync.Mutex

	// The reading role. Whoever holds it owns msg.
	role        role
	readingFor  *endpoint // whose queue the role's holder waits for, if any
	interrupted bool      // the read deadline is in the past
	passes      uint64    // how often the role was given up by leaving
	seenPasses  uint64    // passes at the last lull
	msg         handoff.Message
	waiting     []*waiter // in Accept or Listen without the role, oldest first

	// What is to be sent, encoded, and what it amounts to.
	out      []byte
	acks     uint64    // acks ever written down
	tookAt   time.Time // when the last one had come that was acked
	closed   uint32    // closes not yet told
	closedAt time.Time
	prompt   bool // something in out leaves before Accept blocks, and with the next tick
	urgent   bool // send when mu is released

	starving     bool      // an endpoint is starved: AGAIN with the next close,
	eatAt        time.Time // not before this
	starvedUntil time.Time // and at the latest then

	endpoints map[uint32]*endpoint
	asks      map[uint64]*ask
	nextAsk   uint64
	started   bool  // a goroutine reads, or will read after a pause
	listened  bool  // a listener was asked for: this process is a worker
	ready     bool  // READY was said
	version   uint8 // of the frames that are sent
	greeted   bool  // HELLO was read
	touches   bool  // the master wants TOUCHED
	closes    bool  // it wants CLOSED without delay
	draining  bool
	drained   bool // DRAINED was said
	gone      bool // the master is
	gaveUp    bool // and its sockets are closed here
	exited    bool
	open      int // connections that Accept is about to return or has returned
	accepting int // goroutines in accept(2) of a shared listener
	tickets   tickets
	checked   bool // SetHealth was called
	unhealthy bool // HEALTH 1 was said
	grace     time.Duration
	takeTime  time.Duration // takeTime, but in a test
	keyTime   time.Duration // ticketWait, but in a test

	orphanTime time.Duration // orphanTime, but in a test

	tickArmed bool
	tick      *time.Timer // tickTime: what is prompt
	lullArmed bool
	lull      *time.Timer // lullTime: the role to the background
	due       time.Time   // when later fires; zero if it does not
	later     *time.Timer // queues, closes, descriptors, what is not prompt
}

type role uint8

const (
	nobody role = iota
	waiterReads
	backgroundReads
)

// The times of the protocol. docs/protocol.md, "Times".
const (
	tickTime  = time.Millisecond       // an ack leaves at the latest
	lullTime  = 5 * time.Millisecond   // nobody has read: the background does, after two at most
	takeTime  = 20 * time.Millisecond  // a connection nobody takes is rejected
	touchTime = 5 * time.Millisecond   // TOUCHED is told at the latest
	closeTime = 100 * time.Millisecond // closes are told at the latest
	fdTime    = 100 * time.Millisecond // another try after the limit of open files
	againTime = 10 * time.Millisecond  // the same when a descriptor became free
	// defaultGrace is how long open connections may go on without a master that
	// never told its drain timeout.
	defaultGrace = 30 * time.Second
)

// newChannel takes ownership of port.
func newChannel(port *handoff.Port) *channel {
	ch := &channel{
		port:      port,
		drainC:    make(chan struct{}),
		exit:      os.Exit,
		endpoints: make(map[uint32]*endpoint),
		asks:      make(map[uint64]*ask),
		grace:     defaultGrace,
		takeTime:  takeTime,
		keyTime:   ticketWait,

		orphanTime: orphanTime,
	}
	ch.tick = time.AfterFunc(time.Hour, ch.onTick)
	ch.lull = time.AfterFunc(time.Hour, ch.onLull)
	ch.later = time.AfterFunc(time.Hour, ch.onLater)
	ch.tick.Stop()
	ch.lull.Stop()
	ch.later.Stop()
	return ch
}

// start makes sure that the channel is read from now on, also while nobody is in
// Accept.
func (ch *channel) start() {
	ch.mu.Lock()
	ch.started = true
	ch.armLullLocked()
	ch.unlock()
}

// A waiter is one goroutine in Accept or Listen.
type waiter struct {
	ep   *endpoint // Accept: whose queue; may be nil
	ln   *listener // Accept
	ask  *ask      // Listen
	wake chan struct{}
}

// ready reports whether the wait is over. Preconditions: mu is held.
func (w *waiter) ready() bool {
	if w.ask != nil {
		return w.ask.done
	}
	return w.ln.closed || w.ep != nil && len(w.ep.queue) > 0
}

// awaitLocked returns when w is ready. It reads the channel itself unless another
// goroutine does; what was written down is sent before it blocks. Preconditions:
// mu is held, and is again afterwards.
//
// No wake-up is lost: a connection that is queued wakes a goroutine waiting for
// its queue, or the reader will look for it before it reads again; a role that is
// given up wakes whoever waits, and that one passes the role on if it leaves
// without having read. A goroutine that was woken in vain waits again.
func (ch *channel) awaitLocked(w *waiter) {
	for !w.ready() {
		if w.ep != nil {
			ch.againLocked(w.ep)
		}
		switch {
		case ch.role == nobody && !ch.gone:
			ch.readLocked(waiterReads, w.ep)
		default:
			ch.parkLocked(w)
		}
	}
	ch.passRoleLocked()
}

// parkLocked waits for a wake-up. The background gives the role to whoever is in
// Accept.
func (ch *channel) parkLocked(w *waiter) {
	if w.wake == nil {
		w.wake = make(chan struct{}, 1)
	}
	ch.waiting = append(ch.waiting, w)
	if ch.role == backgroundReads {
		ch.interruptLocked()
	}
	ch.hurryLocked()
	ch.unlock()
	<-w.wake
	ch.mu.Lock()
}

// wakeLocked wakes the oldest waiter that match accepts, and reports whether
// there was one. Each waiter is woken once: the next event wakes another.
func (ch *channel) wakeLocked(match func(*waiter) bool) bool {
	for i, w := range ch.waiting {
		if match(w) {
			copy(ch.waiting[i:], ch.waiting[i+1:])
			last := len(ch.waiting) - 1
			ch.waiting[last] = nil
			ch.waiting = ch.waiting[:last]
			w.wake <- struct{}{}
			return true
		}
	}
	return false
}

// wakeForLocked wakes the one that has waited the longest in Accept for ep.
func (ch *channel) wakeForLocked(ep *endpoint) bool {
	return ch.wakeLocked(func(w *waiter) bool { return w.ep == ep })
}

func anyWaiter(*waiter) bool { return true }

// passRoleLocked hands the role, if nobody has it, to a goroutine that waits;
// failing that, a lull will see to it.
func (ch *channel) passRoleLocked() {
	if ch.role != nobody || ch.gone {
		return
	}
	ch.passes++
	if !ch.wakeLocked(anyWaiter) {
		ch.armLullLocked()
	}
}

// interruptLocked makes a reader that is blocked look around.
func (ch *channel) interruptLocked() {
	if ch.role != nobody && !ch.interrupted {
		ch.interrupted = true
		_ = ch.port.SetReadDeadline(longAgo)
	}
}

var longAgo = time.Unix(1, 0)

// readLocked takes the role, reads one message, acts on it and gives the role
// up. An interruption reads nothing. Preconditions: mu is held, and is again
// afterwards; nobody has the role.
func (ch *channel) readLocked(as role, ep *endpoint) {
	ch.role, ch.readingFor = as, ep
	ch.started = true
	unsent := ch.prompt && !ch.urgent
	ch.unlock()
	err := ch.receive(unsent)
	ch.mu.Lock()
	ch.role = nobody
	if ch.interrupted {
		ch.interrupted = false
		_ = ch.port.SetReadDeadline(time.Time{})
	}
	switch {
	case err == nil:
		ch.dispatchLocked()
	case !errors.Is(err, os.ErrDeadlineExceeded):
		ch.endLocked(err)
	}
	ch.readingFor = nil
}

// receive waits for a message, sending first what is prompt. With acks to
// send it looks once without waiting: on a busy worker the next connection is
// there, and more acks will share a message.
func (ch *channel) receive(unsent bool) error {
	if unsent {
		if err := ch.port.TryReceive(&ch.msg); err != syscall.EAGAIN {
			return err
		}
		ch.flush()
	}
	return ch.port.Receive(&ch.msg)
}

// onTick runs on the tick timer's goroutine. It sends what should have left by now.
func (ch *channel) onTick() {
	ch.mu.Lock()
	ch.tickArmed = false
	ch.hurryLocked()
	ch.unlock()
}

func (ch *channel) armTickLocked() {
	if !ch.tickArmed {
		ch.tickArmed = true
		ch.tick.Reset(tickTime)
	}
}

// onLull runs on the lull timer's goroutine. If nobody has read since the lull before, it
// becomes the background reader, until somebody is in Accept again or the channel
// ends.
func (ch *channel) onLull() {
	ch.mu.Lock()
	ch.lullArmed = false
	for ch.role == nobody && !ch.gone && ch.started {
		if ch.wakeLocked(anyWaiter) {
			break
		}
		if ch.passes != ch.seenPasses {
			ch.seenPasses = ch.passes
			ch.armLullLocked()
			break
		}
		ch.readLocked(backgroundReads, nil)
	}
	ch.unlock()
}

func (ch *channel) armLullLocked() {
	if !ch.lullArmed {
		ch.lullArmed = true
		ch.lull.Reset(lullTime)
	}
}
