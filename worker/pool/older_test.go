package pool

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

var killedStatus = exitStatus{code: -1, signal: syscall.SIGKILL}

// freeze makes the newest process of slot 0 deaf to everything, and has it killed.
func (w *world) freeze() (frozen *fakeProcess) {
	w.t.Helper()
	s := w.Snapshot().Slots[0]
	frozen = w.proc(s.PID - 100)
	frozen.set(true, true)
	w.do(func() { w.Ready(s.ID); w.Kill(s.ID, "hung") })
	return frozen
}

func (w *world) wantOlder(slot int, want ...string) {
	w.t.Helper()
	if diff := cmp.Diff(want, w.older(slot)); diff != "" {
		w.t.Errorf("older processes of slot %d (-want +got):\n%s", slot, diff)
	}
}

func TestStuckGetsSuccessorAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{}).run()
		frozen := w.freeze()
		w.pass(stuckAfter - time.Millisecond)
		w.wantOlder(0)
		w.pass(time.Millisecond)
		w.wantOlder(0, "0.1 id 1 stuck 0")
		s := w.Snapshot().Slots[0]
		if s.ID != 2 || s.State != StateStarting || s.Starts[StartCrash] != 1 || s.Exits[CauseKilledStuck] != 0 {
			t.Errorf("successor: %+v", s)
		}
		w.do(func() { w.Ready(2) })
		w.pass(time.Hour)
		w.wantOlder(0, "0.1 id 1 stuck 0")
		w.do(func() { frozen.exit(killedStatus) })
		w.wantOlder(0)
		w.wantState(StateReady)
		if s := w.Snapshot().Slots[0]; s.Exits[CauseKilledStuck] != 1 || s.Restarts != 1 {
			t.Errorf("after the end: %+v", s)
		}
		w.wantLog(`
			0s slot 0 started id 1 pid 100
			0s slot 0 ready
			0s pid 100 killed
			2s slot 0 started id 2 pid 101
			2s slot 0 ready
			1h0m2s slot 0 was ended by signal 9 (killed) after 1h0m2s: hung, cause killed_stuck
		`)
		w.StopNow()
		if err := w.end(); err != nil {
			t.Error(err)
		}
	})
}

// Two may be stuck beside the newest; a third keeps its place until one ends.
func TestStuckGenerationsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{}).run()
		var frozen []*fakeProcess
		for range 3 {
			frozen = append(frozen, w.freeze())
			w.pass(10 * time.Second) // also over the backoff that grows
		}
		w.wantOlder(0, "0.1 id 1 stuck 0", "0.1 id 2 stuck 0")
		w.wantState(StateStuck)
		w.pass(time.Hour)
		if n := len(w.procs); n != 3 {
			t.Fatalf("%d starts, want 3", n)
		}
		w.do(func() { frozen[1].exit(killedStatus) })
		w.pass(10 * time.Second)
		w.wantOlder(0, "0.1 id 1 stuck 0", "0.1 id 3 stuck 0")
		w.wantState(StateStarting)
		// The newest of those that do not end can also be the one that does.
		frozen = append(frozen, w.freeze())
		w.pass(10 * time.Second)
		w.wantState(StateStuck)
		w.do(func() { frozen[3].exit(killedStatus) })
		w.pass(time.Minute)
		w.wantState(StateStarting)
		w.wantOlder(0, "0.1 id 1 stuck 0", "0.1 id 3 stuck 0")
		w.do(func() { frozen[0].exit(killedStatus); frozen[2].exit(killedStatus) })
		w.StopNow()
		if err := w.end(); err != nil {
			t.Error(err)
		}
	})
}

// The pause after a stuck process counts from its KILL, and grows like any other.
func TestStuckBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 2, Config{}) // the other one serves
		began := time.Now()
		var at []time.Duration
		for range 5 {
			f := w.freeze()
			id := w.id(0)
			for w.id(0) <= id {
				w.pass(100 * time.Millisecond)
			}
			at = append(at, time.Since(began))
			w.do(func() { f.exit(killedStatus) })
		}
		want := []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second}
		if diff := cmp.Diff(want, at); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		w.StopNow()
		_ = w.end()
	})
}

func TestStuckAtTheEnd(t *testing.T) {
	tests := []struct {
		name string
		stop func(*world)
		ends time.Duration // after which the frozen one ends; 0: never
		took time.Duration
		err  string
	}{
		{"StopNow", func(w *world) { w.StopNow() }, 0, stuckAfter + leaveAfter,
			"run pool: processes do not end and are left behind: pid 100 (slot 0)"},
		{"StopNow in time", func(w *world) { w.StopNow() }, 4 * time.Second, 4 * time.Second, "<nil>"},
		{"Stop", func(w *world) { w.Stop(); w.Drained(1) }, 0, 5*time.Second + stuckAfter + leaveAfter,
			"run pool: processes do not end and are left behind: pid 100 (slot 0)"},
		{"stuck before", func(w *world) { w.Kill(1, "hung"); w.pass(time.Hour); w.StopNow() }, 0, time.Hour + leaveAfter,
			"run pool: processes do not end and are left behind: pid 100 (slot 0)"},
		{"context", func(w *world) { w.stop() }, 0, stuckAfter + leaveAfter,
			"run pool: processes do not end and are left behind: pid 100 (slot 0)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, Config{}).run()
				w.do(func() { w.Ready(1) })
				frozen := w.proc(0)
				frozen.set(true, true)
				began := time.Now()
				tt.stop(w)
				if tt.ends > 0 {
					w.pass(tt.ends)
					frozen.exit(killedStatus)
				}
				err := w.endLeaving()
				if fmt.Sprint(err) != tt.err {
					t.Errorf("Run = %v, want %s", err, tt.err)
				}
				if took := time.Since(began); took != tt.took {
					t.Errorf("Run took %v, want %v", took, tt.took)
				}
				if left := new(LeftError); err != nil && (!errors.As(err, &left) || left.Workers[0].ID != 1) {
					t.Errorf("%v is no LeftError of worker 1", err)
				}
				if exits := strings.Count(w.text(), "slot 0 was ended by signal 9"); (exits == 1) != (err == nil) {
					t.Errorf("%d exits, Run = %v", exits, err)
				}
			})
		})
	}
}

// What is stuck while the boot goes on is a failed start, no more and no less.
func TestStuckInBoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{StartTimeout: 10 * time.Second}).run()
		w.proc(0).set(true, true)
		err := w.endLeaving()
		boot, left := new(BootError), new(LeftError)
		if !errors.As(err, &boot) || !errors.As(err, &left) {
			t.Fatalf("Run = %v", err)
		}
		want := "no worker became ready: slot 0: process 100 was killed (not ready within 10s) and does not end; " +
			"processes do not end and are left behind: pid 100 (slot 0)"
		if err.Error() != want {
			t.Errorf("Run = %q, want %q", err, want)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Size: 3}).run()
		stuck := w.at(1)
		stuck.set(true, true)
		w.do(func() { w.Kill(w.id(1), "violation") })
		gone := w.at(2)
		gone.set(true, true)
		w.do(func() { w.Kill(w.id(2), "violation") })
		w.pass(10 * time.Second)
		w.do(func() { gone.exit(killedStatus) })
		if n := len(w.procs); n != 3 {
			t.Fatalf("%d starts, want each slot once", n)
		}
		w.do(func() { w.Ready(w.id(0)) })
		w.pass(time.Second)
		w.wantState(StateReady, StateStarting, StateStarting)
		w.wantOlder(2)
		if n := len(w.Snapshot().Slots[1].Older); n != 1 {
			t.Errorf("%d older processes of slot 1", n)
		}
		stuck.exit(killedStatus)
		w.StopNow()
		if err := w.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestStuckAndRestartPolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Restart: RestartNever}).run()
		w.freeze()
		err := w.endLeaving()
		want := "run pool: every worker ended and none is to be restarted: slot 0 was killed: hung; " +
			"processes do not end and are left behind: pid 100 (slot 0)"
		if !errors.Is(err, ErrAllDown) || err.Error() != want {
			t.Errorf("Run = %v", err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Restart: RestartOnFailure}).run()
		frozen := w.freeze()
		w.pass(stuckAfter)
		w.wantState(StateStarting) // no clean exit
		frozen.exit(killedStatus)
		w.StopNow()
		_ = w.end()
	})
}

// A slot that was taken away keeps its stuck process to itself, and goes on without
// it when it is given back.
func TestStuckInRemovedSlot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Size: 2}).run()
		w.do(func() { w.Ready(1); w.Ready(2) })
		frozen := w.at(1)
		frozen.set(true, true)
		w.do(func() { w.Kill(w.id(1), "hung") })
		if err := w.Resize(1); err != nil {
			t.Fatal(err)
		}
		w.pass(time.Minute)
		w.wantState(StateReady, StateStuck)
		if err := w.Resize(2); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.wantState(StateReady, StateStarting)
		if s := w.Snapshot().Slots[1]; len(s.Older) != 1 || s.Starts[StartScale] != 1 {
			t.Errorf("%+v", s)
		}
		if err := w.Resize(1); err != nil {
			t.Fatal(err)
		}
		w.pass(time.Minute)
		w.wantState(StateReady, StateStuck) // the older one is all that is there
		w.do(func() { frozen.exit(killedStatus) })
		w.wantState(StateReady)
		w.StopNow()
		if err := w.end(); err != nil {
			t.Error(err)
		}
	})
}

// Whatever freezes, leaves its group, is killed, aborted, retired or resized: older
// processes stay bounded, and every process that was started is told to have exited
// exactly once, not before it and its reader have ended.
func TestStormOfTheUndead(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			exits := make(map[uint64]int)
			var readersOf sync.Map // ID to *fakeWatch
			c := Config{Size: 3, RespawnMin: time.Millisecond, RespawnMax: time.Second, StopTimeout: time.Second}
			var w *world
			c.Hooks.Exited = func(k Worker, _ Exit) {
				exits[k.ID]++
				if r, ok := readersOf.Load(k.ID); ok && !r.(*fakeWatch).ended() {
					t.Errorf("seed %d: worker %d is told to have exited while its reader lives", seed, k.ID)
				}
			}
			w = newWorld(t, c).run()
			w.do(func() { w.Ready(w.id(0)) })
			readers := 0
			for range 300 {
				slots := w.Snapshot().Slots
				s := slots[rnd.IntN(len(slots))]
				var f *fakeProcess
				if s.PID != 0 {
					f = w.proc(s.PID - 100)
				}
				switch n := rnd.IntN(10); {
				case n == 0:
					_ = w.Resize(1 + rnd.IntN(4))
				case n == 1:
					for pid := readerPID; pid < readerPID+readers; pid++ {
						if r := w.watches[pid]; !r.ended() && rnd.IntN(2) == 0 {
							w.endReader(pid)
						}
					}
				case n == 2:
					for _, f := range w.all() {
						if rnd.IntN(3) == 0 && f.isFrozen() {
							f.exit(killedStatus)
						}
					}
				case f == nil:
				case n == 3:
					f.set(true, true)
					w.Kill(s.ID, "storm")
				case n == 4:
					w.Abort(s.ID, syscall.SIGABRT, "storm")
				case n == 5:
					w.Retire(s.ID, "storm")
					w.Drained(s.ID)
				case n == 6:
					if _, ok := readersOf.Load(s.ID); ok {
						continue
					}
					pid := readerPID + readers
					readers++
					w.do(func() { w.SetReader(s.ID, pid) })
					readersOf.Store(s.ID, w.watches[pid])
				case n == 7:
					f.exit(exitStatus{code: rnd.IntN(2)})
				default:
					w.Ready(s.ID)
				}
				w.pass(time.Duration(rnd.IntN(1500)) * time.Millisecond)
				for _, s := range w.Snapshot().Slots {
					if len(s.Older) > maxOlder {
						t.Fatalf("seed %d: %+v", seed, s)
					}
				}
			}
			for pid := readerPID; pid < readerPID+readers; pid++ {
				if !w.watches[pid].ended() {
					w.endReader(pid)
				}
			}
			w.StopNow()
			for _, f := range w.all() {
				f.exit(killedStatus)
			}
			if err := w.end(); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
			var starts, counted uint64
			snap := w.Snapshot()
			for _, s := range append(snap.Slots, snap.Removed...) {
				for _, n := range s.Starts {
					starts += n
				}
				for _, n := range s.Exits {
					counted += n
				}
			}
			if n := len(w.procs); int(starts) != n || int(counted) != n || len(exits) != n {
				t.Errorf("seed %d: %d processes, %d starts, %d exits, %d told", seed, n, starts, counted, len(exits))
			}
			for id, n := range exits {
				if n != 1 {
					t.Errorf("seed %d: worker %d exited %d times", seed, id, n)
				}
			}
		})
	}
}
