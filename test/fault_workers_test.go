//go:build linux

package test

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/test/harness"
	"rrd/test/load"
)

// Rows F01 to F11 of the fault matrix: what happens to workers.

func TestF01RandomKill(t *testing.T)        { t.Parallel(); randomKill(t, form{}) }
func TestF02DeathBeforeTheAck(t *testing.T) { t.Parallel(); deathBeforeTheAck(t, form{}) }
func TestF03StopAndContinue(t *testing.T)   { t.Parallel(); stopAndContinue(t, form{}) }
func TestF04Frozen(t *testing.T)            { t.Parallel(); frozen(t, form{}) }
func TestF05CrashLoop(t *testing.T)         { t.Parallel(); crashLoop(t, form{}) }
func TestF06AllDie(t *testing.T)            { t.Parallel(); allDie(t, form{}) }
func TestF07OutOfMemory(t *testing.T)       { t.Parallel(); outOfMemory(t, form{}) }
func TestF08SpawnFails(t *testing.T)        { t.Parallel(); spawnFails(t, form{}) }
func TestF09NeverReady(t *testing.T)        { t.Parallel(); neverReady(t, form{}) }
func TestF10WorkerFDLimit(t *testing.T)     { t.Parallel(); workerFDLimit(t, form{}) }
func TestF11AllBusy(t *testing.T)           { t.Parallel(); allBusy(t, form{}) }

// Any process is killed at any moment. Nobody is lost but those that it had begun
// to read from.
func randomKill(t *testing.T, f form) {
	b, chance := newBook(t), chances(t)
	m := b.workers(4, nil, "lib")
	rate, kills, total := f.of(600, 2500), f.of(50, 300), f.of(3000, 200_000)
	span := time.Duration(total) * time.Second / time.Duration(rate)
	done := 0
	r := during(t, m, rate, func() {
		perform(kills, span/time.Duration(kills), func(int) {
			if pid := somebody(m, chance); pid > 0 {
				m.Kill(pid, syscall.SIGKILL)
				done++
			}
		})
	})
	m.AllReady()
	begun := b.judge(m, r)
	s := m.Idle()
	all := respawns(m)
	f.note(t, "%d kills, %d connections at %d/s: 0 lost is wanted; %d begun died with their process; rescued %d, redispatched %v; respawn p50 %v p99 %v",
		done, len(r.Results), rate, begun, s.Total(func(l *harness.Listener) int { return l.Rescued }), s.Redispatches,
		percentile(all, 0.5), percentile(all, 0.99))
	if done < kills*9/10 {
		t.Errorf("only %d kills", done)
	}
	if p := percentile(all, 0.99); p > soon {
		t.Errorf("respawn takes %v", p)
	}
}

// A process dies with a connection received and not answered: another serves it,
// once.
func deathBeforeTheAck(t *testing.T, f form) {
	b := newBook(t)
	b.arm()
	m := b.workers(4, []string{"--handoff-window", "1"}, "die-unacked")
	want := f.of(100, 10_000)
	r := run(t, m, load.Config{Clients: 8, Total: want, Timeout: time.Minute})
	m.AllReady()
	b.spared(m, r)
	n := deaths(m)
	f.note(t, "%d deaths, %d connections: %v", n, len(r.Results), m.Idle().Redispatches)
	if n < want || r.Count(load.Duplicate) > 0 {
		t.Errorf("%d deaths, want %d: %v", n, want, r)
	}
}

// A process is stopped under load and goes on later. What it had not read is served
// by others, soon; nothing is served twice.
func stopAndContinue(t *testing.T, f form) {
	b, chance := newBook(t), chances(t)
	m := b.workers(4, nil, "lib")
	stops, span := f.of(5, 10), time.Duration(f.of(600, 5000))*time.Millisecond
	pause := time.Duration(f.of(400, 5500)) * time.Millisecond
	var times []standstill
	r := during(t, m, f.of(500, 1000), func() {
		for range stops {
			if pid := somebody(m, chance); pid > 0 {
				m.Kill(pid, syscall.SIGSTOP)
				stop := standstill{pid: pid, from: time.Now()}
				perform(1, span, func(int) {})
				stop.to = time.Now()
				m.Kill(pid, syscall.SIGCONT)
				times = append(times, stop)
			}
			perform(1, pause, func(int) {})
		}
	})
	b.spared(m, r)
	in, out, held := divide(r, times)
	above := func(all []time.Duration) int {
		n, _ := slices.BinarySearch(all, 100*time.Millisecond)
		return len(all) - n
	}
	f.note(t, "%d stops of %v, %d connections, %d duplicates; %d were in the hands of a stopped process; the others meanwhile: p50 %v p99 %v max %v, %d of %d above busy-after + 50 ms; at other times: p50 %v p99 %v max %v, %d of %d",
		len(times), span, len(r.Results), r.Count(load.Duplicate), held,
		percentile(in, 0.5), percentile(in, 0.99), percentile(in, 1), above(in), len(in),
		percentile(out, 0.5), percentile(out, 0.99), percentile(out, 1), above(out), len(out))
	if percentile(out, 0.9) > 200*time.Millisecond {
		t.Log("the machine cannot keep up even while nobody is stopped: times are not judged")
		return
	}
	if held > 4*len(times) {
		t.Errorf("%d connections waited for a stopped process, at most 4 each are received", held)
	}
	// By the measure of what this machine does while nobody is stopped.
	if percentile(in, 0.99) > 2*percentile(out, 0.99)+100*time.Millisecond || percentile(in, 1) > percentile(out, 1)+soon/2 {
		t.Error("what the stopped had not received was served late")
	}
}

// standstill is a time in which a process was stopped.
type standstill struct {
	pid      int
	from, to time.Time
}

// divide sorts the latencies of those who came while a process was stopped and of
// those who came at other times, and counts those whom it had received and answered
// afterwards.
func divide(r *load.Report, times []standstill) (in, out []time.Duration, held int) {
	for i := range r.Results {
		res := &r.Results[i]
		if res.Outcome != load.OK {
			continue
		}
		came, answered := r.Began.Add(res.Scheduled), r.Began.Add(res.Answered)
		// What is sent right before the stop may be received, or be recalled.
		at := slices.IndexFunc(times, func(s standstill) bool {
			return came.After(s.from.Add(-10*time.Millisecond)) && came.Before(s.to)
		})
		switch {
		case at < 0:
			out = append(out, res.Latency())
		case res.PID == times[at].pid && came.Before(times[at].from.Add(100*time.Millisecond)) && answered.After(times[at].to):
			held++
		default:
			in = append(in, res.Latency())
		}
	}
	slices.Sort(in)
	slices.Sort(out)
	return in, out, held
}

// cgroup makes a control group of version 1 for the test, or skips.
func cgroup(t *testing.T, controller string) string {
	t.Helper()
	needsRoot(t)
	base := filepath.Join("/sys/fs/cgroup", controller)
	if _, err := os.Stat(filepath.Join(base, "cgroup.procs")); err != nil {
		lacks(t, "cgroup1", err)
	}
	dir, err := os.MkdirTemp(base, "rrd-test-")
	if err != nil {
		lacks(t, "cgroup1", err)
	}
	t.Cleanup(func() {
		harness.Poll(t, "the cgroup to be empty", func() error { return os.Remove(dir) })
	})
	return dir
}

func put(t *testing.T, dir, file, value string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A process that is frozen does not even die of SIGKILL. Its slot has a successor;
// what it had received waits until it is really dead.
func frozen(t *testing.T, f form) {
	dir := cgroup(t, "freezer")
	b := newBook(t)
	m := b.workers(4, []string{"--hang-timeout", "500ms"}, "lib")
	pid := m.PID(1)
	put(t, dir, "cgroup.procs", strconv.Itoa(pid))
	t.Cleanup(func() { put(t, dir, "freezer.state", "THAWED") })
	span := time.Duration(f.of(4, 30)) * time.Second
	r := during(t, m, f.of(300, 2500), func() {
		perform(1, time.Second/2, func(int) {})
		mark := m.Mark()
		put(t, dir, "freezer.state", "FROZEN")
		end := time.NewTimer(span)
		defer end.Stop()
		m.WaitFrom(mark, 1, harness.Named("worker.hung"))
		ready := m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", 1))[0]
		if ready.Int("worker_pid") == pid || !harness.Alive(pid) {
			t.Errorf("process %d should still be there: %s", pid, ready.Line)
		}
		<-end.C
		put(t, dir, "freezer.state", "THAWED")
		m.WaitFrom(mark, 1, func(e harness.Event) bool { return e.Name == "worker.exit" && e.Int("worker_pid") == pid })
		perform(1, time.Second/2, func(int) {})
	})
	m.AllReady()
	begun := b.judge(m, r)
	f.note(t, "frozen for %v, %d connections, 0 lost is wanted; %d begun died with it; the others: p99 %v", span, len(r.Results), begun, r.Percentile(0.99))
	if p := r.Percentile(0.99); p > soon {
		t.Errorf("99 %% were answered within %v", p)
	}
}

// One slot's command ends at once, again and again: it is started ever more rarely,
// and the others do not notice.
func crashLoop(t *testing.T, f form) {
	b := newBook(t)
	m := faulty(t, 4, []string{"--respawn-max", f.text("2s", "30s")}, b.args("-slots", "1", "-others", "lib", "crash")...)
	b.arm()
	mark := m.Mark()
	m.Kill(m.PID(1), syscall.SIGKILL)
	m.WaitFrom(mark, 2, harness.OfSlot("worker.exit", 1))
	span := time.Duration(f.of(5, 30)) * time.Second
	lines := strings.Count(m.Log(), "\n")
	used := cpuDuring(t, m, func() { perform(1, span, func(int) {}) })
	lines = strings.Count(m.Log(), "\n") - lines
	starts := len(m.Events(harness.OfSlot("worker.start", 1))) - 1 // the first was honest
	b.spared(m, during(t, m, f.of(300, 1000), func() { perform(1, span/5, func(int) {}) }))
	f.note(t, "%d starts and %d lines in %v, %.1f %% of a core", starts, lines, span, 100*used)
	if starts > 10 || lines > 20+starts || used > 0.05 { // each says why, in a line of its own
		t.Errorf("%d starts and %d lines in %v, %.1f %% of a core", starts, lines, span, 100*used)
	}
	b.disarm()
	m.AllReady()
}

// All processes are killed at once: what comes meanwhile waits.
func allDie(t *testing.T, f form) {
	b := newBook(t)
	m := b.workers(4, []string{"--queue-limit", "5000"}, "lib")
	times, total, rate := f.of(4, 20), f.of(1600, 50_000), f.of(500, 1250)
	span := time.Duration(total) * time.Second / time.Duration(rate)
	r := during(t, m, rate, func() {
		perform(times, span/time.Duration(times), func(int) {
			s := m.AllReady()
			for _, w := range s.Workers {
				_ = syscall.Kill(w.PID, syscall.SIGKILL) // ready just now, and reaped by the master only
			}
		})
	})
	m.AllReady()
	begun := b.judge(m, r)
	s := m.Idle()
	f.note(t, "%d times 4 kills, %d connections: 0 lost is wanted; %d begun died with their process; redispatched %v; max %v",
		times, len(r.Results), begun, s.Redispatches, r.Percentile(1))
	if n := deaths(m); n < 4*times {
		t.Errorf("%d deaths", n)
	}
}

// A worker uses up the memory of the control group: its end is called oom, and
// nobody else is hurt.
func outOfMemory(t *testing.T, f form) {
	dir := cgroup(t, "memory")
	put(t, dir, "memory.limit_in_bytes", strconv.Itoa(192<<20))
	b := newBook(t)
	at := harness.Host() + ":0"
	// The kernel is told whom to take: the hog, and while that is dying, which takes
	// a while on a busy machine, any other worker before the master.
	command := append([]string{"sh", "-c", `[ "$RRD_SLOT" = 1 ] && echo 1000 >/proc/self/oom_score_adj || echo 500 >/proc/self/oom_score_adj; exec "$0" "$@"`,
		harness.Build(t, "", "rrd/test/faultworker"), "-listen", "tcp/" + at}, b.args("-slots", "1", "hog")...)
	m := harness.Start(t, harness.Options{
		Args: append([]string{"--policy", "rr", "--workers", "3"}, quick...), Listen: []string{at}, Command: command,
		Wrap: []string{"sh", "-c", "echo $$ >" + filepath.Join(dir, "cgroup.procs") + `; exec "$0" "$@"`},
	})
	times := f.of(1, 20)
	r := during(t, m, f.of(300, 1500), func() {
		for range times {
			mark := m.Mark()
			m.AllReady()
			pid := m.PID(1)
			m.Kill(pid, syscall.SIGUSR2)
			exit := m.WaitFrom(mark, 1, harness.OfSlot("worker.exit", 1))[0]
			if exit.Int("worker_pid") != pid || exit.Str("cause") != "oom" {
				t.Errorf("the end of %d: %s", pid, exit.Line)
			}
			perform(1, time.Duration(f.of(300, 1500))*time.Millisecond, func(int) {})
		}
	})
	m.AllReady()
	begun := b.judge(m, r)
	f.note(t, "%d times out of memory, %d connections: 0 lost is wanted; %d begun died with their process", times, len(r.Results), begun)
}

// A command that cannot be started: an error with the reason at the start, later
// another attempt each second, while the others serve.
func spawnFails(t *testing.T, f form) {
	for _, tt := range []struct {
		name, content string
		mode          os.FileMode
		says          string
	}{
		{"ENOENT", "", 0, "no such file"},
		{"EACCES", "#!/bin/sh\n", 0o644, "permission denied"},
		{"ENOEXEC", "no program\n", 0o755, "exec format error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "command")
			if tt.mode != 0 {
				if err := os.WriteFile(file, []byte(tt.content), tt.mode); err != nil {
					t.Fatal(err)
				}
			}
			start := time.Now()
			m := harness.Run(t, harness.Options{Args: []string{"--workers", "4"}, Command: []string{file}, ExitCode: 3})
			if took := time.Since(start); took > 2*time.Second+soon {
				t.Errorf("it took %v", took)
			}
			if !strings.Contains(m.Log(), tt.says) {
				t.Errorf("no %q in %s", tt.says, m.Log())
			}
		})
	}
	b := newBook(t)
	at := harness.Host() + ":0"
	program := filepath.Join(t.TempDir(), "worker")
	copyFile(t, harness.Build(t, "", "rrd/test/faultworker"), program)
	m := harness.Start(t, harness.Options{
		Args: append([]string{"--policy", "rr", "--workers", "4"}, quick...), Listen: []string{at},
		Command: append([]string{program, "-listen", "tcp/" + at}, b.args("lib")...),
	})
	times := f.of(1, 10)
	var worst time.Duration
	r := during(t, m, f.of(300, 1000), func() {
		for range times {
			if err := os.Rename(program, program+".away"); err != nil {
				t.Fatal(err)
			}
			mark := m.Mark()
			m.Kill(m.PID(2), syscall.SIGKILL)
			m.WaitFrom(mark, 2, harness.OfSlot("worker.spawn_failed", 2))
			if err := os.Rename(program+".away", program); err != nil {
				t.Fatal(err)
			}
			back := time.Now()
			m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", 2))
			worst = max(worst, time.Since(back))
		}
	})
	begun := b.judge(m, r)
	f.note(t, "%d connections while a slot could not be started, %d begun died with their process; back after %v at most", len(r.Results), begun, worst)
	if worst > time.Second+soon {
		t.Errorf("a slot was back %v after the cause had ended", worst)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	writeProgram(t, to, data)
}

// writeProgram lets nobody fork meanwhile: a child of another test would have the file
// open for writing until its exec, and nobody could execute it (execve(2), ETXTBSY).
func writeProgram(t *testing.T, path string, data []byte) {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, data, 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
}

// A successor that never becomes ready is ended at --start-timeout, again and
// again; the others serve all.
func neverReady(t *testing.T, f form) {
	b := newBook(t)
	m := b.workers(4, []string{"--start-timeout", "300ms"}, "-slots", "1", "-others", "lib", "mute")
	r := during(t, m, f.of(300, 1500), func() {
		b.arm()
		mark := m.Mark()
		m.Kill(m.PID(1), syscall.SIGKILL)
		for i, exit := range m.WaitFrom(mark, f.of(3, 30), harness.OfSlot("worker.exit", 1)) {
			if i > 0 && exit.Str("cause") != "killed_stuck" {
				t.Errorf("exit %d: %s", i, exit.Line)
			}
		}
		b.disarm()
		m.AllReady()
	})
	begun := b.judge(m, r)
	f.note(t, "%d deaths, %d connections: 0 lost is wanted; %d begun died with the one that was killed", deaths(m), len(r.Results), begun)
}

// A worker at its limit of open files gives connections back that it did not
// receive.
func workerFDLimit(t *testing.T, f form) {
	b := newBook(t)
	m := b.workers(3, nil, "lib")
	pid := m.PID(1)
	fds, err := harness.FDs(pid)
	if err != nil {
		t.Fatal(err)
	}
	highest := 0
	for n := range fds {
		highest = max(highest, n)
	}
	var before unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &before); err != nil {
		t.Fatal(err)
	}
	// Room for two: a descriptor that is received is copied once.
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(highest + 5), Max: before.Max}, nil); err != nil {
		lacks(t, "prlimit", err)
	}
	r := serves(t, m, load.Config{Clients: 40, Total: f.of(2000, 50_000), URI: func(int) string { return "/sleep?ms=5" }})
	b.spared(m, r)
	s := m.Idle()
	f.note(t, "%d connections, %d of them given back for want of descriptors, %d served by that worker",
		len(r.Results), s.Workers[1].Rejections["fd_limit"], s.Workers[1].Acks)
	if s.Workers[1].Rejections["fd_limit"] == 0 || s.Workers[1].Acks == 0 {
		t.Errorf("the limited worker: %+v", s.Workers[1])
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &before, nil); err != nil {
		t.Fatal(err)
	}
}

// Everybody says busy: nobody is asked again before it says so, nothing spins, and
// the order is kept.
func allBusy(t *testing.T, f form) {
	const n, workers = 300, 3
	b, g := newBook(t), newGate(t)
	m := b.workers(workers, []string{"--handoff-window", "1", "--busy-after", "off"}, "-gate", g.path, "reject")
	finish := waiting(t, m, load.Config{Rate: 300, Total: n, Timeout: 2 * time.Minute})
	m.WaitStatus("all to wait", func(s *harness.Status) bool { return s.Accepted() == n })
	span := time.Duration(f.of(2, 30)) * time.Second
	used := cpuDuring(t, m, func() { perform(1, span, func(int) {}) })
	offers := 0
	for _, w := range m.Status().Workers {
		offers += w.Handoffs
	}
	f.note(t, "%d wait, %d offers, %.1f %% of a core in %v", n, offers, 100*used, span)
	if used > 0.05 || offers > workers {
		t.Errorf("%d offers to %d workers that are all busy, %.1f %% of a core", offers, workers, 100*used)
	}
	g.open()
	r := finish()
	b.spared(m, r)
	inOrder(t, r, 0)
}
