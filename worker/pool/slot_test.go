package pool

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestBootAllExit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Size: 2}).run()
		w.pass(time.Second)
		w.do(func() { w.at(1).exit(exitStatus{code: 7}) })
		w.pass(time.Second)
		w.wantState(StateStarting, StateDown)
		w.at(0).exit(exitStatus{code: -1, signal: syscall.SIGSEGV, core: true})
		err := w.end()
		boot := new(BootError)
		if !errors.As(err, &boot) || len(boot.Failures) != 2 {
			t.Fatalf("Run = %v", err)
		}
		if got, want := err.Error(), "no worker became ready: slot "; !strings.HasPrefix(got, want) {
			t.Errorf("%q, want %q...", got, want)
		}
		if got, want := boot.Failures[1].String(), "was ended by signal 11 (segmentation fault) and dumped core after 2s"; !strings.HasSuffix(got, want) {
			t.Errorf("%q, want ...%q", got, want)
		}
		if n := len(w.procs); n != 2 {
			t.Errorf("%d starts, want each slot once", n)
		}
	})
}

func TestBootStartTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{StartTimeout: 10 * time.Second}).run()
		err := w.end()
		if got, want := fmt.Sprint(err), "no worker became ready: slot 0 was ended by signal 9 (killed) after 10s: not ready within 10s"; got != want {
			t.Errorf("Run = %q, want %q", got, want)
		}
		w.wantLog(`
			0s slot 0 started id 1 pid 100
			5s slot 0 silent
			10s pid 100 killed
			10s slot 0 was ended by signal 9 (killed) after 10s: not ready within 10s, cause killed_stuck
		`)
	})
}

func TestBootSpawnErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Size: 3})
		w.onLaunch = func(context.Context, *spec) error { return &SpawnError{"exec", `"./app"`, syscall.ENOENT} }
		w.run()
		err := w.end()
		if !errors.Is(err, syscall.ENOENT) || !strings.HasSuffix(err.Error(), `spawn worker: exec "./app": no such file or directory`) {
			t.Errorf("Run = %v", err)
		}
		if d := time.Since(w.began); d > 0 {
			t.Errorf("took %v, want at once", d)
		}
	})
}

// Failures before the first readiness wait for it, and are then treated like others.
func TestBootFailuresAfterFirstReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Size: 3})
		var launches atomic.Int32
		w.onLaunch = func(context.Context, *spec) error {
			if launches.Add(1) == 3 {
				return syscall.EAGAIN
			}
			return nil
		}
		w.run()
		w.do(func() { w.proc(0).exit(exitStatus{code: 1}) })
		w.pass(10 * time.Second)
		if n := len(w.procs); n != 2 {
			t.Fatalf("%d starts before the first readiness, want 2", n)
		}
		for _, s := range w.Snapshot().Slots {
			w.Ready(s.ID) // only one is there
		}
		w.pass(time.Second)
		if n := len(w.procs); n != 4 {
			t.Errorf("%d starts, want 4", n)
		}
		if snap := w.Snapshot(); !snap.Booted || snap.States()[StateStarting] != 2 {
			t.Errorf("states %v", snap.States())
		}
		w.StopNow()
		if err := w.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestCrashLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Size: 2}).run()
		w.do(func() { w.Ready(1); w.Ready(2) })
		w.wantLog(w.text())
		var at []time.Duration
		began := time.Now()
		for time.Since(began) < 100*time.Second {
			w.do(func() { w.at(1).exit(exitStatus{code: 1}) })
			b := w.Snapshot().Slots[1]
			if b.State != StateBackoff || b.Backoff != b.StartsIn {
				t.Fatalf("%+v", b)
			}
			w.pass(b.Backoff)
			at = append(at, time.Since(began)/time.Second)
		}
		if diff := cmp.Diff([]time.Duration{1, 3, 7, 15, 31, 61, 91, 121}, at); diff != "" {
			t.Errorf("respawns (-want +got):\n%s", diff)
		}
		// 10s of readiness are health: the next failure is answered at once, the one
		// after that with the minimum.
		id := w.id(1)
		w.do(func() { w.Ready(id) })
		w.pass(10 * time.Second)
		w.do(func() { w.at(1).exit(exitStatus{code: 1}) })
		if s := w.Snapshot().Slots[1]; s.State != StateStarting || s.ID == id || s.Restarts != 9 {
			t.Errorf("after health: %+v", s)
		}
		w.do(func() { w.at(1).exit(exitStatus{code: 1}) })
		if s := w.Snapshot().Slots[1]; s.Backoff != time.Second || s.Exits[CauseCode] != 10 {
			t.Errorf("after failure: %+v", s)
		}
		w.StopNow()
		_ = w.end()
	})
}

func TestSpawnRetryDoesNotGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var broken atomic.Bool
		w := newWorld(t, Config{})
		w.onLaunch = func(context.Context, *spec) error {
			if broken.Load() {
				return syscall.EAGAIN
			}
			return nil
		}
		w.run()
		w.do(func() { w.Ready(1) })
		w.pass(10 * time.Second)
		broken.Store(true)
		w.do(func() { w.proc(0).exit(exitStatus{code: 1}) })
		w.pass(2500 * time.Millisecond)
		broken.Store(false)
		w.pass(500 * time.Millisecond)
		w.wantState(StateStarting)
		w.do(func() { w.proc(1).exit(exitStatus{code: 1}) })
		w.wantLog(`
			0s slot 0 started id 1 pid 100
			0s slot 0 ready
			10s slot 0 exited with code 1 after 10s, cause code
			10s slot 0: spawn worker: resource temporarily unavailable
			10s slot 0 backs off 1s
			11s slot 0: spawn worker: resource temporarily unavailable
			11s slot 0 backs off 1s
			12s slot 0: spawn worker: resource temporarily unavailable
			12s slot 0 backs off 1s
			13s slot 0 started id 2 pid 101
			13s slot 0 exited with code 1 after 0s, cause code
			13s slot 0 backs off 1s
		`)
		if s := w.Snapshot().Slots[0]; s.SpawnFailures != 3 || s.Starts[StartCrash] != 1 {
			t.Errorf("%+v", s)
		}
		w.StopNow()
		_ = w.end()
	})
}

func TestRestartPolicies(t *testing.T) {
	clean, failed := exitStatus{code: 0}, exitStatus{code: 3}
	tests := []struct {
		policy RestartPolicy
		exits  []exitStatus // of slots 0 and 1
		states []State      // then
		err    string       // of Run, when it ends by itself
	}{
		{RestartAlways, []exitStatus{clean, failed}, []State{StateBackoff, StateBackoff}, ""},
		{RestartOnFailure, []exitStatus{clean, failed}, []State{StateDown, StateBackoff}, ""},
		{RestartOnFailure, []exitStatus{clean, clean}, nil, "<nil>"},
		{RestartNever, []exitStatus{clean}, []State{StateDown, StateReady}, ""},
		{RestartNever, []exitStatus{clean, failed}, nil,
			"run pool: every worker ended and none is to be restarted: slot 1 exited with code 3 after 1s"},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.policy, tt.exits), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, Config{Size: 2, Restart: tt.policy}).run()
				w.do(func() { w.Ready(1); w.Ready(2) })
				w.pass(time.Second)
				for slot, x := range tt.exits {
					w.do(func() { w.at(slot).exit(x) })
				}
				if tt.err == "" {
					w.wantState(tt.states...)
					w.StopNow()
					tt.err = "<nil>"
				}
				err := w.end()
				if fmt.Sprint(err) != tt.err {
					t.Errorf("Run = %v, want %s", err, tt.err)
				}
				if err != nil && !errors.Is(err, ErrAllDown) {
					t.Errorf("%v is no ErrAllDown", err)
				}
			})
		})
	}
}

func TestGrowAndShrink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{}).run()
		w.do(func() { w.Ready(1) })
		if n, err := w.Grow(); n != 2 || err != nil {
			t.Fatal(n, err)
		}
		synctest.Wait()
		w.wantState(StateReady, StateStarting)
		w.do(func() { w.Ready(2) })
		if n, err := w.Shrink(); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		w.pass(time.Second)
		w.wantState(StateReady, StateDraining)
		// Given back while it drains: it ends, and gets a successor.
		if _, err := w.Grow(); err != nil {
			t.Fatal(err)
		}
		w.pass(time.Second)
		w.wantState(StateReady, StateDraining)
		w.do(func() { w.Drained(2) })
		w.wantState(StateReady, StateStarting)
		if err := w.Resize(1); err != nil {
			t.Fatal(err)
		}
		w.pass(time.Second)
		w.wantState(StateReady)
		snap := w.Snapshot()
		if len(snap.Removed) != 1 || snap.Removed[0].Starts[StartScale] != 2 || snap.Removed[0].Exits[CauseRequested] != 2 {
			t.Errorf("counts of the removed slot are gone: %+v", snap.Removed)
		}
		if _, err := w.Shrink(); err == nil {
			t.Error("shrunk to nothing")
		}
		if err := w.Resize(MaxSize + 1); err == nil {
			t.Error("grown beyond MaxSize")
		}
		w.wantLog(`
			0s slot 0 started id 1 pid 100
			0s slot 0 ready
			0s slot 1 started id 2 pid 101
			0s slot 1 ready
			0s slot 1 drain
			2s pid 101 gets terminated
			2s slot 1 was ended by signal 15 (terminated) after 2s, cause requested
			2s slot 1 started id 3 pid 102
			2s slot 1 drain
			2s pid 102 gets terminated
			2s slot 1 was ended by signal 15 (terminated) after 0s, cause requested
		`)
		w.StopNow()
		_ = w.end()
		if _, err := w.Grow(); !errors.Is(err, ErrStopping) {
			t.Errorf("Grow after Run: %v", err)
		}
	})
}

func TestResizeRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		budget := errors.New("fd budget: 70 of 64")
		c := Config{}
		c.Hooks.MayResize = func(from, to int) error {
			if to > 2 {
				return budget
			}
			return nil
		}
		w := newWorld(t, c)
		if err := w.Resize(2); err != nil { // before Run
			t.Fatal(err)
		}
		w.run()
		if n, err := w.Grow(); n != 2 || !errors.Is(err, budget) {
			t.Errorf("Grow = %d, %v", n, err)
		}
		w.wantState(StateStarting, StateStarting)
		w.StopNow()
		_ = w.end()
	})
}

func TestShrinkInBackoffAndInBoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Size: 3}).run()
		w.do(func() { w.at(2).exit(exitStatus{code: 1}) })
		if err := w.Resize(2); err != nil { // slot 2 failed, slot 1 still starts
			t.Fatal(err)
		}
		w.do(func() { w.Ready(w.id(0)) })
		w.do(func() { w.at(1).exit(exitStatus{code: 1}) })
		w.wantState(StateReady, StateBackoff)
		if err := w.Resize(1); err != nil {
			t.Fatal(err)
		}
		w.pass(time.Hour)
		w.wantState(StateReady)
		if n := len(w.procs); n != 3 {
			t.Errorf("%d starts, want 3", n)
		}
		w.StopNow()
		_ = w.end()
	})
}

func TestCauses(t *testing.T) {
	kill := exitStatus{code: -1, signal: syscall.SIGKILL}
	term := exitStatus{code: -1, signal: syscall.SIGTERM}
	tests := []struct {
		name   string
		pr     proc
		status exitStatus
		oom    uint64
		want   Cause
	}{
		{"exit 0", proc{}, exitStatus{}, 0, CauseCode},
		{"TERM of a stranger", proc{}, term, 0, CauseSignal},
		{"KILL of a stranger", proc{}, kill, 0, CauseSignal},
		{"out of memory", proc{}, kill, 1, CauseOOM},
		{"asked, TERM", proc{requested: true}, term, 0, CauseRequested},
		{"asked, exit 143", proc{requested: true}, exitStatus{code: 143}, 0, CauseRequested},
		{"asked, crash", proc{requested: true}, exitStatus{code: -1, signal: syscall.SIGSEGV}, 0, CauseSignal},
		{"asked, out of memory", proc{requested: true}, kill, 1, CauseOOM},
		{"stop now", proc{requested: true, killed: true}, kill, 0, CauseRequested},
		{"stop timeout", proc{requested: true, killed: true, reason: "x"}, kill, 0, CauseKilledStuck},
		{"hung", proc{killed: true, reason: "x"}, kill, 1, CauseKilledStuck},
		{"exit before the kill", proc{killed: true, reason: "x"}, exitStatus{code: 1}, 0, CauseCode},
	}
	for _, tt := range tests {
		p := &Pool{cfg: Config{StopSignal: syscall.SIGQUIT}, sys: system{oomKills: func() uint64 { return tt.oom }}}
		if got := p.cause(&tt.pr, tt.status); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestSnapshotHistogramAndStates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Size: 4})
		if s := w.Snapshot(); s.Desired != 4 || s.States()[StateDown] != 4 || s.Booted {
			t.Errorf("before Run: %+v", s)
		}
		w.run()
		w.pass(5 * time.Millisecond) // exactly on a bound
		w.do(func() { w.Ready(1) })
		w.pass(3 * time.Second)
		w.do(func() { w.Ready(2) })
		s := w.Snapshot()
		want := map[State]int{StateReady: 2, StateStarting: 2, StateDraining: 0, StateBackoff: 0, StateStuck: 0, StateDown: 0}
		if diff := cmp.Diff(want, s.States()); diff != "" {
			t.Errorf("states (-want +got):\n%s", diff)
		}
		h := s.StartDurations
		if diff := cmp.Diff([]uint64{1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}, h.Counts); diff != "" || h.Total() != 2 {
			t.Errorf("counts (-want +got):\n%s", diff)
		}
		if len(h.Bounds) != 12 || h.Sum < 3.009 || h.Sum > 3.011 {
			t.Errorf("bounds %v, sum %v", h.Bounds, h.Sum)
		}
		w.StopNow()
		_ = w.end()
		if s := w.Snapshot(); !s.Stopping || len(s.Slots) != 4 || s.Slots[0].Exits[CauseRequested] != 1 {
			t.Errorf("after Run: %+v", s)
		}
	})
}

// A storm of everything at once leaves the right number of workers.
func TestStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Size: 4, RespawnMin: 10 * time.Millisecond, RespawnMax: 10 * time.Millisecond}).run()
		w.do(func() { w.Ready(1) })
		for i := range 400 {
			switch i % 5 {
			case 0:
				_, _ = w.Grow()
			case 1, 3:
				_, _ = w.Shrink()
			case 2:
				w.Kill(uint64(i/2), "storm")
			case 4:
				_ = w.Resize(1 + i%7)
				w.pass(7 * time.Millisecond)
			}
			for _, s := range w.Snapshot().Slots {
				w.Ready(s.ID)
				w.Drained(s.ID)
			}
		}
		if err := w.Resize(5); err != nil {
			t.Fatal(err)
		}
		for range 50 {
			w.pass(10 * time.Millisecond)
			for _, s := range w.Snapshot().Slots {
				w.Ready(s.ID)
				w.Drained(s.ID)
			}
		}
		w.wantState(StateReady, StateReady, StateReady, StateReady, StateReady)
		w.Stop()
		w.pass(time.Second)
		for _, s := range w.Snapshot().Slots {
			w.Drained(s.ID)
		}
		if err := w.end(); err != nil {
			t.Error(err)
		}
		var starts, exits uint64
		snap := w.Snapshot()
		for _, s := range append(snap.Slots, snap.Removed...) {
			for _, n := range s.Starts {
				starts += n
			}
			for _, n := range s.Exits {
				exits += n
			}
		}
		if starts != exits || int(starts) != len(w.procs) {
			t.Errorf("%d starts, %d exits, %d processes", starts, exits, len(w.procs))
		}
	})
}
