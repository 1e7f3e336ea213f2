package pool

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// stand freezes the pool and lets all come to rest.
func (w *world) stand() {
	w.t.Helper()
	if err := w.Freeze(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
}

func (w *world) goOnAgain() { w.do(w.Thaw) }

// Nothing is started, killed or timed out, however long it takes, and afterwards all
// deadlines are as far away as they were.
func TestFrozenStandsStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 2, Config{Restart: RestartNever})
		w.do(func() { w.Retire(w.id(0), "test") }) // TERM after 30 s
		deaf := w.at(1)
		deaf.set(true, true)
		w.do(func() { w.Kill(w.id(1), "hung") }) // stuck after 2 s
		w.pass(time.Second)
		w.lines, w.told = nil, nil
		w.stand()
		w.pass(time.Hour)
		w.goOnAgain()
		w.wantState(StateDraining, StateReady)
		w.pass(time.Second - time.Millisecond)
		w.wantState(StateDraining, StateReady)
		w.pass(time.Millisecond)
		if o := w.older(1); len(o) != 1 || !strings.Contains(o[0], "stuck") {
			t.Errorf("older %q", o)
		}
		w.wantLog("")
		w.pass(28*time.Second - time.Millisecond)
		w.wantLog("")
		w.pass(time.Millisecond)
		if text := w.text(); !strings.Contains(text, "1h0m30s pid 10") {
			t.Errorf("too late:\n%s", text)
		}
		deaf.exit(killedStatus)
		w.finish()
	})
}

// A moment moves nothing.
func TestShortFreeze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 1, Config{StartTimeout: 10 * time.Second})
		w.do(func() { w.proc(0).exit(exitStatus{code: 1}) })
		w.pass(5 * time.Second)
		w.stand()
		w.pass(late)
		w.goOnAgain()
		w.pass(6 * time.Second)
		w.wantLog(`
			0s slot 0 started id 1 pid 100
			0s slot 0 ready
			0s slot 0 exited with code 1 after 0s, cause code
			0s slot 0 backs off 1s
			1s slot 0 started id 2 pid 101
			6s slot 0 silent
			11s pid 101 killed
			11s slot 0 was ended by signal 9 (killed) after 10s: not ready within 10s, cause killed_stuck
			11s slot 0 backs off 2s
			11s slot 0 started id 3 pid 102
		`)
		w.finish()
	})
}

// A planned start is not moved: it is due at once.
func TestFrozenBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 1, Config{})
		w.do(func() { w.proc(0).exit(exitStatus{code: 1}) })
		w.stand()
		w.pass(time.Minute)
		w.wantState(StateBackoff)
		w.goOnAgain()
		w.wantState(StateStarting)
		w.finish()
	})
}

// held is a world where launches wait until they are let go on.
func held(t *testing.T, size int) (w *world, goC chan struct{}) {
	t.Helper()
	goC = make(chan struct{}, 100)
	w = newWorld(t, Config{Size: size})
	w.onLaunch = func(ctx context.Context, _ *spec) error {
		select {
		case <-goC:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for range size {
		goC <- struct{}{}
	}
	w.run()
	for slot := range size {
		w.readyNext(slot)
	}
	return w, goC
}

func TestFreezeWaitsForStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, goC := held(t, 2)
		w.do(func() { w.at(0).exit(exitStatus{code: 1}) })
		w.pass(time.Second) // its start is under way
		frozenC := make(chan error, 1)
		go func() { frozenC <- w.Freeze(t.Context()) }() // received below
		synctest.Wait()
		starts := len(w.all())
		w.do(func() { w.at(1).exit(exitStatus{code: 1}) })
		w.pass(5 * time.Second) // the other is due, and not begun
		if len(frozenC) != 0 || len(w.all()) != starts {
			t.Errorf("frozen %d, %d starts", len(frozenC), len(w.all()))
		}
		w.wantState(StateStarting, StateBackoff)
		if err := w.Restart(1, "test", nil); !errors.Is(err, ErrBusy) {
			t.Errorf("Restart: %v", err)
		}
		if err := w.Freeze(t.Context()); !errors.Is(err, ErrBusy) {
			t.Errorf("Freeze: %v", err)
		}
		w.do(func() { goC <- struct{}{} })
		if err := <-frozenC; err != nil {
			t.Error(err)
		}
		w.do(func() { goC <- struct{}{} })
		w.wantState(StateStarting, StateBackoff)
		w.goOnAgain()
		w.wantState(StateStarting, StateStarting)
		w.finish()
	})
}

func TestFreezeGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, goC := held(t, 2)
		w.do(func() { w.at(0).exit(exitStatus{code: 1}) })
		w.pass(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		go exitLater(w.at(1), 2*time.Second) // ended before Freeze is
		err := w.Freeze(ctx)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "1 starts are under way") {
			t.Errorf("Freeze = %v", err)
		}
		goC <- struct{}{}
		goC <- struct{}{}
		synctest.Wait()
		w.wantState(StateStarting, StateStarting)
		w.stand() // and now it can be
		w.goOnAgain()
		w.finish()
	})
}

func exitLater(f *fakeProcess, d time.Duration) {
	time.Sleep(d)
	f.exit(exitStatus{code: 1})
}

func TestFreezeOfWhatCannotBe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{})
		want := func(when string, target error) {
			t.Helper()
			if err := w.Freeze(t.Context()); !errors.Is(err, target) {
				t.Errorf("%s: %v", when, err)
			}
			if _, err := w.State(); err == nil {
				t.Errorf("%s: there is a state", when)
			}
			w.Thaw() // does nothing
		}
		want("before Run", ErrBusy)
		select {
		case <-w.Running():
			t.Error("it runs before Run")
		default:
		}
		w.run()
		<-w.Running()
		want("booting", ErrBusy)
		w.readyNext(0)
		r := w.roll(RollConfig{})
		want("in a roll", ErrBusy)
		w.readyNext(0)
		if err := r.rolled(); err != nil {
			t.Error(err)
		}
		w.Stop()
		want("stopping", ErrStopping)
		w.StopNow()
		if err := w.end(); err != nil {
			t.Error(err)
		}
		want("over", ErrStopping)
	})
}

// A Stop goes before a Freeze that still waits.
func TestStopWhileSettling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := held(t, 1)
		w.do(func() { w.at(0).exit(exitStatus{code: 1}) })
		w.pass(time.Second)
		frozenC := make(chan error, 1)
		go func() { frozenC <- w.Freeze(t.Context()) }() // received below
		w.pass(time.Second)
		w.StopNow()
		if err := <-frozenC; !errors.Is(err, ErrStopping) {
			t.Errorf("Freeze = %v", err)
		}
		if err := w.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestFrozenIsNotChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 2, Config{})
		w.stand()
		_, grow := w.Grow()
		for what, err := range map[string]error{
			"Signal":      w.Signal(0, syscall.SIGUSR1),
			"Resize":      w.Resize(1),
			"Grow":        grow,
			"DrainSlot":   w.DrainSlot(0),
			"UndrainSlot": w.UndrainSlot(0),
			"KillSlot":    w.KillSlot(0, "test"),
			"Restart":     w.Restart(0, "test", nil),
			"Roll":        w.Roll(w.newKind(), RollConfig{}, nil),
			"SetLimits":   w.SetLimits(Limits{}),
			"Freeze":      w.Freeze(t.Context()),
		} {
			if !errors.Is(err, ErrBusy) {
				t.Errorf("%s: %v", what, err)
			}
		}
		w.goOnAgain()
		w.wantState(StateReady, StateReady)
		if err := w.Resize(1); err != nil {
			t.Error(err)
		}
		w.finish()
	})
}

// What is told meanwhile happens afterwards, in order and before the exits that
// it may have foretold.
func TestFrozenKeepsReports(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 3, Config{})
		w.lines = nil
		ids := []uint64{w.id(0), w.id(1), w.id(2)}
		leaving := w.at(1)
		w.stand()
		w.do(func() {
			w.Kill(ids[0], "hung")
			leaving.exit(exitStatus{})
			w.Leaves(ids[1])
			w.SetReader(ids[2], readerPID)
		})
		w.wantLog("")
		w.goOnAgain()
		x := w.Snapshot().Slots[1].LastExit
		if x == nil || !x.Left {
			t.Errorf("exit %+v", x)
		}
		if x := w.Snapshot().Slots[0].LastExit; x == nil || x.Cause != CauseKilledStuck || x.Reason != "hung" {
			t.Errorf("exit %+v", x)
		}
		w.do(func() { w.at(2).exit(exitStatus{code: 1}) })
		if o := w.older(2); len(o) != 1 || !strings.Contains(o[0], "orphan 5000") {
			t.Errorf("older %q", o)
		}
		w.stand()
		w.do(w.StopNow)
		w.goOnAgain()
		w.endReader(readerPID)
		if err := w.end(); err != nil {
			t.Error(err)
		}
	})
}

// Freeze returns when the hooks have, which may call the pool meanwhile.
func TestFreezeWaitsForHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w *world
		holdC := make(chan struct{})
		calls := 0
		w = newWorld(t, Config{Size: 1, Hooks: Hooks{Ready: func(k Worker) {
			if calls++; calls > 1 {
				<-holdC
				w.Snapshot()
				w.Retire(k.ID, "by a hook")
			}
		}}}).run()
		w.readyNext(0)
		w.do(func() { w.proc(0).exit(exitStatus{code: 1}) })
		w.pass(time.Second)
		w.readyNext(0)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.Freeze(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "hooks") {
			t.Errorf("Freeze = %v", err)
		}
		frozenC := make(chan error, 1)
		go func() { frozenC <- w.Freeze(t.Context()) }() // received below
		synctest.Wait()
		if len(frozenC) != 0 {
			t.Error("frozen before a hook has returned")
		}
		close(holdC)
		if err := <-frozenC; err != nil {
			t.Error(err)
		}
		w.wantState(StateReady)
		w.goOnAgain()
		w.wantState(StateDraining)
		w.finish()
	})
}

// The lines that cross in the State are written by the next image. Until Thaw this one
// writes none of them.
func TestFrozenOutputIsWrittenOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sink := &slowSink{each: 10 * time.Millisecond}
		w := newWorld(t, Config{Size: 1, Output: Output{Mode: OutputJSON, Record: sink.record}}).run()
		w.Ready(w.id(0))
		synctest.Wait()
		const n = 1000 // more than a freeze waits for
		for range n {
			w.out.put(Line{Text: []byte("line")}, alive)
		}
		if err := w.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
		s, err := w.State()
		if err != nil {
			t.Fatal(err)
		}
		w.pass(time.Minute)
		if got := int(sink.lines.Load()) + len(s.OutputLines); len(s.OutputLines) == 0 || got != n && got != n-1 { // one was with the sink
			t.Errorf("%d lines are written and %d cross, of %d", sink.lines.Load(), len(s.OutputLines), n)
		}
		w.Thaw()
		w.pass(time.Minute)
		if got := sink.lines.Load(); got != n {
			t.Errorf("%d lines after Thaw, want %d", got, n)
		}
		w.finish()
	})
}
