package dispatcher

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"
)

// Files of unix sockets may lie in a file system that a worker serves (FUSE), so each call
// about them can hang for as long as the worker likes. The loop makes no such call, and no
// caller waits for one for ever. A call that hangs is left behind with its goroutine and its
// thread, so their number is bounded for each slot.

const (
	bindLimit   = 5 * time.Second // for a bind that a worker has asked for
	unlinkLimit = time.Second     // for the removal of a file
	bindsAtOnce = 8               // of a slot, with those that hang
)

// inTime reports whether fn has returned within d. If not, fn is left behind.
func inTime(d time.Duration, fn func()) bool {
	doneC := make(chan struct{})
	go runApart(fn, doneC) // waited for below, but for a call that hangs
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-doneC:
		return true
	case <-timer.C:
		return false
	}
}

func runApart(fn func(), doneC chan<- struct{}) {
	fn()
	close(doneC)
}

// unlink removes the file of a listener that closes.
func (d *Dispatcher) unlink(ln *listener, f *socketFile) {
	defer d.helpers.Done()
	inTime(unlinkLimit, f.remove)
	d.post(func(l *loop) {
		ln.unlinking--
		ln.checkAt = l.now
	})
}

// removeFiles removes the files of all listeners, at the end of the loop.
func (l *loop) removeFiles() {
	var removals sync.WaitGroup
	for _, ln := range l.listeners {
		if ln == nil {
			continue
		}
		for _, s := range ln.sockets() {
			if f := s.file; f != nil {
				s.file = nil
				removals.Go(func() { inTime(unlinkLimit, f.remove) })
			}
		}
	}
	removals.Wait()
}

// bindGates bound the binds of each slot that are under way or hang.
type bindGates struct {
	mu     sync.Mutex
	bySlot map[int]chan struct{}
}

func (g *bindGates) of(slot int) chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.bySlot == nil {
		g.bySlot = make(map[int]chan struct{})
	}
	if g.bySlot[slot] == nil {
		g.bySlot[slot] = make(chan struct{}, bindsAtOnce)
	}
	return g.bySlot[slot]
}

type bindResult struct {
	s   *socket
	err error
}

// bindInTime calls bind, which owns no socket after an error. A bind that takes longer than
// limit is left behind, and closes the socket that it still makes.
func (g *bindGates) bindInTime(slot int, limit time.Duration, bind func() (*socket, error)) (*socket, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	gate, resultC := g.of(slot), make(chan bindResult)
	select {
	case gate <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("%d binds of this worker hang: %w", bindsAtOnce, syscall.ETIMEDOUT)
	}
	go bindApart(ctx, bind, resultC, gate) // waited for below, but for a bind that hangs
	select {
	case r := <-resultC:
		return r.s, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("the file system does not answer: %w", syscall.ETIMEDOUT)
	}
}

func bindApart(ctx context.Context, bind func() (*socket, error), resultC chan<- bindResult, gate <-chan struct{}) {
	s, err := bind()
	<-gate
	select {
	case resultC <- bindResult{s, err}:
	case <-ctx.Done():
		if s != nil && err == nil {
			_ = s.close()
		}
	}
}
