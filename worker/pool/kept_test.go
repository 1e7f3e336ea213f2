package pool

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// wantOldOnes compares the older processes of a slot, each as its name and state.
func (w *world) wantOldOnes(slot int, want ...string) {
	w.t.Helper()
	var got []string
	for _, o := range w.Snapshot().Slots[slot].Older {
		got = append(got, fmt.Sprintf("%s %s", o.Name(), o.State))
	}
	if !slices.Equal(got, want) {
		w.t.Errorf("older processes of slot %d are %q, want %q\n%s", slot, got, want, w.text())
	}
}

// places returns the pid of each slot's worker.
func (w *world) places() (pids []int) {
	for _, s := range w.Snapshot().Slots {
		pids = append(pids, s.PID)
	}
	return pids
}

// failingRoll is a world of four whose first two slots are replaced, and whose roll is
// under way in the third.
func failingRoll(t *testing.T, c Config, rc RollConfig) (w *world, r *rolling, before []int) {
	t.Helper()
	c.Hooks.Replaced = func(k Worker) { w.logf("slot %d replaced, id %d", k.Slot, k.ID) }
	c.Hooks.Restored = func(k Worker) { w.logf("slot %d restored, id %d", k.Slot, k.ID) }
	w = serving(t, 4, c)
	before = w.places()
	rc.Canary = 5 * time.Second
	r = w.roll(rc)
	w.readyNext(0)
	w.pass(5 * time.Second)
	w.readyNext(1)
	w.wantKinds("newer.2 ready", "newer.2 ready", "worker.1 ready", "worker.1 ready")
	return w, r, before
}

// restarted makes each new process ready until the roll has ended.
func (r *rolling) restarted() error {
	r.t.Helper()
	for n := 0; r.running(); n++ {
		if n == 100 {
			r.t.Fatalf("it does not end: %q\n%s", r.steps, r.text())
		}
		for slot := range r.Snapshot().Slots {
			r.readyNext(slot)
		}
		r.pass(time.Second)
	}
	return r.rolled()
}

// If a roll fails, the replaced processes go on in their places: no other process of the
// same command line, which may be another program by now.
func TestRollBackToTheSameProcesses(t *testing.T) {
	for _, tt := range []struct {
		name string
		fail func(w *world)
	}{
		{"third at boot", func(w *world) { w.at2(2).exit(exitStatus{code: 3}) }},
		{"second within the canary time", func(w *world) { w.at(1).exit(exitStatus{code: 3}) }},
		{"second's own check fails within the canary time", func(w *world) { w.Retire(w.id(1), "its own check fails") }},
		{"second hangs within the canary time", func(w *world) {
			w.at(1).set(true, true)
			w.Kill(w.id(1), "hung")
			w.pass(stuckAfter)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, r, before := failingRoll(t, Config{}, RollConfig{})
				tt.fail(w)
				synctest.Wait()
				if err := r.rolled(); err == nil {
					t.Error("the roll has not failed")
				}
				w.wantKinds("worker.1 ready", "worker.1 ready", "worker.1 ready", "worker.1 ready")
				if after := w.places(); !slices.Equal(before, after) {
					t.Errorf("processes %v, want those of before: %v", after, before)
				}
				for _, step := range []string{"0 rolled back", "1 rolled back"} {
					if !slices.Contains(r.steps, step) {
						t.Errorf("steps %q lack %q", r.steps, step)
					}
				}
				for slot := range 2 {
					id := w.id(slot)
					for _, line := range []string{fmt.Sprintf("slot %d replaced, id %d", slot, id), fmt.Sprintf("slot %d restored, id %d", slot, id)} {
						if !strings.Contains(w.text(), line) {
							t.Errorf("no %q in\n%s", line, w.text())
						}
					}
				}
				w.pass(time.Minute)
				w.wantKinds("worker.1 ready", "worker.1 ready", "worker.1 ready", "worker.1 ready")
				for slot := range 2 {
					for _, o := range w.Snapshot().Slots[slot].Older {
						if o.Generation != 2 || o.State != StateStuck {
							t.Errorf("%s is left, %s", o.Name(), o.State)
						}
					}
				}
				w.StopNow()
				for _, f := range w.all() {
					f.exit(exitStatus{code: -1, signal: syscall.SIGKILL})
				}
				if err := w.end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A kept process may end, hang or lose its slot before the roll fails.
func TestKeptMeanwhile(t *testing.T) {
	for _, tt := range []struct {
		name      string
		meanwhile func(t *testing.T, w *world)
		kinds     []string
		restarts  bool // slot 0 is another process
	}{
		{"it dies", func(_ *testing.T, w *world) { w.kept(0).exit(exitStatus{code: 1}) },
			[]string{"worker.1 ready", "worker.1 ready", "worker.1 ready", "worker.1 ready"}, true},
		{"it hangs", func(t *testing.T, w *world) {
			id := w.Snapshot().Slots[0].Older[0].ID
			w.kept(0).set(true, true)
			w.Kill(id, "hung")
			w.pass(stuckAfter)
			w.wantOldOnes(0, "0.1 stuck")
			w.kept(0).exit(exitStatus{code: -1, signal: syscall.SIGKILL})
		}, []string{"worker.1 ready", "worker.1 ready", "worker.1 ready", "worker.1 ready"}, true},
		{"it is retired", func(_ *testing.T, w *world) { w.Retire(w.Snapshot().Slots[0].Older[0].ID, "unwell") },
			[]string{"worker.1 ready", "worker.1 ready", "worker.1 ready", "worker.1 ready"}, true},
		{"its successor is killed", func(t *testing.T, w *world) {
			w.pass(5 * time.Second) // it is trusted
			if err := w.KillSlot(0, "asked to"); err != nil {
				t.Error(err)
			}
			synctest.Wait()
			w.wantOldOnes(0, "0.1 kept")
		}, []string{"worker.1 ready", "worker.1 ready", "worker.1 ready", "worker.1 ready"}, false},
		{"its slot is drained", func(t *testing.T, w *world) {
			if err := w.DrainSlot(0); err != nil {
				t.Error(err)
			}
			w.pass(time.Minute)
		}, []string{"down", "worker.1 ready", "worker.1 ready", "worker.1 ready"}, true},
		{"its slot is taken away and given back", func(t *testing.T, w *world) {
			for _, n := range []int{1, 4} {
				if err := w.Resize(n); err != nil {
					t.Error(err)
				}
				synctest.Wait()
			}
			w.wantOldOnes(1, "1.1 draining")
		}, []string{"worker.1 ready", "worker.1 ready", "worker.1 ready", "worker.1 ready"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, r, before := failingRoll(t, Config{StartTimeout: NoTimeout}, RollConfig{})
				w.wantOldOnes(0, "0.1 kept")
				tt.meanwhile(t, w)
				synctest.Wait()
				for slot := range 4 {
					if s := w.Snapshot().Slots[slot]; s.Next != nil {
						w.at2(slot).exit(exitStatus{code: 3})
						break
					}
				}
				synctest.Wait()
				if err := r.restarted(); err == nil {
					t.Error("the roll has not failed")
				}
				w.pass(time.Minute) // draining processes have ended
				for slot := range 4 {
					w.readyNext(slot)
				}
				w.wantKinds(tt.kinds...)
				if same := w.places()[0] == before[0]; same == tt.restarts {
					t.Errorf("slot 0 has process %d, and had %d", w.places()[0], before[0])
				}
				w.finish()
			})
		})
	}
}

// kept returns the kept process of a slot.
func (w *world) kept(slot int) *fakeProcess {
	return w.proc(w.Snapshot().Slots[slot].Older[0].PID - 100)
}

// A slot that is taken away and given back in a roll is replaced once, and no process of it
// is forgotten.
func TestASlotComesBackInARoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 2, Config{StartTimeout: NoTimeout})
		r := w.roll(RollConfig{})
		for _, n := range []int{1, 2} {
			if err := w.Resize(n); err != nil {
				t.Error(err)
			}
			w.pass(time.Minute)
		}
		w.do(func() { w.Ready(w.id(1)) })
		w.wantKinds("worker.1 ready", "worker.1 ready")
		if err := r.restarted(); err != nil {
			t.Error(err)
		}
		w.pass(time.Minute)
		w.wantKinds("newer.2 ready", "newer.2 ready")
		live := 0
		for _, f := range w.all() {
			if !f.isReaped() {
				live++
			}
		}
		if live != 2 {
			t.Errorf("%d processes live, want 2: %q", live, r.steps)
		}
		w.finish()
	})
}

// A stop in a roll drains the kept processes like all others, in their turns.
func TestStopWithKeptProcesses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, r, _ := failingRoll(t, Config{DrainSpread: 10 * time.Second, DrainTimeout: 20 * time.Second}, RollConfig{})
		for slot := range 2 {
			w.hear(w.Snapshot().Slots[slot].Older[0].ID)
		}
		w.Stop()
		if err := r.rolled(); err == nil {
			t.Error("the roll has not failed")
		}
		if err := w.end(); err != nil {
			t.Error(err)
		}
		// Six that serve: two kept, two new, two old. One that starts drains at once.
		turns := []string{"5s", "5s", "6.666666666s", "8.333333333s", "10s", "11.666666666s", "13.333333333s"}
		w.wantSpread(turns, "25s")
	})
}

// When the roll has succeeded, the kept processes drain over the drain spread, each with
// its full drain time-out.
func TestKeptDrainInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 2, Config{DrainSpread: 4 * time.Second, DrainTimeout: 20 * time.Second})
		r := w.roll(RollConfig{})
		w.readyNext(0)
		w.readyNext(1)
		if err := r.rolled(); err != nil {
			t.Error(err)
		}
		w.wantOldOnes(0, "0.1 draining")
		w.wantOldOnes(1, "1.1 ready")
		w.pass(time.Minute)
		w.wantSpread([]string{"0s", "2s"}, "22s")
		w.finish()
	})
}

// A stop has kept processes that wait for their turn drain, also when the drain spread was
// switched off meanwhile.
func TestStopWhileKeptWaitForTheirTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 2, Config{DrainSpread: 10 * time.Second, DrainTimeout: 20 * time.Second})
		r := w.roll(RollConfig{})
		w.readyNext(0)
		w.readyNext(1)
		if err := r.rolled(); err != nil {
			t.Error(err)
		}
		w.wantOldOnes(1, "1.1 ready")
		if err := w.SetLimits(Limits{DrainTimeout: 20 * time.Second}); err != nil {
			t.Error(err)
		}
		w.Stop()
		synctest.Wait()
		w.wantOldOnes(1, "1.1 draining")
		w.StopNow()
		if err := w.end(); err != nil {
			t.Error(err)
		}
	})
}

// RollKeep bounds the kept processes; the others drain at once, and are started again if
// the roll fails.
func TestRollKeepsSome(t *testing.T) {
	for _, tt := range []struct {
		keep  int
		older [][]string
		same  []bool
	}{
		{1, [][]string{{"0.1 kept"}, {"1.1 draining"}}, []bool{true, false, true, true}},
		{-1, [][]string{nil, {"1.1 draining"}}, []bool{false, false, true, true}},
	} {
		t.Run(fmt.Sprint(tt.keep), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, r, before := failingRoll(t, Config{DrainTimeout: 4 * time.Second, StopTimeout: time.Second}, RollConfig{Keep: tt.keep})
				if tt.keep < 0 {
					w.pass(time.Second)
				}
				for slot, older := range tt.older {
					if older == nil {
						older = []string{"0.1 draining"}
					}
					w.wantOldOnes(slot, older...)
				}
				w.at2(2).exit(exitStatus{code: 3})
				synctest.Wait()
				if err := r.restarted(); err == nil {
					t.Error("the roll has not failed")
				}
				w.wantKinds("worker.1 ready", "worker.1 ready", "worker.1 ready", "worker.1 ready")
				for slot, pid := range w.places() {
					if same := pid == before[slot]; same != tt.same[slot] {
						t.Errorf("slot %d has process %d, and had %d", slot, pid, before[slot])
					}
				}
				w.finish()
			})
		})
	}
}

// BeforeDrain comes when the roll has succeeded and before a kept process drains. Until
// it has returned, no other roll and no upgrade can begin.
func TestBeforeDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 2, Config{})
		goC := make(chan struct{})
		r := w.roll(RollConfig{BeforeDrain: func() {
			w.logf("before the drain")
			<-goC
		}})
		w.readyNext(0)
		w.readyNext(1)
		w.pass(time.Minute)
		w.wantOldOnes(0, "0.1 kept")
		if err := w.Freeze(t.Context()); err == nil {
			t.Error("the pool can be frozen")
		}
		if err := w.Resize(3); err != nil { // of the new kind, which needs no roll
			t.Error(err)
		}
		synctest.Wait()
		w.readyNext(2)
		w.wantKinds("newer.2 ready", "newer.2 ready", "newer.2 ready")
		close(goC)
		synctest.Wait()
		if err := r.rolled(); err != nil {
			t.Error(err)
		}
		if text := w.text(); strings.Index(text, "before the drain") > strings.Index(text, "slot 0 drain") {
			t.Error(text)
		}
		w.finish()
	})
}

// A stop does not wait for BeforeDrain, and its roll reports the stop.
func TestStopInBeforeDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 1, Config{})
		goC := make(chan struct{})
		r := w.roll(RollConfig{BeforeDrain: func() { <-goC }})
		w.readyNext(0)
		w.Stop()
		if err := w.end(); err != nil {
			t.Error(err)
		}
		close(goC)
		if err := r.rolled(); err == nil {
			t.Error("no error")
		}
	})
}

// Slots that a roll adds come last, are on trial too, and go again if the roll fails.
func TestRollGrows(t *testing.T) {
	for _, fails := range []string{"", "at boot", "within the canary time", "in an old slot"} {
		t.Run(fails, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := serving(t, 2, Config{})
				before := w.places()
				r := w.roll(RollConfig{Canary: 5 * time.Second, Size: 4})
				w.readyNext(0)
				w.pass(5 * time.Second)
				w.wantKinds("newer.2 ready", "worker.1 ready", "down", "down")
				switch fails {
				case "in an old slot":
					w.at2(1).exit(exitStatus{code: 3})
				case "at boot":
					w.readyNext(1)
					w.at2(2).exit(exitStatus{code: 3})
				default:
					w.readyNext(1)
					w.readyNext(2)
					w.readyNext(3)
					w.wantKinds("newer.2 ready", "newer.2 ready", "newer.2 ready", "newer.2 ready")
					w.pass(4 * time.Second)
					if !r.running() {
						t.Error("the added ones are trusted before their time")
					}
					if fails != "" {
						w.at(3).exit(exitStatus{code: 3})
					}
				}
				w.pass(time.Second)
				err := r.rolled()
				w.pass(time.Minute)
				if fails == "" {
					if err != nil {
						t.Error(err)
					}
					r.wantSteps("0 started", "0 replaced", "1 started", "1 replaced", "2 started", "2 added", "3 started", "3 added")
					w.wantKinds("newer.2 ready", "newer.2 ready", "newer.2 ready", "newer.2 ready")
				} else {
					if err == nil {
						t.Error("the roll has not failed")
					}
					w.wantKinds("worker.1 ready", "worker.1 ready")
					if after := w.places(); !slices.Equal(before, after) {
						t.Errorf("processes %v, want those of before: %v", after, before)
					}
					if fails == "within the canary time" && strings.Contains(w.text(), "slot 3 drain") {
						t.Errorf("the dead process was asked to drain:\n%s", w.text())
					}
				}
				w.finish()
			})
		})
	}
}

// A number of workers that is changed in a roll stays, also if the roll has added some.
func TestResizeInARollThatGrows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 2, Config{})
		r := w.roll(RollConfig{Size: 4})
		if err := w.Resize(3); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		w.at2(0).exit(exitStatus{code: 3})
		synctest.Wait()
		if err := r.restarted(); err == nil {
			t.Error("the roll has not failed")
		}
		w.readyNext(2)
		w.wantKinds("worker.1 ready", "worker.1 ready", "worker.1 ready")
		w.finish()
	})
}
