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

func TestReadyDrainedStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{}).run()
		w.wantState(StateStarting)
		w.pass(3 * time.Second)
		w.do(func() { w.Spoke(1) })
		w.pass(3 * time.Second)
		w.do(func() { w.Ready(1) })
		w.wantState(StateReady)
		w.pass(time.Minute)
		w.do(w.Stop)
		w.wantState(StateDraining)
		w.pass(2 * time.Second)
		w.do(func() { w.Drained(1) })
		if err := w.end(); err != nil {
			t.Error(err)
		}
		w.wantLog(`
			0s slot 0 started id 1 pid 100
			6s slot 0 ready
			1m6s slot 0 drain
			1m8s pid 100 gets terminated
			1m8s slot 0 was ended by signal 15 (terminated) after 1m8s, cause requested
		`)
	})
}

func TestDrainTimeoutThenStopTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{}).run()
		w.do(func() { w.Ready(1) })
		w.proc(0).set(true, false)
		w.Stop()
		if err := w.end(); err != nil {
			t.Error(err)
		}
		w.wantLog(`
			0s slot 0 started id 1 pid 100
			0s slot 0 ready
			0s slot 0 drain
			30s pid 100 gets terminated
			35s pid 100 killed
			35s slot 0 was ended by signal 9 (killed) after 35s: did not end when asked to, cause killed_stuck
		`)
	})
}

func TestStopWithinWhatIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{}).run()
		w.do(func() { w.Ready(1) })
		w.proc(0).set(true, false)
		w.StopWithin(2 * time.Second)
		if err := w.end(); err != nil {
			t.Error(err)
		}
		w.wantLog(`
			0s slot 0 started id 1 pid 100
			0s slot 0 ready
			0s slot 0 drain
			2s pid 100 gets terminated
			7s pid 100 killed
			7s slot 0 was ended by signal 9 (killed) after 7s: did not end when asked to, cause killed_stuck
		`)
	})
}

func TestStopListenFDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{SharesListeners: true, StopSignal: syscall.SIGQUIT}).run()
		w.pass(2 * time.Second)
		w.proc(0).set(true, false)
		w.do(w.Stop)
		w.do(func() { w.Drained(1) }) // not its to say
		if err := w.end(); err != nil {
			t.Error(err)
		}
		w.wantLog(`
			0s slot 0 started id 1 pid 100
			1s slot 0 ready
			2s slot 0 drain
			2s pid 100 gets quit
			37s pid 100 killed
			37s slot 0 was ended by signal 9 (killed) after 37s: did not end when asked to, cause killed_stuck
		`)
	})
}

func TestStopBeforeReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{}).run()
		w.Stop()
		if err := w.end(); err != nil {
			t.Error(err)
		}
		w.wantLog(`
			0s slot 0 started id 1 pid 100
			0s slot 0 drain
			0s pid 100 gets terminated
			0s slot 0 was ended by signal 15 (terminated) after 0s, cause requested
		`)
	})
}

func TestTimeoutsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{
			StartTimeout: NoTimeout, SilentAfter: NoTimeout,
			DrainTimeout: NoTimeout, StopTimeout: NoTimeout,
		}).run()
		w.pass(24 * time.Hour)
		w.wantState(StateStarting)
		w.do(func() { w.Ready(1) })
		w.proc(0).set(true, false)
		w.do(w.Stop)
		w.pass(24 * time.Hour)
		w.do(func() { w.Drained(1) })
		w.pass(24 * time.Hour)
		w.wantState(StateDraining)
		w.StopNow()
		if err := w.end(); err != nil {
			t.Error(err)
		}
		w.wantLog(`
			0s slot 0 started id 1 pid 100
			24h0m0s slot 0 ready
			24h0m0s slot 0 drain
			48h0m0s pid 100 gets terminated
			72h0m0s pid 100 killed
			72h0m0s slot 0 was ended by signal 9 (killed) after 72h0m0s, cause requested
		`)
	})
}

func TestNotifyAndSpeaking(t *testing.T) {
	tests := []struct {
		name   string
		config Config
		act    func(*world)
		want   string
	}{{
		name:   "ready without a word",
		config: Config{SharesListeners: true},
		want:   "1s slot 0 ready",
	}, {
		name:   "notified before",
		config: Config{SharesListeners: true, ReadyAfter: NoTimeout},
		act: func(w *world) {
			w.pass(100 * time.Millisecond)
			w.report(Report{Kind: reportNotified, ID: 1})
		},
		want: "100ms slot 0 ready",
	}, {
		name:   "speaks, so its own word counts",
		config: Config{SharesListeners: true},
		act: func(w *world) {
			w.Spoke(1)
			w.report(Report{Kind: reportNotified, ID: 1})
			w.pass(4 * time.Second)
			w.Ready(1)
		},
		want: "4s slot 0 ready",
	}, {
		name:   "nothing said under rr",
		config: Config{},
		act:    func(w *world) { w.pass(6 * time.Second); w.Ready(1) },
		want:   "5s slot 0 silent\n6s slot 0 ready",
	}, {
		name:   "no channel, speaking is impossible",
		config: Config{SharesListeners: true, Protocol: ProtocolListenFDs},
		act:    func(w *world) { w.Spoke(1); w.pass(2 * time.Second) },
		want:   "1s slot 0 ready",
	}}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, tt.config).run()
				if tt.act != nil {
					tt.act(w)
				}
				w.pass(20*time.Second - time.Since(w.began))
				w.wantLog("0s slot 0 started id 1 pid 100\n" + tt.want)
				w.StopNow()
				if err := w.end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// What comes before the program itself runs is no time in which it could have failed.
func TestReadyAfterCountsFromTheExec(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{SharesListeners: true})
		w.onLaunch = func(context.Context, *spec) error {
			time.Sleep(3 * time.Second) // the fake's time
			return nil
		}
		w.run()
		w.pass(5 * time.Second)
		w.wantLog("3s slot 0 started id 1 pid 100\n4s slot 0 ready")
		w.StopNow()
		if err := w.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestNewsOfTheDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Size: 2}).run()
		dead, alive := w.id(0), w.id(1)
		w.do(func() { w.Ready(alive) })
		w.do(func() { w.at(0).exit(exitStatus{code: 1}) })
		w.wantLog(w.text()) // not the subject
		w.do(func() {
			w.Spoke(dead)
			w.Ready(dead)
			w.Drained(dead)
			w.Kill(dead, "late")
			w.Ready(77)
			w.Drained(alive) // it was never asked
			w.Ready(alive)   // twice
		})
		w.wantLog("")
		w.StopNow()
		_ = w.end()
	})
}

func TestKillByReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{}).run()
		w.do(func() { w.Ready(1) })
		w.proc(0).set(true, true)
		w.do(func() { w.Kill(1, "protocol violation") })
		w.wantState(StateReady)
		w.pass(stuckAfter)
		w.wantState(StateStarting) // frozen: KILL did nothing, and the slot goes on
		w.do(func() { w.proc(0).exit(exitStatus{code: -1, signal: syscall.SIGKILL}) })
		w.wantState(StateStarting)
		w.StopNow()
		if err := w.end(); err != nil {
			t.Error(err)
		}
		w.wantLog(`
			0s slot 0 started id 1 pid 100
			0s slot 0 ready
			0s pid 100 killed
			2s slot 0 started id 2 pid 101
			2s slot 0 was ended by signal 9 (killed) after 2s: protocol violation, cause killed_stuck
			2s slot 0 drain
			2s slot 0 was ended by signal 9 (killed) after 0s, cause requested
			2s pid 101 killed
		`)
	})
}

func TestSlowHookDelaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		holdC := make(chan struct{})
		c := Config{RespawnMin: time.Second}
		c.Hooks.Ready = func(Worker) { <-holdC }
		w := newWorld(t, c).run()
		w.do(func() { w.Ready(1) })
		w.do(func() { w.proc(0).exit(exitStatus{code: 1}) })
		w.pass(time.Second)
		w.wantState(StateStarting) // respawned, and Snapshot answers
		w.proc(1)
		close(holdC)
		w.StopNow()
		_ = w.end()
		if got := w.text(); !strings.Contains(got, "slot 0 started id 2") {
			t.Errorf("hooks lost:\n%s", got)
		}
	})
}

func TestHookMayCallPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w *world
		c := Config{}
		c.Hooks.Ready = func(k Worker) {
			if _, err := w.Grow(); err != nil && k.Slot == 0 {
				t.Error(err)
			}
			_ = w.Snapshot()
		}
		c.Hooks.Exited = func(Worker, Exit) { _ = w.Snapshot() }
		w = newWorld(t, c).run()
		w.do(func() { w.Ready(1) })
		w.wantState(StateReady, StateStarting)
		w.StopNow()
		_ = w.end()
	})
}

func TestContextEndIsStopNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Size: 2}).run()
		w.proc(0).set(true, false)
		w.do(w.stop)
		if err := w.end(); err != nil {
			t.Error(err)
		}
		for n := range 2 {
			if !w.proc(n).exited {
				t.Errorf("process %d was left", n)
			}
		}
	})
}

func TestStopBeforeRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Size: 2})
		w.Stop()
		w.run()
		if err := w.end(); err != nil || len(w.procs) != 0 {
			t.Errorf("Run = %v with %d starts, want none", err, len(w.procs))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		w = newWorld(t, Config{})
		if err := w.Run(ctx); err != nil || len(w.procs) != 0 {
			t.Errorf("Run = %v with %d starts, want none", err, len(w.procs))
		}
		if err := w.Run(ctx); err == nil {
			t.Error("second Run: no error")
		}
	})
}

func TestStopDuringSpawn(t *testing.T) {
	for _, now := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			goC := make(chan struct{})
			w := newWorld(t, Config{})
			w.onLaunch = func(ctx context.Context, _ *spec) error {
				select {
				case <-goC:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			w.run()
			w.wantState(StateStarting)
			want := `
				0s slot 0 started id 1 pid 100
				0s slot 0 drain
				0s pid 100 gets terminated
				0s slot 0 was ended by signal 15 (terminated) after 0s, cause requested
			`
			if now {
				w.do(w.StopNow)
				want = "0s slot 0: spawn worker: context canceled"
			} else {
				w.do(w.Stop)
				close(goC)
			}
			if err := w.end(); err != nil {
				t.Error(err)
			}
			w.wantLog(want)
		})
	}
}

func TestSpawnThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{})
		w.onLaunch = func(ctx context.Context, _ *spec) error { <-ctx.Done(); return ctx.Err() }
		w.run()
		err := w.end()
		if boot := new(BootError); !errors.As(err, &boot) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Run = %v", err)
		}
		if d := time.Since(w.began); d != 30*time.Second {
			t.Errorf("after %v", d)
		}
	})
}

func TestSignal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{}).run()
		w.proc(0).set(true, false)
		if err := w.Signal(0, syscall.SIGUSR1); err != nil {
			t.Error(err)
		}
		for _, slot := range []int{-1, 1} {
			if err := w.Signal(slot, syscall.SIGUSR1); !errors.Is(err, ErrNoWorker) {
				t.Errorf("Signal(%d) = %v", slot, err)
			}
		}
		w.wantLog("0s slot 0 started id 1 pid 100\n0s pid 100 gets user defined signal 1")
		w.StopNow()
		_ = w.end()
		if err := w.Signal(0, syscall.SIGUSR1); !errors.Is(err, ErrNoWorker) {
			t.Errorf("Signal after Run = %v", err)
		}
	})
}

// A master that was stopped for a while must not take its own absence for that of
// its workers.
func TestLateTurnMovesDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{}).run()
		w.ask(func() { time.Sleep(40 * time.Second) }) // the loop is not there
		w.pass(20 * time.Second)
		w.wantState(StateStarting)
		w.do(func() { w.Ready(1) })
		w.wantState(StateReady)
		w.StopNow()
		_ = w.end()
	})
}

func TestNewRefuses(t *testing.T) {
	good := Config{Size: 1, Argv: []string{"x"}, HelperPath: "x", NoFile: 1}
	tests := map[string]func(*Config){
		"size 0: must be 1 to 1024":        func(c *Config) { c.Size = 0 },
		"size 1025":                        func(c *Config) { c.Size = 1025 },
		"command is empty":                 func(c *Config) { c.Argv = nil },
		"NUL":                              func(c *Config) { c.Argv = []string{"a", "b\x00"} },
		"RRD_X: RRD_ names are rrd's own":  func(c *Config) { c.ExtraEnv = []string{"RRD_X=1"} },
		`"X": must be NAME=VALUE`:          func(c *Config) { c.ExtraEnv = []string{"X"} },
		"one of auto, rrd, node, listen":   func(c *Config) { c.Protocol = "http" },
		"policy under which workers":       func(c *Config) { c.Protocol = ProtocolListenFDs },
		"always, on-failure, never":        func(c *Config) { c.Restart = "sometimes" },
		"respawn pauses 1m0s to 1s":        func(c *Config) { c.RespawnMin, c.RespawnMax = time.Minute, time.Second },
		"output prefix: no Writer":         func(c *Config) { c.Output.Mode = OutputPrefix },
		"output json: no Record":           func(c *Config) { c.Output.Mode = OutputJSON },
		"must be one of raw, prefix, json": func(c *Config) { c.Output.Mode = "xml" },
	}
	for want, change := range tests {
		c := good
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New = %v, want %q in it", err, want)
		}
	}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
}
