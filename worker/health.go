package worker

import (
	"context"
	"errors"
	"time"

	"rrd/handoff"
)

// How often a health check runs, and how long it may take. The checks are the
// program's own, so one at a time.
const (
	healthEvery   = time.Second
	healthTimeout = 2 * time.Second
)

// SetHealth has check run every second from now on. While it fails, or does not
// return within two seconds, this worker is given no new connections; if that
// lasts for rrd's --unhealthy-after, the worker is replaced. It finds what the
// library cannot: a program that is deadlocked while its listener is fine. The
// context ends with the two seconds; a check that outlives it counts as failed
// until it returns, and no other is started meanwhile. Outside rrd SetHealth does
// nothing. It may be called once.
func SetHealth(check func(context.Context) error) error {
	ch, err := process()
	if ch == nil || err != nil {
		return err
	}
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.checked {
		return errors.New("set health: called twice")
	}
	ch.checked = true
	go ch.checkHealth(context.Background(), check, healthEvery, healthTimeout) // ends with the process
	return nil
}

// checkHealth runs check until the master is gone or ctx ends.
func (ch *channel) checkHealth(ctx context.Context, check func(context.Context) error, every, timeout time.Duration) {
	result := make(chan error, 1)
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		one, cancel := context.WithTimeout(ctx, timeout)
		go runCheck(one, check, result) // waited for through result
		select {
		case err := <-result:
			ch.sayHealth(err == nil)
		case <-one.Done():
			ch.sayHealth(false)
			ch.sayHealth(<-result == nil)
		}
		cancel()
		ch.mu.Lock()
		gone := ch.gone
		ch.mu.Unlock()
		if gone {
			return
		}
	}
}

func runCheck(ctx context.Context, check func(context.Context) error, result chan<- error) {
	result <- check(ctx)
}

// sayHealth tells the master of a change.
func (ch *channel) sayHealth(ok bool) {
	ch.mu.Lock()
	defer ch.unlock()
	if ch.gone || ch.unhealthy == !ok {
		return
	}
	ch.unhealthy = !ok
	f := handoff.Frame{Type: handoff.Health}
	if !ok {
		f.Arg = 1
	}
	ch.sayNowLocked(f)
}
