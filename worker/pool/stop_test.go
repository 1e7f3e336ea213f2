package pool

import (
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestRetire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Restart: RestartNever}).run()
		w.do(func() { w.Ready(1) })
		w.pass(time.Second)
		w.do(func() { w.Retire(1, "its health check fails") })
		w.wantState(StateDraining)
		w.pass(time.Second)
		w.do(func() { w.Retire(1, "again"); w.Drained(1) })
		w.wantState(StateStarting)
		s := w.Snapshot().Slots[0]
		if s.Starts[StartRecycle] != 1 || s.Exits[CauseRequested] != 1 || s.Backoff != 0 {
			t.Errorf("%+v", s)
		}
		w.do(func() { w.Ready(2) })
		w.proc(1).set(true, false)
		w.do(func() { w.Retire(2, "old"); w.Drained(2) })
		w.pass(5 * time.Second) // it does not hear: KILL
		w.StopNow()
		if err := w.end(); err != nil {
			t.Error(err)
		}
		w.wantLog(`
			0s slot 0 started id 1 pid 100
			0s slot 0 ready
			1s slot 0 drain
			2s pid 100 gets terminated
			2s slot 0 was ended by signal 15 (terminated) after 2s: its health check fails, cause requested
			2s slot 0 started id 2 pid 101
			2s slot 0 ready
			2s slot 0 drain
			2s pid 101 gets terminated
			7s pid 101 killed
			7s slot 0 was ended by signal 9 (killed) after 5s: old; did not end when asked to, cause killed_stuck
			7s slot 0 started id 3 pid 102
			7s slot 0 drain
			7s pid 102 killed
			7s slot 0 was ended by signal 9 (killed) after 0s, cause requested
		`)
	})
}

// A slot that is taken away while its worker retires stays away; one that never was
// ready is not started twice in the boot.
func TestRetireIsNoStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Size: 2}).run()
		w.do(func() { w.Ready(w.id(0)); w.Ready(w.id(1)) })
		w.do(func() { w.Retire(w.id(1), "old") })
		if err := w.Resize(1); err != nil {
			t.Fatal(err)
		}
		w.pass(time.Minute)
		w.wantState(StateReady)
		if n := len(w.procs); n != 2 {
			t.Errorf("%d starts", n)
		}
		w.StopNow()
		_ = w.end()
	})
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{}).run()
		w.do(func() { w.Retire(1, "old") })
		if err := w.end(); err == nil {
			t.Error("no BootError")
		}
	})
}

// The backoff neither grows nor shrinks by retiring.
func TestRetireAndBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{}).run()
		w.do(func() { w.Ready(1) })
		w.do(func() { w.proc(0).exit(exitStatus{code: 1}) })
		w.pass(time.Second)
		for range 5 {
			id := w.id(0)
			w.do(func() { w.Ready(id); w.Retire(id, "old"); w.Drained(id) })
			w.wantState(StateStarting)
		}
		w.do(func() { w.at(0).exit(exitStatus{code: 1}) })
		if s := w.Snapshot().Slots[0]; s.Backoff != 2*time.Second {
			t.Errorf("%+v", s)
		}
		w.StopNow()
		_ = w.end()
	})
}

func TestAbort(t *testing.T) {
	tests := []struct {
		name   string
		config Config
		act    func(*world) // after Abort
		want   string
	}{{
		name: "dumps core",
		want: `
			0s pid 100 gets aborted
			0s slot 0 was ended by signal 6 (aborted) after 0s: hung, cause killed_stuck
			0s slot 0 backs off 1s
		`,
	}, {
		name: "deaf",
		act:  func(w *world) { w.pass(time.Second); w.Ready(1); w.Drained(1); w.Abort(1, syscall.SIGABRT, "again") },
		want: `
			0s pid 100 gets aborted
			5s pid 100 killed
			5s slot 0 was ended by signal 9 (killed) after 5s: hung, cause killed_stuck
			5s slot 0 backs off 1s
		`,
	}, {
		name:   "deaf and no stop timeout",
		config: Config{StopTimeout: NoTimeout},
		act:    func(*world) {},
		want: `
			0s pid 100 gets aborted
			5s pid 100 killed
			5s slot 0 was ended by signal 9 (killed) after 5s: hung, cause killed_stuck
			5s slot 0 backs off 1s
		`,
	}, {
		name: "prints its stacks and exits",
		act:  func(w *world) { w.pass(time.Second); w.proc(0).exit(exitStatus{code: 2}) },
		want: `
			0s pid 100 gets aborted
			1s slot 0 exited with code 2 after 1s: hung, cause killed_stuck
			1s slot 0 backs off 1s
		`,
	}, {
		name: "stopped meanwhile",
		act:  func(w *world) { w.pass(time.Second); w.Stop() },
		want: `
			0s pid 100 gets aborted
			1s slot 0 drain
			5s pid 100 killed
			5s slot 0 was ended by signal 9 (killed) after 5s: hung, cause killed_stuck
		`,
	}, {
		name: "killed meanwhile",
		act:  func(w *world) { w.pass(time.Second); w.Kill(1, "violation") },
		want: `
			0s pid 100 gets aborted
			1s pid 100 killed
			1s slot 0 was ended by signal 9 (killed) after 1s: hung, cause killed_stuck
			1s slot 0 backs off 1s
		`,
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tt.config.RespawnMin = time.Second
				w := newWorld(t, tt.config).run()
				w.do(func() { w.Ready(1) })
				w.proc(0).set(tt.act != nil, false)
				w.do(func() { w.Abort(1, syscall.SIGABRT, "hung") })
				if tt.act != nil {
					w.do(func() { tt.act(w) })
				}
				w.pass(time.Until(w.began.Add(5500 * time.Millisecond)))
				w.mu.Lock() // of later there is nothing to see here
				var lines []string
				for _, l := range w.lines {
					if !strings.HasSuffix(l, "started id 2 pid 101") {
						lines = append(lines, l)
					}
				}
				w.lines = lines
				w.mu.Unlock()
				w.wantLog("0s slot 0 started id 1 pid 100\n0s slot 0 ready" + tt.want)
				w.StopNow()
				_ = w.end()
			})
		})
	}
}

// A death that somebody asks for blames nobody and makes no backoff of its own; the same
// for a reason of rrd's does.
func TestKillAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var exits []Exit
		w := newWorld(t, Config{Size: 2, Hooks: Hooks{Exited: func(_ Worker, x Exit) { exits = append(exits, x) }}}).run()
		w.do(func() { w.Ready(w.id(0)); w.Ready(w.id(1)) })
		w.do(func() { w.KillAsked(w.id(0), "killed by uid 0") })
		w.do(func() { w.Kill(w.id(1), "broke the protocol"); w.KillAsked(w.id(1), "too late") })
		if len(exits) != 2 || exits[0].Blame() || exits[0].Cause != CauseRequested || exits[0].Reason != "killed by uid 0" {
			t.Errorf("%+v", exits)
		}
		if len(exits) == 2 && (!exits[1].Blame() || exits[1].Cause != CauseKilledStuck || exits[1].Reason != "broke the protocol") {
			t.Errorf("%+v", exits[1])
		}
		w.StopNow()
		_ = w.end()
	})
}

// A stop bounds also those who drain by the limits of another time.
func TestStopHastensWhoDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 2, Config{DrainTimeout: NoTimeout, StopTimeout: time.Second})
		w.do(func() { w.Retire(w.id(0), "old") })
		w.pass(time.Hour)
		w.wantState(StateDraining, StateReady)
		if err := w.SetLimits(Limits{DrainTimeout: 2 * time.Second, StopTimeout: time.Second, RespawnMin: time.Second, RespawnMax: time.Second}); err != nil {
			t.Fatal(err)
		}
		w.at(0).set(true, false) // it does not hear TERM
		w.Stop()
		w.pass(2900 * time.Millisecond)
		w.wantState(StateDraining, StateDown)
		w.pass(200 * time.Millisecond)
		if err := w.end(); err != nil {
			t.Error(err)
		}
	})
}

// Waiting for news of one that never was ready counts as draining.
func TestNewsWithinTheDrainTimeout(t *testing.T) {
	for _, news := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, Config{DrainTimeout: time.Second, StopTimeout: time.Second, StartTimeout: NoTimeout}).run()
			w.do(func() { w.Spoke(1) })
			w.Stop()
			w.pass(900 * time.Millisecond)
			if news {
				w.do(func() { w.Ready(1) })
			}
			w.wantState(StateDraining)
			w.pass(200 * time.Millisecond)
			if err := w.end(); err != nil {
				t.Error(err)
			}
		})
	}
}
