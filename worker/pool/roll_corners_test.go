package pool

import (
	"testing"
	"testing/synctest"
	"time"
)

// A resize in the middle of a roll takes slots away whose successors are under way. That is
// no failure of theirs, and when the slots are given back the roll goes on with them.
func TestShrinkInARoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 4, Config{})
		r := w.roll(RollConfig{Surge: 4})
		for n := 4; n <= 7; n++ {
			w.proc(n).set(true, false) // ends when killed
		}
		if err := w.Resize(2); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := w.Resize(4); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.pass(w.cfg.StopTimeout)
		if !r.running() {
			t.Fatalf("the roll has ended: %v", r.rolled())
		}
		for range 2 {
			for slot := range 4 {
				w.readyNext(slot)
			}
		}
		if err := r.rolled(); err != nil {
			t.Error(err)
		}
		w.wantKinds("newer.2 ready", "newer.2 ready", "newer.2 ready", "newer.2 ready")
		w.finish()
	})
}

// What the old generation left to the new one it gets back, also where no worker is
// restarted.
func TestRollBackWithoutRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 2, Config{Restart: RestartNever})
		r := w.roll(RollConfig{Canary: 5 * time.Second})
		w.readyNext(0)
		w.pass(5 * time.Second)
		w.readyNext(1)
		w.at(1).exit(exitStatus{code: 3})
		synctest.Wait()
		w.readyNext(0)
		w.readyNext(1)
		if err := r.rolled(); err == nil {
			t.Error("no error")
		}
		w.wantKinds("worker.1 ready", "worker.1 ready")
		w.finish()
	})
}

// A slot that is emptied in a roll and filled again is of the new kind, and of the old one
// again after a roll that fails.
func TestDrainAndUndrainInARoll(t *testing.T) {
	for _, fails := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := serving(t, 2, Config{DrainTimeout: time.Second})
			r := w.roll(RollConfig{})
			w.do(func() { _ = w.DrainSlot(0) })
			w.pass(2 * time.Second)
			w.do(func() { _ = w.UndrainSlot(0) })
			w.readyNext(0)
			want := []string{"newer.2 ready", "newer.2 ready"}
			if fails {
				want = []string{"worker.1 ready", "worker.1 ready"}
				w.proc(w.Snapshot().Slots[1].Next.PID - 100).exit(exitStatus{code: 3})
				synctest.Wait()
				w.readyNext(0)
			} else {
				w.readyNext(1)
			}
			if err := r.rolled(); (err != nil) != fails {
				t.Error(err)
			}
			w.wantKinds(want...)
			w.finish()
		})
	}
}
