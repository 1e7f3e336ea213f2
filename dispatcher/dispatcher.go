package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"rrd/handoff"
)

// ErrClosed is returned by every method after Close, or once the loop has
// failed.
var ErrClosed = errors.New("dispatcher closed")

// Dispatcher owns listeners, channels and connections. Its methods may be called
// from any goroutine; each sends a request to the loop and waits for it.
type Dispatcher struct {
	cfg  Config
	poll *poller

	mu       sync.Mutex
	requests []func(*loop)
	refusing bool // closing: no more requests

	ended   chan struct{} // the loop has returned
	loopErr error         // set before ended is closed

	events    eventQueue
	delivered chan struct{} // deliver has returned
	helpers   sync.WaitGroup
	gates     bindGates
	fileEvery time.Duration // fileEvery, but in a test
	lingering lingering
}

// New starts a Dispatcher. Close ends it.
func New(cfg Config) (*Dispatcher, error) {
	p, err := newPoller()
	if err != nil {
		return nil, fmt.Errorf("make poller: %w", err)
	}
	d := newDispatcher(cfg, p)
	d.start(newLoop(d))
	return d, nil
}

func newDispatcher(cfg Config, p *poller) *Dispatcher {
	d := &Dispatcher{cfg: cfg.withDefaults(), poll: p, ended: make(chan struct{}), delivered: make(chan struct{}), fileEvery: fileEvery}
	d.events.ready = make(chan struct{}, 1)
	return d
}

func (d *Dispatcher) start(l *loop) {
	d.lingering.start() // Close stops it
	go d.deliver()      // Close waits for it
	go d.loop(l)        // Close waits for it
}

// Done is closed when the loop has ended: after Close, or because waiting for
// events failed, which Err then returns.
func (d *Dispatcher) Done() <-chan struct{} { return d.ended }

// Err returns why the loop ended by itself; nil before and after Close.
func (d *Dispatcher) Err() error {
	select {
	case <-d.ended:
		return d.loopErr
	default:
		return nil
	}
}

// Close drops what still waits or is unanswered (reason shutdown), closes every
// descriptor and returns when all goroutines have ended. It is not a graceful
// stop: see Shutdown. Not to be called by a hook, whose return it waits for.
func (d *Dispatcher) Close() error {
	if d.post(func(l *loop) { l.stop() }) {
		d.mu.Lock()
		d.refusing = true
		d.mu.Unlock()
	}
	<-d.ended
	d.helpers.Wait()
	d.lingering.stop()
	d.events.close()
	<-d.delivered
	return d.loopErr
}

// post hands fn to the loop. It reports false once the loop takes no more.
func (d *Dispatcher) post(fn func(*loop)) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.refusing {
		return false
	}
	d.requests = append(d.requests, fn)
	d.poll.wake() // under the lock: see finish
	return true
}

// do runs fn on the loop and waits until it has.
func (d *Dispatcher) do(ctx context.Context, fn func(*loop)) error {
	done := make(chan struct{})
	if !d.post(func(l *loop) { fn(l); close(done) }) {
		return ErrClosed
	}
	select {
	case <-done:
		return nil
	case <-d.ended:
		select {
		case <-done:
			return nil
		default:
			return ErrClosed
		}
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Listen opens a listener and starts to accept from it. Under reuseport the
// sockets of the slots are made as their workers come.
func (d *Dispatcher) Listen(c ListenerConfig) (ListenerInfo, error) {
	return d.ListenBeside(c, nil)
}

// ListenBeside is Listen for an address that may overlap those of listeners which will
// close soon, such as :80 and 127.0.0.1:80.
func (d *Dispatcher) ListenBeside(c ListenerConfig, leaving []ListenerConfig) (ListenerInfo, error) {
	s, err := d.bind(c)
	if errors.Is(err, syscall.EADDRINUSE) && len(leaving) > 0 {
		s, err = d.bindBeside(c, isOneOf(leaving), false)
	}
	if err != nil {
		return ListenerInfo{}, fmt.Errorf("listen %s: %w", c.Name, err)
	}
	var info ListenerInfo
	var oerr error
	err = d.do(context.Background(), func(l *loop) {
		ln, e := l.open(c, s, nil)
		if oerr = e; e == nil {
			l.cover(ln, isOneOf(leaving))
			info = ln.info()
			info.Kept = s.kept
		}
	})
	if err == nil {
		err = oerr
	}
	if err != nil {
		_ = s.close()
		return ListenerInfo{}, fmt.Errorf("listen %s: %w", c.Name, err)
	}
	return info, nil
}

// Add makes a worker known. It is given connections once it has said READY. Add
// takes ownership of w.Channel, also when it fails.
func (d *Dispatcher) Add(w Worker) error {
	if err := d.prepareSlot(w.Slot); err != nil {
		_ = w.Channel.Close()
		return err
	}
	var aerr error
	err := d.do(context.Background(), func(l *loop) { aerr = l.add(w) })
	if err == nil {
		err = aerr
	}
	if err != nil {
		_ = w.Channel.Close()
		return fmt.Errorf("add worker of slot %d: %w", w.Slot, err)
	}
	return nil
}

// Drain gives a worker nothing more and asks it to finish. Hooks.Drained tells
// when it has.
func (d *Dispatcher) Drain(worker uint64) error {
	return d.do(context.Background(), func(l *loop) { l.drain(worker) })
}

// Dump asks a worker to write what it is doing to its stderr; see handoff.Dump.
func (d *Dispatcher) Dump(worker uint64) error {
	known := false
	err := d.do(context.Background(), func(l *loop) {
		if k := l.byID[worker]; k != nil && k.spoke && !k.gone {
			known = true
			l.say(k, handoff.Frame{Type: handoff.Dump}, handoff.FD{})
		}
	})
	if err == nil && !known {
		err = fmt.Errorf("dump worker %d: it does not speak on its channel", worker)
	}
	return err
}

// Disown says that the process that was started is dead while the one that reads
// the channel lives: it gets nothing more, what it has not read goes to others,
// and what it has read stays held until Remove.
func (d *Dispatcher) Disown(worker uint64) error {
	return d.do(context.Background(), func(l *loop) { l.disown(worker) })
}

// Removal says how a worker ended.
type Removal struct {
	// Blame counts its death against the connections that it had read and not
	// answered: the process ended by itself, neither asked to nor killed from
	// outside.
	Blame bool
}

// Remove forgets a worker whose processes are all dead. What it has not read is
// taken back, its last answers are read, and what it left unanswered goes to
// others.
func (d *Dispatcher) Remove(worker uint64, how Removal) error {
	return d.do(context.Background(), func(l *loop) { l.remove(worker, how) })
}

// ForgetSlot says that a slot gets no successor for now: it holds no listener
// that workers asked for any longer.
func (d *Dispatcher) ForgetSlot(slot int) error {
	return d.do(context.Background(), func(l *loop) { l.forgetSlot(slot) })
}

// Shutdown closes all listeners, losing nobody, and returns when nothing waits
// and nothing is unanswered, or ctx ends.
func (d *Dispatcher) Shutdown(ctx context.Context) error {
	idle := make(chan struct{})
	if err := d.do(ctx, func(l *loop) { l.shutdown(idle) }); err != nil {
		return err
	}
	select {
	case <-idle:
		return nil
	case <-d.ended:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Stats copies all counts between two turns of the loop, so the law holds in
// every copy. It fails when ctx ends first: then the loop is stuck.
func (d *Dispatcher) Stats(ctx context.Context) (*Stats, error) {
	out := make(chan *Stats, 1)
	if err := d.do(ctx, func(l *loop) { out <- l.copyStats() }); err != nil {
		return nil, err
	}
	return <-out, nil
}

// eventQueue carries calls of Hooks from the loop, which must not wait, to the
// goroutine that makes them.
type eventQueue struct {
	mu     sync.Mutex
	calls  []func()
	closed bool
	ready  chan struct{} // one token: calls may be non-empty
}

func (q *eventQueue) push(call func()) {
	q.mu.Lock()
	q.calls = append(q.calls, call)
	q.mu.Unlock()
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

func (q *eventQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// deliver makes the calls in order; it ends after close, with none left.
func (d *Dispatcher) deliver() {
	defer close(d.delivered)
	for range d.events.ready {
		d.events.mu.Lock()
		calls := d.events.calls
		d.events.calls = nil
		closed := d.events.closed
		d.events.mu.Unlock()
		for _, call := range calls {
			call()
		}
		if closed && len(calls) == 0 {
			return
		}
		if closed {
			d.events.close() // what the calls have added
		}
	}
}

// clock is the loop's time: nanoseconds since some start, monotonic.
type clock struct{ start time.Time }

func (c clock) now() int64 { return int64(time.Since(c.start)) }
