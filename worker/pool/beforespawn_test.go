package pool

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A hook that says no makes the spawn fail, which is tried again.
func TestBeforeSpawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		w := newWorld(t, Config{Hooks: Hooks{BeforeSpawn: func(_ context.Context, slot, generation int) error {
			if asked++; slot != 0 || generation != 1 {
				t.Errorf("asked of slot %d, generation %d", slot, generation)
			}
			if asked == 2 {
				return errors.New("not today")
			}
			return nil
		}}}).run()
		w.do(func() { w.Ready(1) })
		w.do(func() { w.proc(0).exit(exitStatus{code: 1}) })
		w.pass(2 * time.Second)
		w.wantState(StateStarting)
		w.StopNow()
		_ = w.end()
		if asked != 3 {
			t.Errorf("asked %d times", asked)
		}
		if s := w.Snapshot().Slots; len(s) > 0 && s[0].SpawnFailures != 1 {
			t.Errorf("%+v", s)
		}
	})
}

// What takes too long is a start that takes too long.
func TestBeforeSpawnTakesTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{StartTimeout: 3 * time.Second, Hooks: Hooks{BeforeSpawn: func(ctx context.Context, _, _ int) error {
			<-ctx.Done()
			return ctx.Err()
		}}}).run()
		err := w.end()
		var boot *BootError
		if !errors.As(err, &boot) || time.Since(w.began) != 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(w.began))
		}
	})
}
