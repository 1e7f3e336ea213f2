package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// rolling is a world in a roll.
type rolling struct {
	*world
	endC  chan error
	steps []string
}

// newTemplateFor is what the tests roll to.
func (w *world) newKind() Template {
	t := w.cfg.template()
	t.Argv = []string{"newer"}
	return t
}

// roll begins one and lets it come to rest.
func (w *world) roll(c RollConfig) *rolling {
	r := &rolling{world: w, endC: make(chan error, 1)}
	go func() { r.endC <- w.Roll(w.newKind(), c, r.note) }() // end waits for it
	synctest.Wait()
	return r
}

func (r *rolling) note(e RollEvent) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.steps = append(r.steps, fmt.Sprintf("%d %s", e.Slot, e.Step))
}

// rolled waits for the end of the roll.
func (r *rolling) rolled() error {
	synctest.Wait()
	select {
	case err := <-r.endC:
		return err
	default:
		r.t.Fatalf("the roll has not ended: %q\n%s", r.steps, r.text())
		return nil
	}
}

func (r *rolling) running() bool { return len(r.endC) == 0 }

// ready says so for the newest process of a slot, the successor if there is one.
func (w *world) readyNext(slot int) {
	w.t.Helper()
	s := w.Snapshot().Slots[slot]
	id := s.ID
	if s.Next != nil {
		id = s.Next.ID
	}
	w.do(func() { w.Ready(id) })
}

// kinds tells what runs in each slot, as the first word of its command and its state.
func (w *world) kinds() (kinds []string) {
	for _, s := range w.Snapshot().Slots {
		if s.PID == 0 {
			kinds = append(kinds, string(s.State))
			continue
		}
		kinds = append(kinds, fmt.Sprintf("%s.%d %s", w.proc(s.PID - 100).spec.argv[0], s.Generation, s.State))
	}
	return kinds
}

func (w *world) wantKinds(want ...string) {
	w.t.Helper()
	if got := w.kinds(); !slices.Equal(got, want) {
		w.t.Errorf("slots are %q, want %q\n%s", got, want, w.text())
	}
}

func (r *rolling) wantSteps(want ...string) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Equal(r.steps, want) {
		r.t.Errorf("steps %q, want %q", r.steps, want)
	}
}

// serving starts a world of n ready workers.
func serving(t *testing.T, n int, c Config) *world {
	t.Helper()
	c.Size = n
	w := newWorld(t, c).run()
	for slot := range n {
		w.readyNext(slot)
	}
	return w
}

func (w *world) finish() {
	w.t.Helper()
	w.StopNow()
	if err := w.end(); err != nil {
		w.t.Error(err)
	}
}

// A successor is ready before it takes a place, slot by slot. The first one has to live
// for the canary time before that. No old one drains before the last successor has done so.
func TestRoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 3, Config{})
		r := w.roll(RollConfig{Canary: 5 * time.Second})
		w.wantKinds("worker.1 ready", "worker.1 ready", "worker.1 ready")
		w.readyNext(0)
		w.pass(4 * time.Second)
		w.wantKinds("worker.1 ready", "worker.1 ready", "worker.1 ready")
		w.pass(time.Second)
		w.wantKinds("newer.2 ready", "worker.1 ready", "worker.1 ready")
		w.wantOldOnes(0, "0.1 kept")
		w.readyNext(1)
		w.wantKinds("newer.2 ready", "newer.2 ready", "worker.1 ready") // no canary any more
		w.readyNext(2)
		w.wantKinds("newer.2 ready", "newer.2 ready", "newer.2 ready")
		if !r.running() {
			t.Error("the last are trusted before their time")
		}
		w.pass(4 * time.Second)
		for slot := range 3 {
			w.wantOldOnes(slot, fmt.Sprintf("%d.1 kept", slot))
		}
		w.pass(time.Second)
		if err := r.rolled(); err != nil {
			t.Error(err)
		}
		r.wantSteps("0 started", "0 replaced", "1 started", "1 replaced", "2 started", "2 replaced")
		w.pass(time.Minute) // the old ones have drained or were ended
		for slot := range 3 {
			if o := w.older(slot); len(o) != 0 {
				t.Error(o)
			}
			s := w.Snapshot().Slots[slot]
			if s.Starts[StartReload] != 1 || s.Exits[CauseRequested] != 1 {
				t.Errorf("%+v", s)
			}
		}
		w.at(1).exit(exitStatus{code: 1}) // what is started from here on is of the new kind
		w.pass(10 * time.Second)
		w.wantKinds("newer.2 ready", "newer.2 starting", "newer.2 ready")
		w.finish()
	})
}

func TestRollSurge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 5, Config{})
		r := w.roll(RollConfig{Surge: 2})
		successors := func() (n int) {
			for _, s := range w.Snapshot().Slots {
				if s.Next != nil {
					n++
				}
			}
			return n
		}
		if n := successors(); n != 2 {
			t.Errorf("%d at a time", n)
		}
		w.readyNext(1)
		if n := successors(); n != 2 {
			t.Errorf("%d at a time after the first", n)
		}
		for _, slot := range []int{0, 2, 3, 4} {
			w.readyNext(slot)
		}
		if err := r.rolled(); err != nil {
			t.Error(err)
		}
		w.finish()
	})
}

// Whatever is wrong with the new command, who served goes on serving.
func TestRollFails(t *testing.T) {
	for _, tt := range []struct {
		name string
		fail func(w *world)
		says string
	}{
		{"exits at boot", func(w *world) { w.proc(2).exit(exitStatus{code: 3}) }, "slot 0: process 102 exited with code 3"},
		{"exits on trial", func(w *world) {
			w.readyNext(0)
			w.pass(time.Second)
			w.proc(2).exit(exitStatus{code: 3})
		}, "slot 0: process 102 exited with code 3"},
		{"is never ready", func(w *world) { w.pass(31 * time.Second) }, "not ready within 30s"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := serving(t, 2, Config{})
				r := w.roll(RollConfig{Canary: 5 * time.Second})
				tt.fail(w)
				if err := r.rolled(); err == nil || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("%v, want %q", err, tt.says)
				}
				r.wantSteps("0 started", "0 failed")
				w.wantKinds("worker.1 ready", "worker.1 ready")
				w.pass(time.Minute)
				w.wantKinds("worker.1 ready", "worker.1 ready")
				if strings.Contains(w.text(), "drain") {
					t.Errorf("somebody was asked to drain:\n%s", w.text())
				}
				r = w.roll(RollConfig{}) // it can be tried again, as another generation
				w.readyNext(0)
				w.readyNext(1)
				if err := r.rolled(); err != nil {
					t.Error(err)
				}
				w.wantKinds("newer.3 ready", "newer.3 ready")
				w.finish()
			})
		})
	}
}

func TestRollCannotSpawn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 2, Config{})
		missing := errors.New("no such program")
		w.onLaunch = func(_ context.Context, sp *spec) error {
			if sp.argv[0] == "newer" {
				return missing
			}
			return nil
		}
		r := w.roll(RollConfig{Canary: time.Second})
		if err := r.rolled(); !errors.Is(err, missing) {
			t.Error(err)
		}
		w.wantKinds("worker.1 ready", "worker.1 ready")
		w.finish()
	})
}

// at2 returns the process of a slot's successor.
func (w *world) at2(slot int) *fakeProcess { return w.proc(w.Snapshot().Slots[slot].Next.PID - 100) }

// The old worker may die while its successor starts: the successor then takes the
// place; if that one fails too, the slot is started again as it was.
func TestTheOldOneDiesInARoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 1, Config{})
		r := w.roll(RollConfig{})
		w.at(0).exit(exitStatus{code: 1})
		w.pass(10 * time.Second)
		if n := len(w.all()); n != 2 {
			t.Errorf("%d processes were started, want the two", n)
		}
		w.readyNext(0)
		if err := r.rolled(); err != nil {
			t.Error(err)
		}
		w.wantKinds("newer.2 ready")
		w.finish()
	})
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 1, Config{})
		r := w.roll(RollConfig{})
		w.at(0).exit(exitStatus{code: 1})
		synctest.Wait()
		w.at2(0).exit(exitStatus{code: 1})
		if err := r.rolled(); err == nil {
			t.Error("it did not fail")
		}
		w.pass(10 * time.Second)
		w.wantKinds("worker.1 starting")
		w.finish()
	})
}

// Slots that are added in a roll are rolled as well, those taken away are not missed.
func TestResizeInARoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 3, Config{})
		r := w.roll(RollConfig{})
		if err := w.Resize(4); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		w.readyNext(3)
		if err := w.Resize(2); err != nil {
			t.Error(err)
		}
		if err := w.Resize(4); err != nil {
			t.Error(err)
		}
		for n := 0; r.running(); n++ {
			if n == 100 {
				t.Fatalf("it does not end: %q\n%s", r.steps, w.text())
			}
			for slot := range 4 {
				w.readyNext(slot)
			}
			w.pass(time.Second)
		}
		if err := r.rolled(); err != nil {
			t.Error(err)
		}
		w.pass(time.Minute)
		for slot := range 4 {
			w.readyNext(slot)
		}
		w.wantKinds("newer.2 ready", "newer.2 ready", "newer.2 ready", "newer.2 ready")
		w.finish()
	})
}

func TestStopInARoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 2, Config{})
		r := w.roll(RollConfig{})
		w.Stop()
		if err := r.rolled(); !errors.Is(err, ErrStopping) {
			t.Error(err)
		}
		w.pass(time.Minute)
		if err := w.end(); err != nil {
			t.Error(err)
		}
		if err := w.Roll(w.newKind(), RollConfig{}, nil); !errors.Is(err, ErrStopping) {
			t.Error(err)
		}
	})
}

func TestOneRollAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Size: 2}).run()
		if err := w.Roll(w.newKind(), RollConfig{}, nil); !errors.Is(err, ErrBusy) { // none was ready yet
			t.Error(err)
		}
		w.readyNext(0)
		w.readyNext(1)
		r := w.roll(RollConfig{})
		if err := w.Roll(w.newKind(), RollConfig{}, nil); !errors.Is(err, ErrBusy) {
			t.Error(err)
		}
		if err := w.Restart(1, "restart", nil); !errors.Is(err, ErrBusy) {
			t.Error(err)
		}
		if err := w.Roll(Template{}, RollConfig{}, nil); err == nil || !strings.Contains(err.Error(), "command is empty") {
			t.Error(err)
		}
		w.readyNext(0)
		w.readyNext(1)
		if err := r.rolled(); err != nil {
			t.Error(err)
		}
		w.finish()
	})
}

func TestRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 2, Config{})
		endC := make(chan error, 1)
		begin := func(slot int) {
			go func() { endC <- w.Restart(slot, "asked to", nil) }() // received below
			synctest.Wait()
		}
		begin(1)
		w.readyNext(1)
		if err := <-endC; err != nil {
			t.Error(err)
		}
		w.wantKinds("worker.1 ready", "worker.1 ready")
		if len(w.all()) != 3 || len(w.older(1)) != 1 {
			t.Error(w.text())
		}
		begin(0)
		w.at2(0).exit(exitStatus{code: 1}) // then nothing has happened
		if err := <-endC; err == nil || !strings.Contains(err.Error(), "slot 0") {
			t.Error(err)
		}
		w.wantKinds("worker.1 ready", "worker.1 ready")
		if err := w.Restart(7, "", nil); !errors.Is(err, ErrNoWorker) {
			t.Error(err)
		}
		w.finish()
	})
}

func TestDrainAndUndrainSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 2, Config{})
		for slot := range 2 { // all of them: the pool goes on with none
			if err := w.DrainSlot(slot); err != nil {
				t.Error(err)
			}
		}
		w.pass(time.Minute)
		w.wantKinds("down", "down")
		if !w.Snapshot().Slots[0].Held {
			t.Error("not held")
		}
		if err := w.Restart(0, "asked to", nil); !errors.Is(err, ErrNoWorker) || !strings.Contains(err.Error(), "undrain it") {
			t.Error(err)
		}
		r := w.roll(RollConfig{Canary: time.Second}) // of nobody: it holds for who comes
		if err := r.rolled(); err != nil {
			t.Error(err)
		}
		if err := w.UndrainSlot(1); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		w.readyNext(1)
		w.wantKinds("down", "newer.2 ready")
		if err := w.KillSlot(1, "asked to"); err != nil {
			t.Error(err)
		}
		w.pass(time.Minute)
		w.wantKinds("down", "newer.2 starting")
		for _, err := range []error{w.DrainSlot(2), w.UndrainSlot(-1), w.KillSlot(0, "")} {
			if !errors.Is(err, ErrNoWorker) {
				t.Error(err)
			}
		}
		w.finish()
	})
}

func TestLimitsChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 1, Config{})
		limits := Limits{StopTimeout: 2 * time.Second, DrainTimeout: 3 * time.Second, RespawnMin: 20 * time.Second, RespawnMax: 20 * time.Second, Restart: RestartOnFailure}
		if err := w.SetLimits(limits); err != nil {
			t.Fatal(err)
		}
		w.at(0).exit(exitStatus{code: 1})
		w.pass(19 * time.Second)
		w.wantKinds("backoff")
		w.pass(time.Second)
		w.readyNext(0)
		w.proc(1).set(true, false) // it does not hear TERM
		w.Stop()
		w.pass(4900 * time.Millisecond)
		w.wantKinds("worker.1 draining")
		w.pass(200 * time.Millisecond)
		if err := w.end(); err != nil {
			t.Error(err)
		}
		limits.RespawnMax = time.Second
		if err := w.SetLimits(limits); err == nil || !strings.Contains(err.Error(), "respawn pauses") {
			t.Error(err)
		}
	})
}

// The only slot is emptied before it was ever ready: that is no failed start.
func TestDrainBeforeTheFirstReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{}).run()
		if err := w.DrainSlot(0); err != nil {
			t.Fatal(err)
		}
		w.pass(time.Minute)
		w.wantKinds("down")
		if err := w.UndrainSlot(0); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.readyNext(0)
		w.wantKinds("worker.1 ready")
		w.finish()
	})
}
