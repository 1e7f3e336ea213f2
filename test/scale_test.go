//go:build linux

package test

import (
	"slices"
	"syscall"
	"testing"

	"rrd/test/harness"
)

// From one worker to many and back, under load, and nobody is lost.
func TestScaleUnderLoad(t *testing.T) {
	t.Parallel()
	const most = 64
	m := rr(t, 1)
	finish := under(t, m, 300)
	ready := func(n int) func(*harness.Status) bool {
		return func(s *harness.Status) bool {
			return s.Desired == n && live(s) == n && !slices.ContainsFunc(s.Workers, func(w harness.Worker) bool { return w.State == "starting" })
		}
	}
	for n := 2; n <= most; n++ {
		m.Signal(syscall.SIGTTIN)
		m.WaitStatus("one worker more", func(s *harness.Status) bool { return s.Desired == n })
	}
	m.WaitStatus("all of them", ready(most))
	for n := most - 1; n >= 1; n-- {
		m.Signal(syscall.SIGTTOU)
		m.WaitStatus("one worker less", func(s *harness.Status) bool { return s.Desired == n })
	}
	m.WaitStatus("one again", ready(1))
	r := finish()
	if len(r.Failed()) > 0 {
		t.Error(r)
	}
}
