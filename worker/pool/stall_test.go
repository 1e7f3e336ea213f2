package pool

import (
	"testing"
	"testing/synctest"
	"time"

	"rrd/handoff"
)

// stall has the loop stand still.
func (w *world) stall(d time.Duration) {
	w.ask(func() { time.Sleep(d) })
	synctest.Wait()
}

// withDeadline is a pool of which one worker has the deadline that name says, ten seconds
// from now, and ignores every signal but KILL.
func withDeadline(t *testing.T, name string) *world {
	t.Helper()
	const limit = 10 * time.Second
	w := serving(t, 2, Config{StartTimeout: limit, SilentAfter: NoTimeout, DrainTimeout: limit, StopTimeout: limit})
	switch name {
	case "start":
		w.do(func() { w.at(0).exit(exitStatus{code: 1}) })
		w.pass(time.Second) // of backoff
	case "drain":
		w.do(func() { w.Retire(w.id(0), "test") })
	case "stop":
		w.at(0).set(true, false)
		w.do(func() { w.Retire(w.id(0), "test"); w.Drained(w.id(0)) })
	}
	w.lines, w.told = nil, nil
	return w
}

var deadlines = []string{"start", "drain", "stop"}

// A process that stood still with the master has all of its time left.
func TestStallLeavesAProcessItsTime(t *testing.T) {
	for _, name := range deadlines {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := withDeadline(t, name)
				w.pass(4 * time.Second)
				w.stall(time.Minute)
				w.pass(6*time.Second - time.Millisecond)
				if text := w.text(); text != "" {
					t.Fatalf("too early: %s", text)
				}
				w.pass(watchEvery + time.Millisecond)
				if w.text() == "" {
					t.Error("its time is not over")
				}
				w.finish()
			})
		})
	}
}

// Neither stalls nor upgrades every second add to the time of a process.
func TestStallsAndUpgradesKeepNoProcess(t *testing.T) {
	for _, name := range deadlines {
		for what, again := range map[string]func(w *world){
			"stalls": func(w *world) {
				w.pass(3 * time.Second)
				w.stall(10 * time.Second)
			},
			"upgrades": func(w *world) {
				w.pass(100 * time.Millisecond)
				s := w.saved()
				s.SavedAt = handoff.Monotonic() - 900*time.Millisecond
				w.replace(s)
			},
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := withDeadline(t, name)
					for n := 0; w.text() == ""; n++ {
						if n == 15 {
							t.Fatalf("%s keep a process", what)
						}
						again(w)
					}
					w.finish()
				})
			})
		}
	}
}

// An upgrade that takes long is a stall.
func TestASlowUpgradeLeavesAProcessItsTime(t *testing.T) {
	for _, name := range deadlines {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := withDeadline(t, name)
				w.pass(4 * time.Second)
				s := w.saved()
				s.SavedAt = handoff.Monotonic() - time.Minute
				w.replace(s)
				w.pass(5 * time.Second)
				if text := w.text(); text != "" {
					t.Fatalf("too early: %s", text)
				}
				w.pass(2 * time.Second)
				if w.text() == "" {
					t.Error("its time is not over")
				}
				w.finish()
			})
		})
	}
}
