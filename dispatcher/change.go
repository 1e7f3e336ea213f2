package dispatcher

import (
	"context"
	"fmt"
	"slices"
	"time"

	"rrd/handoff"
)

// What may change while connections pass. The policy may not.

// Limits are the parts of Config that a reload may change; a zero field means what
// it means there.
type Limits struct {
	QueueLimit   int
	QueueTimeout time.Duration
	Window       int
	BusyAfter    time.Duration
	HangTimeout  time.Duration
	RescueLimit  int
	MaxActive    int
	MaxAsked     int
	DrainTimeout time.Duration
	TicketRotate time.Duration
	Configured   bool
}

// SetLimits has new limits hold from the next turn on. Nothing that already waits or
// is in flight is dropped for them; what workers are told when they start (that
// the master rescues, or limits how many they have) only those hear that come later.
func (d *Dispatcher) SetLimits(c Limits) error {
	return d.do(context.Background(), func(l *loop) { l.setLimits(c) })
}

func (l *loop) setLimits(c Limits) {
	n := *l.cfg
	n.QueueLimit, n.QueueTimeout, n.Window = c.QueueLimit, c.QueueTimeout, c.Window
	n.BusyAfter, n.HangTimeout, n.RescueLimit = c.BusyAfter, c.HangTimeout, c.RescueLimit
	n.MaxAsked, n.MaxActive, n.DrainTimeout, n.Configured = c.MaxAsked, c.MaxActive, c.DrainTimeout, c.Configured
	n = n.withDefaults()
	// One by one: other goroutines read what never changes.
	live := l.cfg
	live.QueueLimit, live.QueueTimeout, live.Window = n.QueueLimit, n.QueueTimeout, n.Window
	live.BusyAfter, live.HangTimeout, live.RescueLimit = n.BusyAfter, n.HangTimeout, n.RescueLimit
	live.MaxAsked, live.MaxActive, live.DrainTimeout, live.Configured = n.MaxAsked, n.MaxActive, n.DrainTimeout, n.Configured
	l.setTicketRotate(c.TicketRotate)
	l.beatAt = min(l.beatAt, l.now+l.beatEvery()) // earlier, and never put off
	l.table.window = int32(l.cfg.Window)
	for _, k := range l.links {
		if k == nil {
			continue
		}
		switch {
		case k.pause > 0: // tried with one at a time
		case l.cfg.MaxActive > 0:
			l.limit(k)
		default:
			l.table.setWindow(k.idx, l.cfg.Window)
		}
		l.review(k)
	}
	l.limitKept()
	if !l.queueFull && l.table.waiting >= l.cfg.QueueLimit || l.queueFull && l.table.waiting <= l.resumeBelow() {
		l.queueFull = !l.queueFull
		l.watchAll()
	}
}

// CloseListener closes a listener of the configuration, losing nobody: who is in
// its queue is served, unless no worker has it any more and so none ever will. Name
// and address are those of its ListenerConfig. It returns when the socket is closed,
// or ctx ends.
func (d *Dispatcher) CloseListener(ctx context.Context, name, address string) error {
	closed := make(chan struct{})
	found := false
	err := d.do(ctx, func(l *loop) {
		for _, ln := range l.listeners {
			if ln != nil && ln.isOpen(name, address) {
				found = true
				ln.waitClosed = append(ln.waitClosed, closed)
				ln.unwanted = true
				l.startClosing(ln)
				return
			}
		}
	})
	switch {
	case err != nil:
		return fmt.Errorf("close listener %s: %w", name, err)
	case !found:
		return fmt.Errorf("close listener %s: there is none", name)
	}
	select {
	case <-closed:
		return nil
	case <-d.ended:
		return fmt.Errorf("close listener %s: %w", name, ErrClosed)
	case <-ctx.Done():
		return fmt.Errorf("close listener %s: %w", name, ctx.Err())
	}
}

// isServed says whether some worker takes connections of ln, now or when it can.
func (l *loop) isServed(ln *listener) bool {
	return slices.ContainsFunc(l.links, func(k *link) bool {
		return k != nil && !k.gone && k.state < handoff.Draining && l.table.serves(k.idx, ln.id)
	})
}

// isOpen says whether this is that listener of the configuration, and open.
func (ln *listener) isOpen(name, address string) bool {
	return ln.isConfigured(name, address) && len(ln.sockets()) > 0
}

func (ln *listener) isConfigured(name, address string) bool {
	return ln.asked == nil && ln.conf.Name == name && ln.conf.Address == address
}

// ChangeListener changes what can be changed of a listener that stays: its backlog,
// and the port that programs mean by it. A backlog of 0 leaves it as it is.
func (d *Dispatcher) ChangeListener(c ListenerConfig) error {
	found := false
	err := d.do(context.Background(), func(l *loop) {
		for _, ln := range l.listeners {
			if ln == nil || ln.closing || !ln.isOpen(c.Name, c.Address) {
				continue
			}
			found = true
			ln.conf.As = c.As
			if c.Backlog > 0 && c.Backlog != ln.conf.Backlog {
				ln.conf.Backlog = c.Backlog
				for _, s := range ln.sockets() {
					if !s.packet() {
						l.changeBacklog(ln, s, c.Backlog)
					}
				}
			}
		}
	})
	if err == nil && !found {
		err = fmt.Errorf("change listener %s: there is none", c.Name)
	}
	return err
}

// A successor that serves fewer listeners than the one whose place it is to take
// would leave clients of the others without a worker. So a worker whose slot has one
// that serves is ready, and given connections, only when it has joined all that the
// other has, or has asked for nothing new for settleAfter.

const settleAfter = int64(time.Second)

// sayReady has the hook called, now or when the worker has settled.
func (l *loop) sayReady(k *link) {
	if l.settled(k) {
		l.tell(k, l.cfg.Hooks.Ready)
		return
	}
	k.settleAt = l.now + settleAfter
	l.settling = append(l.settling, k)
}

// settled says whether k has all the listeners of those who serve in its slot.
func (l *loop) settled(k *link) bool {
	for _, old := range l.links {
		if old == nil || old == k || old.slot != k.slot || old.gone || !old.ready || l.isSettling(old) {
			continue
		}
		for _, w := range old.joined {
			if ln := l.byWire[w]; ln != nil && !ln.closing && len(ln.sockets()) > 0 && !k.hides(ln) && !slices.Contains(k.joined, w) {
				return false
			}
		}
	}
	return true
}

func (l *loop) isSettling(k *link) bool { return slices.Contains(l.settling, k) }

// settle looks at those who are not settled yet.
func (l *loop) settle() {
	waiting := l.settling
	l.settling = nil
	for _, k := range waiting {
		switch {
		case l.links[k.idx] != k || k.gone:
		case k.settleAt <= l.now || l.settled(k):
			l.tell(k, l.cfg.Hooks.Ready)
			defer l.review(k)
		default:
			l.settling = append(l.settling, k)
		}
	}
}
