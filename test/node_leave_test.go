//go:build linux

package test

import (
	"context"
	"fmt"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// reach connects until the process of a slot answers: the others are asked in turn.
func reach(t *testing.T, m *harness.Master, slot int) (r *remote, connections int) {
	t.Helper()
	want := m.PID(slot)
	harness.Poll(t, fmt.Sprintf("slot %d to serve", slot), func() error {
		connections++
		if r = connect(t, m.Addr(), nil); r.pid != want {
			r.close()
			return fmt.Errorf("process %d answers, not %d", r.pid, want)
		}
		return nil
	})
	return r, connections
}

// All the ways in which a worker may go by itself, under load: nobody is lost but
// whom the worker had already taken, and its place is taken again.
func TestNodeLeaves(t *testing.T) {
	for _, tt := range []struct {
		path  string
		voted bool // it is no failure: the log says so, and no pause grows
		loses bool // it drops the connections it has
		code  int
	}{
		{"/disconnect", true, false, 0},
		{"/kill", true, true, 0},
		{"/hangup", true, true, 0},
		{"/throw", false, true, 1},
	} {
		t.Run(tt.path[1:], func(t *testing.T) {
			t.Parallel()
			const workers, times = 3, 4
			args := []string{"--policy", "rr"}
			if !tt.voted {
				args = append(args, "--respawn-max", "50ms")
			}
			m := lab(t, workers, args...)
			stop := m.WatchLaw()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			finish := waitingContext(ctx, m, load.Config{Rate: 300, Duration: time.Minute, Judge: nodeSays})
			connections := 0
			for i := range times {
				slot := i % 2 // slot 2 stays
				mark := m.Mark()
				r, n := reach(t, m, slot)
				connections += n
				if _, err := r.try(tt.path); err != nil {
					t.Errorf("GET %s: %v", tt.path, err)
				}
				r.close()
				exit := m.WaitFrom(mark, 1, harness.OfSlot("worker.exit", slot))[0]
				if exit.Int("worker_pid") != r.pid || exit.Int("exit_code") != tt.code || exit.Str("signal") != "" {
					t.Errorf("want process %d to end with code %d: %s", r.pid, tt.code, exit.Line)
				}
				if level := exit.Str("level"); (level == "error") == tt.voted {
					t.Errorf("level %s: %s", level, exit.Line)
				}
				m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", slot))
			}
			cancel()
			r := finish()
			t.Log(r)
			stop()
			s := m.Idle()
			if s.Accepted() != len(r.Results)+connections || s.Dropped() != 0 {
				t.Errorf("accepted %d, dropped %d; the clients made %d and %d connections", s.Accepted(), s.Dropped(), len(r.Results), connections)
			}
			taken := s.Acked() - connections - r.Count(load.OK)
			if n := len(r.Failed()); n != taken || n != r.Count(load.Empty)+r.Count(load.Reset) || n > 0 && !tt.loses && !endsUnread(t, r, true) {
				t.Errorf("%d failed, and %d were acked and not answered: %v", n, taken, r)
			}
			for _, e := range m.Events(harness.Named("worker.backoff")) {
				if tt.voted && e.Num("duration_s") > 0.06 {
					t.Errorf("a pause after it left by itself: %s", e.Line)
				}
			}
		})
	}
}

// A program that leaves and goes on with something else is not left to run for ever.
func TestNodeLeavesAndStays(t *testing.T) {
	t.Parallel()
	m := lab(t, 2, "--policy", "rr", "--drain-timeout", "500ms", "--stop-timeout", "1s")
	w := remotes(t, m)[0]
	// An exclusive server of its own keeps the process alive.
	if a := w.get("/listen", "name", "own", "host", harness.Host(), "port", "0", "exclusive", "1"); a.Error != "" {
		t.Fatal(a.Error)
	}
	mark := m.Mark()
	w.get("/disconnect")
	w.close()
	exit := m.WaitFrom(mark, 1, harness.OfSlot("worker.exit", 0))[0]
	if exit.Int("worker_pid") != w.pid || exit.Int("signal_number") != int(syscall.SIGTERM) {
		t.Error(exit.Line)
	}
	m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", 0))
}

// A dead worker's successor finds its place as it was: the listener with the port
// that was once chosen, and its number.
func TestNodeRestart(t *testing.T) {
	t.Parallel()
	m := lab(t, 2, "--policy", "rr", "--respawn-max", "50ms")
	at := m.Addr()
	first := make(map[int]int)
	for slot, w := range remotes(t, m) {
		first[slot] = w.pid
		if id := w.get("/env").ID; id != slot+1 {
			t.Errorf("slot %d is cluster worker %d, want %d", slot, id, slot+1)
		}
		w.close()
	}
	kill := func(slots ...int) {
		t.Helper()
		mark := m.Mark()
		for _, slot := range slots {
			m.Kill(m.PID(slot), syscall.SIGKILL)
		}
		// Nobody is refused in the meantime, even if nobody is there to serve.
		nodeServes(t, m, load.Config{Address: at, Clients: 4, Total: 40})
		for _, slot := range slots {
			m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", slot))
		}
	}
	for range 2 {
		kill(0)
	}
	kill(0, 1)
	for slot, w := range remotes(t, m) {
		if w.pid == first[slot] {
			t.Errorf("slot %d is still process %d", slot, w.pid)
		}
		if id := w.get("/env").ID; id != slot+1 {
			t.Errorf("after a restart slot %d is cluster worker %d, want %d", slot, id, slot+1)
		}
		w.close()
	}
	if n := len(m.Events(harness.Named("listener.open"))); n != 1 || m.Addr() != at {
		t.Errorf("%d listeners were opened; it is %s, and was %s", n, m.Addr(), at)
	}
	r := nodeServes(t, m, load.Config{Total: 40})
	exactly(t, r.ByPID(), 2, 20)
}

// Processes that do not run any more but live: what they have not answered is
// served by others once they are dead.
func TestNodeBlocked(t *testing.T) {
	for name, blocked := range map[string]int{"one of two": 1, "both": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const window, n = 8, 40
			m := lab(t, 2, "--policy", "rr", "--handoff-window", "8", "--busy-after", "off", "--respawn-max", "50ms")
			workers := remotes(t, m)
			for _, w := range workers[:blocked] {
				if err := w.ask("/block"); err != nil {
					t.Fatal(err)
				}
			}
			for _, w := range workers[:blocked] {
				running(t, w.pid)
			}
			stop := m.WatchLaw()
			finish := waitingContext(t.Context(), m, load.Config{Clients: n, Total: n, Judge: nodeSays})
			s := m.WaitStatus("what is handed to the blocked ones", func(s *harness.Status) bool {
				if s.Accepted() != n+len(workers) {
					return false
				}
				if blocked == 2 {
					return s.Workers[0].InFlight == window && s.Workers[1].InFlight == window
				}
				return s.Workers[0].InFlight > 0 && s.Workers[1].InFlight == 0
			})
			t.Logf("in flight to the blocked: %d", s.Workers[0].InFlight)
			mark := m.Mark()
			for _, w := range workers[:blocked] {
				m.Kill(w.pid, syscall.SIGKILL)
			}
			r := finish()
			stop()
			t.Log(r)
			if r.Count(load.OK) != n {
				t.Errorf("%d of %d failed", n-r.Count(load.OK), n)
			}
			for _, w := range workers[:blocked] {
				if r.ByPID()[w.pid] > 0 {
					t.Errorf("the blocked process %d has served: %v", w.pid, r.ByPID())
				}
			}
			for slot := range blocked {
				m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", slot))
			}
			if got := m.Idle().Redispatches["worker_exit"]; got == 0 {
				t.Errorf("redispatches %v", m.Status().Redispatches)
			}
		})
	}
}

// running waits until a process uses a processor all the time.
func running(t *testing.T, pid int) {
	t.Helper()
	before, err := harness.CPU(pid)
	if err != nil {
		t.Fatal(err)
	}
	harness.Poll(t, "the process to be in its loop", func() error {
		if now, err := harness.CPU(pid); err != nil || now-before < 50*time.Millisecond {
			return fmt.Errorf("it has used %v, %w", now-before, err)
		}
		return nil
	})
}

// Everybody is full: connections wait, nothing spins, and who has room gets them.
func TestNodeMaxConnections(t *testing.T) {
	t.Parallel()
	const n = 20
	m := node(t, 2, "lab.js", harness.Options{Args: []string{"--policy", "rr"}, Env: []string{"MAX_CONNECTIONS=1"}})
	a := connect(t, m.Addr(), nil)
	// One is full: the other gets all, at the latest when the first has said no.
	r := nodeServes(t, m, load.Config{Total: n})
	for pid, got := range r.ByPID() {
		if pid == a.pid {
			t.Errorf("process %d is full and served %d", pid, got)
		}
	}
	s := m.Idle()
	if s.Redispatches["rejected"] == 0 {
		t.Errorf("redispatches %v", s.Redispatches)
	}
	b := connect(t, m.Addr(), nil)
	if a.pid == b.pid {
		t.Fatalf("process %d has taken two", a.pid)
	}
	rejected := func(s *harness.Status) (n int) {
		for _, w := range s.Workers {
			for _, r := range w.Rejections {
				n += r
			}
		}
		return n
	}
	finish := waitingContext(t.Context(), m, load.Config{Clients: n, Total: n, Judge: nodeSays})
	s = m.WaitStatus("all to wait", func(s *harness.Status) bool { return s.Accepted() == 2*n+2 })
	before := rejected(s)
	tick := time.NewTimer(3 * time.Second) // the span of the measurement
	used := cpuDuring(t, m, func() { <-tick.C })
	bounces := rejected(m.Status()) - before
	t.Logf("%d rejections in 3 s, %.1f %% of a core", bounces, 100*used)
	if used > 0.10 || bounces > 1000 {
		t.Errorf("while everybody is full: %d rejections in 3 s, %.0f %% of a core", bounces, 100*used)
	}
	a.close()
	if r := finish(); r.Count(load.OK) != n || r.ByPID()[b.pid] > 0 {
		t.Error(r)
	}
	b.close()
	if s := m.Idle(); s.Acked() != 2*n+2 || s.Dropped() != 0 {
		t.Errorf("acked %d, dropped %d", s.Acked(), s.Dropped())
	}
}
