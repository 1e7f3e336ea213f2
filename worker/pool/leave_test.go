package pool

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A worker that has closed its channel because it was asked to drain gets the
// stop timeout to end by itself, but not more than was left of the drain.
func TestHungUpWhileDraining(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Size: 3, Protocol: ProtocolNode, DrainTimeout: 30 * time.Second}).run()
		w.do(func() {
			for slot := range 3 {
				w.Ready(w.id(slot))
			}
		})
		w.do(w.Stop)
		w.do(func() { w.HungUp(w.id(0)); w.HungUp(w.id(1)) })
		w.pass(time.Second)
		w.at(0).exit(exitStatus{})
		w.pass(27 * time.Second)
		w.do(func() { w.HungUp(w.id(2)) })
		if err := w.end(); err != nil {
			t.Error(err)
		}
		for _, want := range []string{
			"1s slot 0 exited with code 0 after 1s, cause requested",
			"5s slot 1 was ended by signal 15 (terminated) after 5s, cause requested",
			"30s slot 2 was ended by signal 15 (terminated) after 30s, cause requested", // the drain is over then
		} {
			if !slices.Contains(w.lines, want) {
				t.Errorf("no %q in\n%s", want, strings.Join(w.lines, "\n"))
			}
		}
	})
}

// One that has closed its channel unasked is as good as gone.
func TestHungUpUnasked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Protocol: ProtocolNode}).run()
		w.do(func() { w.Ready(1) })
		w.pass(time.Minute)
		w.do(func() { w.HungUp(1) })
		w.wantState(StateDraining)
		w.pass(6 * time.Second)
		w.wantState(StateStarting)
		w.do(w.StopNow)
		if err := w.end(); err != nil {
			t.Error(err)
		}
		w.wantLog(`
			0s slot 0 started id 1 pid 100
			0s slot 0 ready
			1m5s pid 100 gets terminated
			1m5s slot 0 was ended by signal 15 (terminated) after 1m5s, cause signal
			1m5s slot 0 started id 2 pid 101
			1m6s slot 0 drain
			1m6s pid 101 killed
			1m6s slot 0 was ended by signal 9 (killed) after 1s, cause requested
		`)
	})
}

// Leaving of its own accord is no failure: the backoff does not grow, only a
// worker that leaves at once is not started again at once.
func TestLeavesIsNoCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Protocol: ProtocolNode}).run()
		w.do(func() { w.Ready(1) })
		for id := uint64(1); id <= 3; id++ {
			w.pass(200 * time.Millisecond)
			w.do(func() { w.Ready(id) })
			if id > 1 { // the first closes its channel without a word
				w.do(func() { w.Leaves(id) })
			}
			w.do(func() { w.HungUp(id) })
			w.proc(int(id) - 1).exit(exitStatus{})
			w.pass(time.Second)
		}
		w.wantState(StateStarting)
		s := w.Snapshot().Slots[0]
		if s.Starts[StartRecycle] != 3 || s.Starts[StartCrash] != 0 || !s.LastExit.Left || s.LastExit.Blame() {
			t.Errorf("%+v", s)
		}
		for n, second := range []string{"0s", "1s", "2s", "3s"} {
			if want := fmt.Sprintf("%s slot 0 started id %d pid %d", second, n+1, n+100); !slices.Contains(w.lines, want) {
				t.Errorf("no %q in\n%s", want, strings.Join(w.lines, "\n"))
			}
		}
		w.do(func() { w.Ready(4); w.Leaves(4) }) // and then crashes
		w.proc(3).exit(exitStatus{code: 1})
		w.pass(10 * time.Second)
		if s := w.Snapshot().Slots[0]; s.Starts[StartCrash] != 1 || s.LastExit.Left {
			t.Errorf("%+v", s)
		}
		w.StopNow()
		if err := w.end(); err != nil {
			t.Error(err)
		}
	})
}

// What a Node program needs to be a cluster worker, and nothing of rrd's own
// protocol.
func TestNodeEnvironment(t *testing.T) {
	c := Config{Protocol: ProtocolNode, Env: []string{"NODE_CHANNEL_FD=9", "NODE_UNIQUE_ID=77", "NODE_OPTIONS=--inspect", "PATH=/bin"}}
	got := workerEnv(&c, newTemplate(c.template(), 1), 2, nil, 3, "")
	slices.Sort(got)
	want := []string{"NODE_CHANNEL_FD=3", "NODE_CHANNEL_SERIALIZATION_MODE=json", "NODE_OPTIONS=" + nodeOptions("--inspect", 2),
		"NODE_UNIQUE_ID=3", "PATH=/bin", "RRD_GENERATION=1", "RRD_SLOT=2"}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// A worker that was asked to drain in the moment that it became ready may have
// connections: it drains like any other, and so may one that says DRAINED by itself. One
// that says nothing more is not waited for long, and one that has none not at all.
func TestDrainCrossesReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Size: 4}).run()
		w.do(func() { w.Ready(w.id(0)) })
		w.do(func() { w.Spoke(w.id(1)); w.Spoke(w.id(2)) })
		crossing := w.id(1)
		if err := w.Resize(1); err != nil {
			t.Fatal(err)
		}
		w.do(func() { w.Ready(crossing) })
		w.pass(29 * time.Second)
		w.do(func() { w.Drained(crossing) })
		for _, want := range []string{
			"0s slot 3 was ended by signal 15 (terminated) after 0s, cause requested",
			"5s slot 2 was ended by signal 15 (terminated) after 5s, cause requested",
			"29s slot 1 was ended by signal 15 (terminated) after 29s, cause requested",
		} {
			if !slices.Contains(w.lines, want) {
				t.Errorf("no %q in\n%s", want, strings.Join(w.lines, "\n"))
			}
		}
		w.finish()
	})
}
