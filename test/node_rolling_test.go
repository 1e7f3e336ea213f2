//go:build linux

package test

import (
	"context"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// Workers are replaced under load, one at a time: a new one comes and is waited
// for, an old one goes. Nobody is lost. make soak does it at twice the rate, which
// takes a machine with time for it, over 18,000 connections.
func TestSoakNodeRolling(t *testing.T) {
	const workers, replacements = 4, 8
	total, rate := 1500, 750.0
	if harness.Soak(t, 0) > 0 {
		total, rate = 18_000, 1500
	}
	for _, how := range []struct {
		name    string
		replace func(t *testing.T, m *harness.Master, i int) (connections int)
	}{
		{"one more, one less", oneMoreOneLess},
		{"disconnect", disconnectOne},
	} {
		for _, window := range []string{"1", "8"} {
			t.Run(how.name+", window "+window, func(t *testing.T) {
				m := lab(t, workers, "--policy", "rr", "--handoff-window", window)
				stop := m.WatchLaw()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				finish := waitingContext(ctx, m, load.Config{Rate: rate, Duration: time.Hour, Judge: nodeSays})
				connections := 0
				for i := range replacements {
					// Spread over the load.
					m.WaitStatus("its part of the load", func(s *harness.Status) bool { return s.Accepted() >= total*i/(replacements+1) })
					connections += how.replace(t, m, i)
				}
				m.WaitStatus("all of the load", func(s *harness.Status) bool { return s.Accepted() >= total })
				cancel()
				r := finish()
				stop()
				t.Log(r)
				if n := len(r.Failed()); n > 0 && !endsUnread(t, r) {
					t.Errorf("%d of %d failed", n, len(r.Results))
				}
				s := m.Idle()
				if want := len(r.Results) + connections; s.Accepted() != want || s.Acked() != want || s.Dropped() != 0 {
					t.Errorf("accepted %d, acked %d, dropped %d of %d", s.Accepted(), s.Acked(), s.Dropped(), want)
				}
				m.AllReady()
			})
		}
	}
}

// endsUnread reports whether what a load has lost may be Node's own doing: since 26
// closing an http server ends connections whose request it has not read yet, also
// under Node's primary (24 does not; tried).
func endsUnread(t *testing.T, r *load.Report) bool {
	t.Helper()
	major, err := nodeFound()
	if err != nil {
		t.Fatal(err)
	}
	failed := len(r.Failed())
	return major > 24 && failed == r.Count(load.Reset)+r.Count(load.Empty) && failed < len(r.Results)/100
}

// oneMoreOneLess has the master start a worker, and when that serves end one.
func oneMoreOneLess(t *testing.T, m *harness.Master, _ int) int {
	t.Helper()
	mark := m.Mark()
	m.Signal(syscall.SIGTTIN)
	slot := m.WaitFrom(mark, 1, harness.Named("worker.ready"))[0].Int("worker")
	m.Signal(syscall.SIGTTOU)
	exit := m.WaitFrom(mark, 1, harness.Named("worker.exit"))[0]
	if exit.Int("worker") != slot || !exit.Bool("requested") || exit.Int("signal_number") == 9 {
		t.Errorf("slot %d was to go: %s", slot, exit.Line)
	}
	return 0
}

// disconnectOne has a worker leave as its program would, whichever answers, and
// its successor come.
func disconnectOne(t *testing.T, m *harness.Master, _ int) int {
	t.Helper()
	mark := m.Mark()
	r := connect(t, m.Addr(), nil)
	r.get("/disconnect")
	r.close()
	exit := m.WaitFrom(mark, 1, harness.Named("worker.exit"))[0]
	if exit.Int("worker_pid") != r.pid || exit.Int("exit_code") != 0 || exit.Str("level") != "info" {
		t.Errorf("process %d was to go: %s", r.pid, exit.Line)
	}
	m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", exit.Int("worker")))
	return 1
}
