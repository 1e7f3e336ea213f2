//go:build linux

package test

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// quick keeps slots from staying empty longer than the tests have time.
var quick = []string{"--respawn-min", "10ms", "--respawn-max", "10ms"}

// What one of four rejects is served by the others, and counted.
func TestOneRejectsEverySecond(t *testing.T) {
	t.Parallel()
	m := faulty(t, 4, nil, "-slots", "2", "reject-second")
	r := serves(t, m, load.Config{Clients: 16, Total: 10_000})
	s := accounts(t, m, r)
	w := s.Workers[2]
	if got := w.Rejections["busy"]; got == 0 || got > w.Acks+1 || got < w.Acks-1 {
		t.Errorf("slot 2 has acked %d and rejected %d, want every second", w.Acks, got)
	}
	if s.Redispatches["rejected"] != w.Rejections["busy"] {
		t.Errorf("slot 2: %+v, redispatches %v", w, s.Redispatches)
	}
	for _, other := range []int{0, 1, 3} {
		if w := s.Workers[other]; w.Rejections["busy"] != 0 || w.Acks == 0 {
			t.Errorf("slot %d: %+v", other, w)
		}
	}
}

// All of them reject every second one: it waits until one can take it.
func TestAllRejectEverySecond(t *testing.T) {
	t.Parallel()
	m := faulty(t, 4, nil, "reject-second")
	s := accounts(t, m, serves(t, m, load.Config{Clients: 16, Total: 1000}))
	rejected := 0
	for _, w := range s.Workers {
		rejected += w.Rejections["busy"]
	}
	if rejected != s.Redispatches["rejected"] || rejected < 900 {
		t.Errorf("%d rejections, redispatches %v", rejected, s.Redispatches)
	}
}

// waiting starts a load and returns what waits for its end.
func waiting(t *testing.T, m *harness.Master, cfg load.Config) func() *load.Report {
	t.Helper()
	finish := waitingContext(t.Context(), m, cfg)
	return func() *load.Report {
		r := finish()
		t.Log(r)
		return r
	}
}

// waitingContext is waiting for a load that ends with ctx.
func waitingContext(ctx context.Context, m *harness.Master, cfg load.Config) func() *load.Report {
	if cfg.Address == "" {
		cfg.Address = m.Addr()
	}
	var report *load.Report
	var done sync.WaitGroup
	done.Go(func() { report = load.Run(ctx, cfg) })
	return func() *load.Report {
		done.Wait()
		return report
	}
}

// cpuDuring returns how much of a core the master uses while f runs.
func cpuDuring(t *testing.T, m *harness.Master, f func()) float64 {
	t.Helper()
	before, err := harness.CPU(m.MasterPID())
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	f()
	after, err := harness.CPU(m.MasterPID())
	if err != nil {
		t.Fatal(err)
	}
	return float64(after-before) / float64(time.Since(start))
}

// Everybody rejects: nothing spins, whether they say again at once or not, and
// when one takes again all are served, the oldest first.
func TestAllReject(t *testing.T) {
	const n, workers = 200, 3
	for mode, others := range map[string]int{"reject": 0, "reject-again": workers - 1} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			g := newGate(t)
			// Nothing is taken back from a worker that only waits for the processor.
			m := faulty(t, workers, []string{"--handoff-window", "1", "--busy-after", "off"}, "-gate", g.path, mode)
			// One every 5 ms, so that their order is known.
			finish := waiting(t, m, load.Config{Rate: 200, Total: n})
			m.WaitStatus("all to wait", func(s *harness.Status) bool { return s.Accepted() == n })
			before := handoffs(m.Status())
			tick := time.NewTimer(2 * time.Second) // the span of the measurement
			start := time.Now()
			used := cpuDuring(t, m, func() { <-tick.C })
			offers := handoffs(m.Status()) - before
			// AGAIN counts once in 5 ms, whoever says it how often. The processor is judged by
			// what an offer may cost: a machine that has other work makes each one dearer.
			if most := int(time.Since(start)/(5*time.Millisecond)+1) * workers; offers > most {
				t.Errorf("%d offers to workers that reject, want at most %d", offers, most)
			}
			if used > max(0.05, float64(offers)*0.0003/2) {
				t.Errorf("the master uses %.0f %% of a core for %d offers while nobody takes anything", 100*used, offers)
			}
			g.open()
			r := finish()
			if r.Count(load.OK) != n {
				t.Error(r)
			}
			accounts(t, m, r)
			inOrder(t, r, others)
		})
	}
}

// handoffs counts what the workers were ever offered.
func handoffs(s *harness.Status) (n int) {
	for _, w := range s.Workers {
		n += w.Handoffs
	}
	return n
}

// inOrder checks that each process was given its connections in order of arrival.
// It may get one behind younger ones only if another had that in hand and then
// rejected it; so behind each connection there are at most as many older ones as the
// others have in hand while this one takes. Who arrived first is known only of
// clients one of which was connected when the other began: a busy machine starts
// those of one moment in any order.
func inOrder(t *testing.T, r *load.Report, others int) {
	t.Helper()
	const slack = time.Millisecond // until the kernel has put it into the accept queue
	processes := make(map[int][]*load.Result)
	for i := range r.Results {
		processes[r.Results[i].PID] = append(processes[r.Results[i].PID], &r.Results[i])
	}
	for pid, served := range processes {
		slices.SortFunc(served, func(a, b *load.Result) int { return cmp.Compare(a.Connection, b.Connection) })
		for i, younger := range served {
			var behind []int
			for _, older := range served[i+1:] {
				if older.Connected+slack < younger.Started {
					behind = append(behind, older.Seq)
				}
			}
			if len(behind) > others {
				t.Errorf("process %d got connection %d before %v, which had come earlier", pid, younger.Seq, behind)
				break // once tells it
			}
		}
	}
}

// A process that dies with what it has acked takes those along, and nothing else:
// as many clients fail as there are acks without an answer, and only of slots
// whose process was killed.
func TestKillUnderLoad(t *testing.T) {
	t.Parallel()
	const workers, kills = 4, 20
	m := harness.Start(t, harness.Options{Args: append([]string{"--policy", "rr", "--workers", "4"}, quick...)})
	stop := m.WatchLaw()
	ctx, cancel := context.WithCancel(t.Context())
	finish := waitingContext(ctx, m, load.Config{Rate: 800, Duration: time.Minute})
	killed := make(map[int]bool)
	for i := range kills {
		slot := i % 3 // slot 3 lives
		mark := m.Mark()
		pid := m.PID(slot)
		killed[pid] = true
		m.Kill(pid, syscall.SIGKILL)
		exit := m.WaitFrom(mark, 1, harness.OfSlot("worker.exit", slot))[0]
		if exit.Int("worker_pid") != pid || exit.Int("signal_number") != 9 || exit.Bool("requested") || exit.Str("cause") != "signal" {
			t.Errorf("kill %d of process %d: %s", i, pid, exit.Line)
		}
		ready := m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", slot))[0]
		if ready.Int("worker_pid") == pid || ready.Int("generation") != 1 {
			t.Errorf("after kill %d: %s", i, ready.Line)
		}
	}
	cancel()
	r := finish()
	t.Log(r)
	stop()
	s := m.Idle()
	failed := 0
	for _, f := range r.Failed() {
		failed++
		if f.Outcome != load.Empty && f.Outcome != load.Reset {
			t.Errorf("connection %d: %v, %v", f.Seq, f.Outcome, f.Err)
		}
	}
	if s.Accepted() != len(r.Results) || s.Dropped() != 0 {
		t.Errorf("accepted %d of %d, dropped %d", s.Accepted(), len(r.Results), s.Dropped())
	}
	lost := 0
	by := r.BySlot()
	rescued := s.Total(func(l *harness.Listener) int { return l.Rescued })
	for _, w := range s.Workers {
		d := w.Acks - by[w.Slot]
		lost += d
		if d < 0 || w.Slot == 3 && d != 0 {
			t.Errorf("slot %d has acked %d and answered %d", w.Slot, w.Acks, by[w.Slot])
		}
	}
	if failed != lost-rescued {
		t.Errorf("%d clients failed; %d connections were acked and not answered, %d of them rescued", failed, lost, rescued)
	}
	if starts := s.Workers[0].Starts["crash"] + s.Workers[1].Starts["crash"] + s.Workers[2].Starts["crash"]; starts != kills {
		t.Errorf("%d starts after crashes, want %d", starts, kills)
	}
	t.Logf("%d of %d lost with the processes that had acked them; redispatched %v", failed, len(r.Results), s.Redispatches)
}

// Died with a connection received and not acked: another serves it, once.
func TestDeathBeforeTheAck(t *testing.T) {
	t.Parallel()
	m := faulty(t, 4, quick, "-slots", "0,1", "die-unacked")
	r := serves(t, m, load.Config{Clients: 4, Total: 200})
	s := m.Idle()
	if s.Accepted() != 200 || s.Acked() != 200 || s.Redispatches["worker_exit"] == 0 {
		t.Errorf("%+v", *s)
	}
	for _, slot := range []int{0, 1} {
		w := s.Workers[slot]
		if w.Exits["code"] == 0 || w.Acks != r.BySlot()[slot] {
			t.Errorf("slot %d: %+v", slot, w)
		}
	}
}

// What has killed three workers is given to no fourth.
func TestPoison(t *testing.T) {
	t.Parallel()
	m := faulty(t, 2, quick, "poisoned")
	r := run(t, m, load.Config{Total: 1})
	if r.Count(load.Empty)+r.Count(load.Reset) != 1 {
		t.Error(r)
	}
	m.Wait(harness.Named("connection.dropped"))
	m.AllReady()
	s := m.Idle()
	if got := s.Listeners[0].Dropped["poison"]; got != 1 || s.Dropped() != 1 {
		t.Errorf("dropped %v", s.Listeners[0].Dropped)
	}
	if n := s.Workers[0].Exits["code"] + s.Workers[1].Exits["code"]; n != 3 {
		t.Errorf("%d deaths, want 3", n)
	}
}

// Stopped: the others go on, and what it had not read is served by them.
func TestStopped(t *testing.T) {
	t.Parallel()
	m := rr(t, 4)
	before := serves(t, m, load.Config{Rate: 400, Total: 400})
	pid := m.PID(1)
	m.Kill(pid, syscall.SIGSTOP)
	r := serves(t, m, load.Config{Rate: 400, Total: 800})
	if n := r.ByPID()[pid]; n != 0 {
		t.Errorf("the stopped process has answered %d", n)
	}
	// At busy-after, 50 ms, those in its hands are served by others; a busy machine
	// has half a second.
	late := 0
	for i := range r.Results {
		if r.Results[i].Latency() > 50*time.Millisecond+500*time.Millisecond {
			late++
		}
	}
	if late > 0 {
		t.Errorf("%d connections waited for the stopped worker; before %v, then %v", late, before, r)
	}
	if s := m.Status(); s.Workers[0].Late || !s.Workers[1].Late {
		t.Errorf("that it is late is not told: %+v", s.Workers)
	}
	m.Kill(pid, syscall.SIGCONT)
	m.WaitStatus("the worker to take part again", func(*harness.Status) bool {
		return load.Run(t.Context(), load.Config{Address: m.Addr(), Total: 4}).ByPID()[pid] > 0
	})
}

// Nobody reads: what waits is not lost when one is there again.
func TestAllStopped(t *testing.T) {
	t.Parallel()
	m := rr(t, 2)
	pids := []int{m.PID(0), m.PID(1)}
	for _, pid := range pids {
		m.Kill(pid, syscall.SIGSTOP)
	}
	finish := waiting(t, m, load.Config{Clients: 100, Total: 100})
	m.WaitStatus("all to wait", func(s *harness.Status) bool { return s.Open() == 100 })
	for _, pid := range pids {
		m.Kill(pid, syscall.SIGCONT)
	}
	r := finish()
	if r.Count(load.OK) != 100 {
		t.Error(r)
	}
	accounts(t, m, r)
}
