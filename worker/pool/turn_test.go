package pool

import (
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// crashing is a pool all of whose workers have been ready once and crash from now on, as
// soon as they are started. It is run until every slot backs off.
func crashing(t *testing.T, size int, c Config) *world {
	t.Helper()
	w := serving(t, size, c)
	crash := func() {
		for _, f := range w.all() {
			f.exit(exitStatus{code: 1})
		}
	}
	w.do(crash)
	for range 40 {
		w.pass(500 * time.Millisecond)
		w.do(crash)
	}
	return w
}

// starts returns when processes were started in the next d, as time since now. Each crashes
// at once.
func (w *world) starts(d time.Duration) (at []time.Duration) {
	w.t.Helper()
	began, n := time.Now(), len(w.all())
	for time.Since(began) < d {
		w.pass(10 * time.Millisecond)
		for _, f := range w.all()[n:] {
			at = append(at, time.Since(began))
			w.do(func() { f.exit(exitStatus{code: 1}) })
			n++
		}
	}
	return at
}

// every returns the gaps of at.
func gaps(at []time.Duration) (gaps []time.Duration) {
	for i := 1; i < len(at); i++ {
		gaps = append(gaps, (at[i] - at[i-1]).Round(10*time.Millisecond))
	}
	return gaps
}

// While no worker is ready a slot is started every RespawnMin, and each has its turn.
func TestBackoffNeverStopsTheService(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := crashing(t, 3, Config{})
		before := make([]uint64, 3)
		for i, s := range w.Snapshot().Slots {
			before[i] = s.Starts[StartCrash]
		}
		at := w.starts(9500 * time.Millisecond)
		for _, gap := range gaps(at) {
			if gap != time.Second {
				t.Errorf("starts at %v: a gap of %v, want 1s", at, gap)
			}
		}
		if len(at) < 9 {
			t.Errorf("%d starts in 9.5 s", len(at))
		}
		for i, s := range w.Snapshot().Slots {
			if n := s.Starts[StartCrash] - before[i]; n != 3 {
				t.Errorf("slot %d was started %d times of %d", i, n, len(at))
			}
		}
		w.finish()
	})
}

// A worker that becomes ready ends it: the others wait for the end of their backoff.
func TestOneReadyWorkerEndsForcedStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := crashing(t, 3, Config{})
		n := len(w.all())
		w.pass(time.Second)
		if len(w.all()) != n+1 {
			t.Fatalf("%d starts in a second", len(w.all())-n)
		}
		for _, s := range w.Snapshot().Slots {
			if s.State == StateStarting {
				w.do(func() { w.Ready(s.ID) })
			}
		}
		if at := w.starts(5 * time.Second); len(at) > 0 {
			t.Errorf("starts at %v", at)
		}
		w.finish()
	})
}

// RespawnMin may be as short as one likes: there are at most ten forced starts a second.
func TestForcedStartsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := crashing(t, 2, Config{RespawnMin: time.Millisecond})
		if n := len(w.starts(time.Second)); n < 9 || n > 11 {
			t.Errorf("%d starts in a second", n)
		}
		w.finish()
	})
}

// The restart policy and DrainSlot have their way.
func TestForcedStartsOfNoSlotThatStaysDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 3, Config{Restart: RestartOnFailure})
		w.do(func() { w.at(0).exit(exitStatus{}) })
		w.do(func() {
			if err := w.DrainSlot(1); err != nil {
				t.Error(err)
			}
		})
		w.do(func() { w.at(2).exit(exitStatus{code: -1, signal: syscall.SIGSEGV}) })
		w.starts(10 * time.Second)
		var starts []uint64
		for _, s := range w.Snapshot().Slots {
			starts = append(starts, s.Starts[StartCrash])
		}
		if diff := cmp.Diff([]uint64{0, 0, 10}, starts); diff != "" {
			t.Errorf("starts (-want +got):\n%s", diff)
		}
		w.finish()
	})
}

// Before the first worker was ready each slot is started once.
func TestNoForcedStartsInTheBoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{Size: 2}).run()
		w.do(func() { w.at(0).exit(exitStatus{code: 1}) })
		if at := w.starts(10 * time.Second); len(at) > 0 {
			t.Errorf("starts at %v", at)
		}
		w.StopNow()
		_ = w.end()
	})
}

// An upgrade puts no forced start off.
func TestForcedStartsCrossAnUpgrade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := crashing(t, 2, Config{})
		n := len(w.all())
		for range 20 {
			w.pass(250 * time.Millisecond)
			for _, f := range w.all() {
				w.do(func() { f.exit(exitStatus{code: 1}) })
			}
			w.upgrade()
		}
		if got := len(w.all()) - n; got < 4 || got > 6 {
			t.Errorf("%d starts in 5 s of upgrades, want 5", got)
		}
		w.finish()
	})
}
