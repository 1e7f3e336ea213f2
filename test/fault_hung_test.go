//go:build linux

package test

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// Workers that hang, that are not well, that have enough, that are not alone, and
// connections that kill them.

// What has killed three workers is given to no fourth, and the client is told by
// the end of its connection. (TestPoison has the case of two slots.)
func TestPoisonIsDroppedAtTheThirdDeath(t *testing.T) {
	t.Parallel()
	m := faulty(t, 4, quick, "poisoned")
	r := run(t, m, load.Config{Clients: 3, Total: 9})
	m.AllReady()
	s := m.Idle()
	if r.Count(load.OK) != 0 || s.Listeners[0].Dropped["poison"] != 9 || s.Acked() != 0 {
		t.Errorf("%v; %+v", r, s.Listeners[0])
	}
	// A process may die with several in hand, and each connection needs three.
	if n := deaths(m); n > 27 || n < 3 {
		t.Errorf("%d deaths for 9 connections", n)
	}
}

// Hung: it has received and answers nothing, not even a PING. It is killed at
// --hang-timeout, and what it had is served by others.
func TestHungWorkerIsReplaced(t *testing.T) {
	t.Parallel()
	b := newBook(t)
	b.arm()
	m := b.workers(4, []string{"--hang-timeout", "400ms"}, "-slots", "1", "-others", "lib", "stall")
	r := during(t, m, 200, func() {
		for i, e := range m.WaitFrom(0, 3, harness.OfSlot("worker.exit", 1)) {
			if e.Str("cause") != "killed_stuck" {
				t.Errorf("exit %d: %s", i, e.Line)
			}
		}
		b.disarm()
	})
	m.AllReady()
	b.spared(m, r)
	if p := r.Percentile(1); p > 400*time.Millisecond+soon {
		t.Errorf("the last was answered after %v", p)
	}
	if s := m.Idle(); s.Redispatches["worker_exit"] == 0 {
		t.Errorf("redispatched %v", s.Redispatches)
	}
}

// Stopped for longer than --hang-timeout: killed, seen dead, redispatched. No
// SIGCONT brings a second answer.
func TestStoppedWorkerIsKilledAndNothingServedTwice(t *testing.T) {
	t.Parallel()
	b, chance := newBook(t), chances(t)
	m := b.workers(4, []string{"--hang-timeout", "400ms"}, "lib")
	r := during(t, m, 400, func() {
		for range 4 {
			mark := m.Mark()
			pid := somebody(m, chance)
			m.Kill(pid, syscall.SIGSTOP)
			m.WaitFrom(mark, 1, func(e harness.Event) bool { return e.Name == "worker.exit" && e.Int("worker_pid") == pid })
			m.AllReady()
		}
	})
	b.judge(m, r)
	if n := r.Count(load.Duplicate); n > 0 {
		t.Errorf("%d duplicates", n)
	}
}

// A program whose own check fails gets nothing, and is replaced at
// --unhealthy-after.
func TestUnhealthyWorkerIsReplaced(t *testing.T) {
	t.Parallel()
	b := newBook(t)
	m := b.workers(3, []string{"--unhealthy-after", "1500ms"}, "health")
	pid := m.PID(1)
	r := during(t, m, 200, func() {
		mark := m.Mark()
		sick := fmt.Sprintf("%s.%d", b.armed, pid)
		if err := os.WriteFile(sick, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		m.WaitFrom(mark, 1, harness.Named("worker.unhealthy"))
		if ready := m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", 1))[0]; ready.Int("worker_pid") == pid {
			t.Errorf("not replaced: %s", ready.Line)
		}
	})
	m.AllReady()
	b.spared(m, r)
}

// One that is well again before --unhealthy-after stays, and is given connections.
func TestWorkerThatIsWellAgainStays(t *testing.T) {
	t.Parallel()
	b := newBook(t)
	m := b.workers(3, []string{"--unhealthy-after", "30s"}, "health")
	pid, mark := m.PID(2), m.Mark()
	sick := fmt.Sprintf("%s.%d", b.armed, pid)
	if err := os.WriteFile(sick, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m.WaitFrom(mark, 1, harness.Named("worker.unhealthy"))
	if err := os.Remove(sick); err != nil {
		t.Fatal(err)
	}
	m.WaitFrom(mark, 1, harness.Named("worker.healthy"))
	r := run(t, m, load.Config{Rate: 200, Total: 60})
	b.spared(m, r)
	if m.PID(2) != pid || deaths(m) > 0 || r.ByPID()[pid] == 0 {
		t.Errorf("%d deaths, process %d was %d and has served %d", deaths(m), m.PID(2), pid, r.ByPID()[pid])
	}
}

// A worker has at most --worker-max-connections-active open connections; the rest
// waits for one that has room.
func TestMostActiveConnections(t *testing.T) {
	t.Parallel()
	b := newBook(t)
	m := b.workers(2, []string{"--worker-max-connections-active", "3"}, "lib")
	finish := waiting(t, m, load.Config{Clients: 20, Total: 120, URI: func(int) string { return "/sleep?ms=50" }})
	most, queued := 0, 0
	m.WaitStatus("all to be accepted", func(s *harness.Status) bool {
		for _, w := range s.Workers {
			if w.Active != nil {
				most = max(most, *w.Active)
			}
		}
		queued = max(queued, s.Open())
		return s.Accepted() == 120
	})
	r := finish()
	b.spared(m, r)
	if most > 3 || most == 0 || queued == 0 {
		t.Errorf("up to %d were open at one worker, %d waited", most, queued)
	}
	// At most 6 at a time, 50 ms each.
	if r.Elapsed < 120/6*50*time.Millisecond*9/10 {
		t.Errorf("all were served in %v", r.Elapsed)
	}
}

// The worker that was started is a shell, and its server has left the group: when
// the shell dies the slot has a successor at once, and what the server has received
// is held until it is dead, too.
func TestServerBehindAShell(t *testing.T) {
	t.Parallel()
	b, g := newBook(t), newGate(t)
	at := harness.Host() + ":0"
	server := strings.Join(append([]string{harness.Build(t, "", "rrd/test/faultworker"), "-listen", "tcp/" + at}, b.args("-gate", g.path, "keep")...), " ")
	m := harness.Start(t, harness.Options{
		Args: append([]string{"--policy", "rr", "--workers", "1", "--stop-timeout", "500ms", "--drain-timeout", "1s"}, quick...), Listen: []string{at},
		Command: []string{"sh", "-c", "setsid " + server + " & wait"},
		// The signal that ends a drained worker reaches the shell alone: who has left the
		// group ends when it sees the end of the master, which waits for it in vain.
		ExitCode: 1,
	})
	shell := m.PID(0)
	finish := waiting(t, m, load.Config{Clients: 2, Total: 2})
	m.WaitStatus("both to be handed over", func(s *harness.Status) bool { return len(s.Workers) > 0 && s.Workers[0].InFlight == 2 })
	servers := harness.Children(shell)
	if len(servers) != 1 {
		t.Fatalf("the shell's children: %v", servers)
	}
	mark := m.Mark()
	m.Kill(shell, syscall.SIGKILL)
	m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", 0))
	if s := m.Status(); s.Open() != 2 || s.Acked() != 0 || s.Redispatches["worker_exit"] != 0 {
		t.Errorf("the server lives, and what it had received is not held: %+v", *s)
	}
	for server := range servers {
		m.Kill(server, syscall.SIGKILL)
	}
	m.WaitStatus("the successor to be offered both", func(s *harness.Status) bool { return s.Redispatches["worker_exit"] == 2 })
	g.open()
	b.spared(m, finish())
}

// A plain shell in front of a server, which ends with it: nobody is lost.
func TestShellIsKilled(t *testing.T) {
	t.Parallel()
	b := newBook(t)
	at := harness.Host() + ":0"
	server := strings.Join(append([]string{harness.Build(t, "", "rrd/test/faultworker"), "-listen", "tcp/" + at}, b.args("lib")...), " ")
	m := harness.Start(t, harness.Options{
		Args: append([]string{"--policy", "rr", "--workers", "3"}, quick...), Listen: []string{at},
		Command: []string{"sh", "-c", server + "; exit $?"},
	})
	r := during(t, m, 300, func() {
		perform(8, 250*time.Millisecond, func(i int) { m.Kill(m.AllReady().Workers[i%3].PID, syscall.SIGKILL) })
	})
	m.AllReady()
	lost, begun := 0, 0
	lines, _ := b.read()
	for _, f := range r.Failed() { // the pids in the book are not those that the master has started
		if len(lines[f.Local]) > 0 {
			begun++
		} else {
			lost++
		}
	}
	s := m.Idle()
	if lost > 0 || s.Accepted() != len(r.Results) || s.Dropped() != 0 {
		t.Errorf("%d lost, %d begun: %v", lost, begun, r)
	}
}
