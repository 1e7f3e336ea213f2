package worker

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"rrd/handoff"
)

func TestHealthIsToldWhenItChanges(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	results := make(chan error)
	startChecking(t, ch, func(ctx context.Context) error {
		select {
		case err := <-results:
			return err
		case <-ctx.Done():
			return nil
		}
	}, time.Hour)
	results <- nil // healthy from the start: nothing to tell
	results <- errors.New("the pool is empty")
	if f := m.next(); f.Type != handoff.Health || f.Arg != 1 {
		t.Fatalf("got %v %d, want HEALTH 1", f.Type, f.Arg)
	}
	results <- errors.New("still")
	results <- nil
	if f := m.next(); f.Type != handoff.Health || f.Arg != 0 {
		t.Fatalf("got %v %d, want HEALTH 0", f.Type, f.Arg)
	}
}

func TestACheckThatDoesNotReturnHasFailed(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	stuck := make(chan struct{})
	startChecking(t, ch, func(context.Context) error { <-stuck; return nil }, time.Millisecond)
	if f := m.next(); f.Type != handoff.Health || f.Arg != 1 {
		t.Fatalf("got %v %d, want HEALTH 1", f.Type, f.Arg)
	}
	close(stuck)
	if f := m.next(); f.Type != handoff.Health || f.Arg != 0 {
		t.Fatalf("got %v %d, want HEALTH 0", f.Type, f.Arg)
	}
}

// startChecking runs the checks until the test has ended.
func startChecking(t *testing.T, ch *channel, check func(context.Context) error, timeout time.Duration) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() { ch.checkHealth(ctx, check, time.Millisecond, timeout) })
	t.Cleanup(func() { cancel(); done.Wait() })
}
