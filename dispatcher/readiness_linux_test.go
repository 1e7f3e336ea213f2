package dispatcher

import (
	"testing"
	"time"
)

// What readiness is judged by: how late each process is, how long the oldest connection
// has waited, and when one last waited too long.
func TestStatsForReadiness(t *testing.T) {
	cfg := lateConfig()
	cfg.HangTimeout, cfg.QueueTimeout = 0, 4*lateIn
	s := newStepped(t, cfg)
	s.d.cfg.Hooks.Waiting = nil // its deadline of a second would make each turn a late one
	ln := s.listen("web")
	stats := func(late, wait time.Duration) *Stats {
		t.Helper()
		s.settle()
		st := s.l.copyStats()
		const slack = time.Minute // of real time that passes meanwhile
		if got := st.Processes[0].LateFor; got < late || got > late+slack || late == 0 && got != 0 {
			t.Errorf("late for %v, want %v", got, late)
		}
		if got := st.OldestWait; got < wait || got > wait+slack || wait == 0 && got != 0 {
			t.Errorf("the oldest has waited for %v, want %v", got, wait)
		}
		return st
	}
	w := s.serving(ln)
	stats(0, 0)
	s.connect(ln, 1)
	s.settle()
	w.mustGet(1)
	s.pass(lateIn)
	s.settle()
	s.pass(lateIn / 2)
	s.connect(ln, 2)
	stats(lateIn/2, 0)
	s.pass(2 * lateIn)
	if st := stats(5*lateIn/2, 2*lateIn); !st.LastQueueTimeout.IsZero() {
		t.Errorf("a connection timed out at %v", st.LastQueueTimeout)
	}
	s.pass(2 * lateIn)
	st := stats(9*lateIn/2, 0)
	if ago := time.Since(st.LastQueueTimeout); st.Listeners[0].Dropped[DropQueueTimeout] != 2 || ago < -time.Minute || ago > time.Minute {
		t.Errorf("%d timed out, the last one %v ago", st.Listeners[0].Dropped[DropQueueTimeout], ago)
	}
	w.ack(1)
	stats(0, 0)
}
