//go:build linux

package test

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// The long forms: make soak runs each TestSoak for SOAK, make e2e for moments.

// rss returns the resident memory of a process in bytes.
func rss(t *testing.T, pid int) int {
	t.Helper()
	status, err := harness.StatusFields(pid)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := strconv.Atoi(strings.TrimSuffix(status["VmRSS"], " kB"))
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}

// Nothing grows with the number of connections served.
func TestSoakSteady(t *testing.T) {
	t.Parallel()
	m := rr(t, 4)
	warm := serves(t, m, load.Config{Clients: 32, Total: 3000})
	before := rss(t, m.MasterPID())
	r := serves(t, m, load.Config{Rate: 800, Duration: harness.Soak(t, 3*time.Second)})
	accounts(t, m, warm, r)
	if after := rss(t, m.MasterPID()); after > before+8<<20 {
		t.Errorf("the master has grown from %d to %d bytes", before, after)
	}
}

// All kinds of trouble in an order that the seed gives. Whoever is not answered was
// acked by a process that was killed.
func TestSoakChaos(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("SOAK_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("SOAK_SEED=%d", seed)
	chance := rand.New(rand.NewPCG(seed, 1))
	// A reload lasts at least twice the canary time, and the last one must end before the leak check.
	args := append([]string{"--policy", "rr", "--workers", "4", "--hang-timeout", "2s", "--canary-time", "200ms"}, quick...)
	m := harness.Start(t, harness.Options{Args: args})
	stop := m.WatchLaw()
	ctx, cancel := context.WithCancel(t.Context())
	finish := waitingContext(ctx, m, load.Config{Rate: 500, Duration: 24 * time.Hour})
	end := time.NewTimer(harness.Soak(t, 5*time.Second))
	defer end.Stop()
	kills, desired := 0, 4
	resize := func(sig syscall.Signal, step int) {
		// One after the other: two of the same that wait are one to the kernel.
		desired += step
		m.Signal(sig)
		m.WaitStatus("the number of workers to be as asked", func(s *harness.Status) bool { return s.Desired == desired })
	}
	for over := false; !over; {
		pause := time.Duration(chance.IntN(200)) * time.Millisecond
		switch what := chance.IntN(10); {
		case what < 4:
			if pid := somebody(m, chance); pid > 0 {
				m.Kill(pid, syscall.SIGKILL)
				kills++
			}
		case what < 6:
			if pid := somebody(m, chance); pid > 0 {
				m.Kill(pid, syscall.SIGSTOP)
				time.AfterFunc(pause, func() { _ = syscall.Kill(pid, syscall.SIGCONT) }) // the very process, or nobody
			}
		case what < 7 && desired < 6:
			resize(syscall.SIGTTIN, 1)
		case what < 8 && desired > 2:
			resize(syscall.SIGTTOU, -1)
		case what < 9:
			m.Signal(syscall.SIGHUP)
		}
		next := time.NewTimer(pause)
		select {
		case <-end.C:
			over = true
		case <-next.C:
		}
		next.Stop()
	}
	m.AllReady()
	cancel()
	r := finish()
	stop()
	t.Log(r)
	s := m.Idle()
	acked := s.Acked() - s.Total(func(l *harness.Listener) int { return l.Rescued })
	if s.Accepted() != len(r.Results) || s.Dropped() != 0 {
		t.Errorf("accepted %d of %d, dropped %d", s.Accepted(), len(r.Results), s.Dropped())
	}
	if lost := acked - r.Count(load.OK); len(r.Failed()) != lost || r.Count(load.Empty)+r.Count(load.Reset) != lost {
		t.Errorf("%d kills; %d connections were acked and not answered; the clients say %v", kills, lost, r)
	}
	for desired < 4 { // back to the beginning, for the end check
		resize(syscall.SIGTTIN, 1)
	}
	for desired > 4 {
		resize(syscall.SIGTTOU, -1)
	}
	m.WaitStatus("four workers", func(s *harness.Status) bool { return s.Desired == 4 && live(s) == 4 })
	m.AllReady()
}

// live counts the slots that have a process.
func live(s *harness.Status) (n int) {
	for _, w := range s.Workers {
		if w.State != "" {
			n++
		}
	}
	return n
}

// somebody picks the process of a ready slot, 0 if there is none.
func somebody(m *harness.Master, chance *rand.Rand) int {
	var pids []int
	for _, w := range m.Status().Workers {
		if w.State == "ready" {
			pids = append(pids, w.PID)
		}
	}
	if len(pids) == 0 {
		return 0
	}
	return pids[chance.IntN(len(pids))]
}
