//go:build linux

package test

import (
	"strconv"
	"syscall"
	"testing"

	"rrd/test/harness"
	"rrd/test/load"
)

// Asked to stop, rrd has Node workers finish what they have.
func TestNodeDrain(t *testing.T) {
	for _, ways := range []struct {
		name string
		do   func(m *harness.Master)
	}{
		{"stop", func(m *harness.Master) { m.Signal(syscall.SIGTERM) }},
		{"one less", func(m *harness.Master) { m.Signal(syscall.SIGTTOU) }},
	} {
		t.Run(ways.name, func(t *testing.T) {
			t.Parallel()
			const n = 40
			m := lab(t, 2, "--policy", "rr")
			finish := waiting(t, m, load.Config{
				Clients: n, Total: n, Judge: nodeSays, URI: func(i int) string { return "/slow?ms=" + strconv.Itoa(500+10*i) },
			})
			m.WaitStatus("all to be served", func(s *harness.Status) bool { return s.Acked() == n })
			mark := m.Mark()
			ways.do(m)
			exit := m.WaitFrom(mark, 1, harness.Named("worker.exit"))[0]
			// By itself when all were answered, or by TERM right after that.
			if !exit.Bool("requested") || exit.Int("signal_number") == 9 {
				t.Error(exit.Line)
			}
			r := finish()
			if failed := len(r.Failed()); failed > 0 && !endsUnread(t, r, false) {
				t.Errorf("%d of %d failed", failed, n)
			}
			if ways.name == "stop" {
				m.WaitExit()
			} else {
				m.WaitStatus("the slot to be gone", func(s *harness.Status) bool { return s.Desired == 1 && live(s) == 1 })
				m.Rebase()
			}
		})
	}
}

// Without a master Node ends its workers itself, at once.
func TestNodeMasterDies(t *testing.T) {
	t.Parallel()
	m := node(t, 3, "lab.js", harness.Options{Args: []string{"--policy", "rr"}, ExitCode: -1})
	nodeServes(t, m, load.Config{Total: 30})
	m.Signal(syscall.SIGKILL)
	m.WaitExit()
	// The end of the test checks that no process is left.
}

// A worker that does not answer any more is ended, and others serve what it owed.
func TestNodeHung(t *testing.T) {
	t.Parallel()
	const n = 40
	m := lab(t, 2, "--policy", "rr", "--hang-timeout", "1s", "--respawn-max", "50ms")
	workers := remotes(t, m)
	if err := workers[0].ask("/block"); err != nil {
		t.Fatal(err)
	}
	running(t, workers[0].pid)
	mark := m.Mark()
	r := nodeServes(t, m, load.Config{Clients: 8, Total: n})
	if r.ByPID()[workers[0].pid] > 0 {
		t.Errorf("the blocked process has served: %v", r.ByPID())
	}
	m.WaitFrom(mark, 1, harness.Named("worker.hung"))
	exit := m.WaitFrom(mark, 1, harness.OfSlot("worker.exit", 0))[0]
	if exit.Str("cause") != "killed_stuck" || exit.Int("worker_pid") != workers[0].pid {
		t.Error(exit.Line)
	}
	m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", 0))
}
