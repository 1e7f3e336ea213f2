//go:build linux

package test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/test/harness"
	"rrd/test/load"
)

// Faults around the master: F33 to F40 of the matrix in docs/reliability.md.

func TestF33Drain(t *testing.T) { t.Parallel(); drain(t, form{}) }

// TERM with open connections, and more that come: nobody is cut, and the master
// ends with the last of them.
func drain(t *testing.T, f form) {
	n := f.of(300, 1000)
	m := rr(t, 4)
	start := time.Now()
	finish := waiting(t, m, load.Config{Clients: n, Total: n, URI: func(i int) string {
		return fmt.Sprintf("/sleep?ms=%d", 1500+i%10*100)
	}})
	m.WaitStatus("all to be taken", func(s *harness.Status) bool { return s.Acked() == n })
	late := under(t, m, 200)
	m.WaitStatus("more to come", func(s *harness.Status) bool { return s.Acked() > n+20 })
	m.Signal(syscall.SIGTERM)
	if code := m.WaitExit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	took := time.Since(start)
	open, more := finish(), late()
	if open.Count(load.OK) != n {
		t.Error(open)
	}
	if more.Count(load.OK)+more.Count(load.Refused) != len(more.Results) {
		t.Errorf("of those who came while it stopped: %v", more)
	}
	var last time.Duration
	for i := range open.Results {
		last = max(last, open.Results[i].Ended)
	}
	// The aim is 100 ms; the machine has other work.
	if f.note(t, "ended %v after the last client", took-last); took-last > time.Second {
		t.Errorf("it ended %v after the last client", took-last)
	}
}

func TestF34SignalStorm(t *testing.T) { t.Parallel(); signalStorm(t, form{}) }

// All signals but those that stop, two thousand a second.
func signalStorm(t *testing.T, f form) {
	n := f.of(2000, 20_000)
	// Without a canary the last reloads are not waited for long. The built-in worker, when it
	// drains, ends a client that says nothing for 5 s, which these clients may not get to on a
	// busy machine: this one waits for them.
	at := harness.Host() + ":0"
	m := startUpgradable(t, harness.Options{
		Args: []string{"--workers", "4", "--canary-time", "off"}, Listen: []string{at},
		Command: []string{harness.Build(t, "", "rrd/test/faultworker"), "-listen", "tcp/" + at, "lib"},
	}).Master
	finish := under(t, m, 300)
	chance := chances(t)
	all := []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGCHLD, syscall.SIGTTIN}
	tick := time.NewTicker(500 * time.Microsecond)
	defer tick.Stop()
	grow := false
	for range n {
		<-tick.C
		sig := all[chance.IntN(len(all))]
		if sig == syscall.SIGTTIN { // in turns, so that the number does not wander off
			if grow = !grow; !grow {
				sig = syscall.SIGTTOU
			}
		}
		m.Signal(sig)
	}
	// What is still to be done is done when the number no longer changes.
	desired := -1
	m.WaitStatus("as many workers as desired", func(s *harness.Status) bool {
		settled := s.Desired == desired && live(s) == desired
		for _, w := range s.Workers {
			settled = settled && (w.State == "ready" || w.State == "")
		}
		desired = s.Desired
		return settled
	})
	r := finish()
	if len(r.Failed()) > 0 {
		t.Error(r)
	}
	accounts(t, m, r)
	// A loaded master may still heed signals of the storm, so each step is from where it is.
	for now := m.Status().Desired; now != 4; now = m.Status().Desired {
		sig := syscall.SIGTTIN
		if now > 4 {
			sig = syscall.SIGTTOU
		}
		m.Signal(sig)
		m.WaitStatus("another number of workers", func(s *harness.Status) bool { return s.Desired != now })
	}
	m.WaitStatus("as many workers as asked", func(s *harness.Status) bool { return live(s) == s.Desired })
	m.AllReady()
}

func TestF35ManyDieAtOnce(t *testing.T) { t.Parallel(); manyDie(t, form{}) }

// 64 workers killed in one instant are all seen, and replaced.
func manyDie(t *testing.T, f form) {
	rounds := f.of(1, 20)
	const workers = 64
	m := rr(t, workers, quick...)
	for range rounds {
		mark := m.Mark()
		start := time.Now()
		for _, w := range m.Status().Workers {
			m.Kill(w.PID, syscall.SIGKILL)
		}
		killed := time.Since(start)
		for _, e := range m.WaitFrom(mark, workers, harness.Named("worker.exit")) {
			if e.Int("signal_number") != 9 || e.Bool("requested") {
				t.Errorf("seen as %s", e.Line)
			}
		}
		if took := time.Since(start); took > soon {
			t.Errorf("it took %v until the last was seen", took)
		} else {
			f.note(t, "killed in %v, all seen after %v", killed, took)
		}
		m.WaitFrom(mark, workers, harness.Named("worker.ready"))
		m.AllReady()
	}
	accounts(t, m, serves(t, m, load.Config{Total: 128}))
}

// asInit starts a master as process 1 of a pid namespace of its own. What the test
// starts afterwards is in that namespace as well.
func asInit(t *testing.T, o harness.Options) *harness.Master {
	t.Helper()
	needsRoot(t)
	harness.RRD(t) // what builds it must not be process 1
	runtime.LockOSThread()
	// Never unlocked: the thread ends with the test.
	if err := unix.Unshare(unix.CLONE_NEWPID); err != nil {
		lacks(t, "pidns", err)
	}
	o.Wrap = []string{"unshare", "--mount", "sh", "-c", `mount -t proc proc /proc && exec "$@"`, "sh"}
	return harness.Start(t, o)
}

// inside translates pids: what a process of this pid there is called here.
func inside(t *testing.T, m *harness.Master, pid int) int {
	t.Helper()
	for outer := range harness.Children(m.MasterPID()) {
		if status, err := harness.StatusFields(outer); err == nil && strings.HasSuffix(status["NSpid"], " "+strconv.Itoa(pid)) {
			return outer
		}
	}
	t.Fatalf("no child of the master is process %d in its namespace", pid)
	return 0
}

func TestF36OrphansOfProcess1(t *testing.T) { t.Parallel(); orphans(t, form{}) }

// As process 1 rrd inherits what its workers leave behind: it is reaped, and not
// taken for a worker.
func orphans(t *testing.T, f form) {
	n := f.of(150, 1000)
	worker := harness.Build(t, "", "rrd/test/faultworker")
	// A subshell that ends at once gives its child to process 1.
	script := fmt.Sprintf(`(i=0; while [ $i -lt %d ]; do (setsid sleep 0.2 &); i=$((i+1)); done; echo all left) & exec %s -listen tcp/web serve`, n, worker)
	m := asInit(t, harness.Options{
		Args:    []string{"--policy", "rr", "--workers", "2", "--worker-output", "raw"},
		Listen:  []string{"web=" + harness.Host() + ":0"},
		Command: []string{"sh", "-c", script},
	})
	if status, err := harness.StatusFields(m.MasterPID()); err != nil || !strings.HasSuffix(status["NSpid"], " 1") {
		t.Fatalf("the master is not process 1 but %q, %v", status["NSpid"], err)
	}
	most := 0
	harness.Poll(t, "all orphans to be left", func() error {
		most = max(most, len(harness.Children(m.MasterPID())))
		if strings.Count(m.Stdout(), "all left") < 2 {
			return fmt.Errorf("stdout %q", m.Stdout())
		}
		return nil
	})
	if most <= 2 {
		t.Error("the master has inherited nobody")
	}
	accounts(t, m, serves(t, m, load.Config{Clients: 4, Total: 200}))
	harness.Poll(t, "the orphans to be reaped", func() error {
		if left := harness.Children(m.MasterPID()); len(left) != 2 {
			return fmt.Errorf("its children are %v", left)
		}
		return nil
	})
	if exits := m.Events(harness.Named("worker.exit")); len(exits) > 0 {
		t.Errorf("taken for a worker: %s", exits[0].Line)
	}
	m.Rebase() // the spawning shells were alive when the master was first measured
}

// decoyProgram takes a pid and waits until its input ends; then it says whether
// anybody has signalled it. In a pid namespace the next pid can be set
// (pid_namespaces(7), ns_last_pid).
const decoyProgram = `
import os, signal, sys, time
want = int(sys.argv[1])
for attempt in range(1000):
    with open("/proc/sys/kernel/ns_last_pid", "w") as f:
        f.write(str(want - 1))
    pid = os.fork()
    if pid == 0:
        os.setsid()
        time.sleep(60)
        os._exit(0)
    if pid == want:
        break
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
else:
    sys.exit("the pid was not to be had")
print("there", flush=True)
sys.stdin.read()
dead, status = os.waitpid(want, os.WNOHANG)
print("signalled" if dead else "untouched", flush=True)
if not dead:
    os.kill(want, signal.SIGKILL)
    os.waitpid(want, 0)
`

func TestF37PIDReuse(t *testing.T) { t.Parallel(); pidReuse(t, form{}) }

// A worker that is being stopped dies, and a stranger gets its pid, and leads a
// group of that number, before the time-outs are over that would have ended the
// worker: the stranger never hears of it.
func pidReuse(t *testing.T, f form) {
	rounds := f.of(4, 1000)
	m := asInit(t, harness.Options{
		Args: []string{"--policy", "rr", "--workers", "2", "--drain-timeout", "150ms", "--stop-timeout", "150ms"},
	})
	for round := range rounds {
		// Connections that keep the worker from being drained.
		before := m.Status().Workers[1].Acks
		finish := waiting(t, m, load.Config{Clients: 4, Total: 4, URI: func(int) string { return "/sleep?ms=700" }})
		busy := m.WaitStatus("all to be taken", func(s *harness.Status) bool { return s.Workers[1].Acks > before && s.Acked() == 4*(round+1) })
		pid := busy.Workers[1].PID
		outer := inside(t, m, pid)
		mark := m.Mark()
		m.Signal(syscall.SIGTTOU)
		m.WaitFrom(mark, 1, harness.OfSlot("worker.drain", 1))
		m.Kill(outer, syscall.SIGKILL)
		m.WaitFrom(mark, 1, harness.OfSlot("worker.exit", 1))

		decoy := exec.Command("python3", "-c", decoyProgram, strconv.Itoa(pid)) // in the namespace: see asInit
		stdin, err := decoy.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := decoy.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		decoy.Stderr = os.Stderr
		if err := decoy.Start(); err != nil {
			t.Fatal(err)
		}
		there := make([]byte, len("there\n"))
		_, err = io.ReadFull(out, there)
		span(400 * time.Millisecond) // both time-outs and more
		_ = stdin.Close()
		rest, _ := io.ReadAll(out)
		if werr := decoy.Wait(); err != nil || werr != nil || string(rest) != "untouched\n" {
			t.Fatalf("round %d: the stranger with pid %d says %q %q, %v, %v", round, pid, there, rest, err, werr)
		}
		mark = m.Mark()
		m.Signal(syscall.SIGTTIN)
		m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", 1))
		finish() // those of slot 1 died with it
	}
	m.AllReady()
}

// at returns when an event was logged.
func at(t *testing.T, e harness.Event) time.Time {
	t.Helper()
	when, err := time.Parse(time.RFC3339Nano, e.Str("time"))
	if err != nil {
		t.Fatal(err)
	}
	return when
}

func TestF38Clock(t *testing.T) { t.Parallel(); clock(t, form{}) }

// In a time namespace whose clocks are months ahead every time-out takes as long
// as ever. (The wall clock of a machine with other work cannot be set; no timer of
// rrd reads it.)
func clock(t *testing.T, _ form) {
	needsRoot(t)
	g := newGate(t)
	host := harness.Host() + ":0"
	m := harness.Start(t, harness.Options{
		Args:    []string{"--policy", "rr", "--workers", "2", "--queue-timeout", "400ms", "--hang-timeout", "600ms", "--respawn-min", "500ms"},
		Wrap:    []string{"unshare", "--time", "--monotonic", "10000000", "--boottime", "20000000"},
		Command: []string{harness.Build(t, "", "rrd/test/faultworker"), "-listen", "tcp/" + host, "-gate", g.path, "reject"},
		Listen:  []string{host},
	})
	mine, err := os.Readlink("/proc/self/ns/time")
	if err != nil {
		t.Fatal(err)
	}
	its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/time", m.MasterPID()))
	if err != nil || its == mine {
		t.Fatalf("the master has no time namespace of its own: %s, %v", its, err)
	}
	// The aim is 50 ms for each; above it is the machine's other work. Never early.
	late := func(what string, took, want time.Duration) {
		t.Helper()
		if t.Logf("%s: %v, want %v", what, took, want); took < want-want/10 || took > want+want/10+500*time.Millisecond {
			t.Errorf("%s took %v, want %v", what, took, want)
		}
	}
	r := run(t, m, load.Config{Clients: 10, Total: 10})
	for i := range r.Results {
		late("--queue-timeout", r.Results[i].Ended-r.Results[i].Started, 400*time.Millisecond)
	}
	g.open()
	serves(t, m, load.Config{Total: 10})
	pid := m.PID(0)
	mark, start := m.Mark(), time.Now()
	m.Kill(pid, syscall.SIGSTOP)
	hung := m.WaitFrom(mark, 1, harness.OfSlot("worker.hung", 0))[0]
	// It is asked ten times in the time-out: so much earlier may the last answer be.
	late("--hang-timeout", at(t, hung).Sub(start), 600*time.Millisecond)
	exit := m.WaitFrom(mark, 1, harness.OfSlot("worker.exit", 0))[0]
	again := m.WaitFrom(mark, 1, harness.OfSlot("worker.start", 0))[0]
	late("--respawn-min", at(t, again).Sub(at(t, exit)), 500*time.Millisecond)
	m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", 0))
	m.AllReady()
}

func TestF39LogSink(t *testing.T) { logSink(t, form{}) }

// A log that cannot be written, whatever the reason, costs records and nothing
// else.
func logSink(t *testing.T, f form) {
	dir := t.TempDir()
	for name, tt := range map[string]struct {
		wrap  string
		files func(t *testing.T) []*os.File
		root  bool
	}{
		"blocked": {wrap: `exec "$@" 2>&3 3>&-`, files: func(t *testing.T) []*os.File { return []*os.File{unread(t)} }},
		"closed":  {wrap: `exec "$@" 2>&-`},
		"reader gone": {wrap: `exec "$@" 2>&3 3>&-`, files: func(t *testing.T) []*os.File {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			_ = r.Close()
			t.Cleanup(func() { _ = w.Close() })
			return []*os.File{w}
		}},
		"full disk": {root: true, wrap: `mount -t tmpfs -o size=64k none ` + dir + ` && exec "$@" 2>` + filepath.Join(dir, "log")},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.root {
				needsRoot(t)
			}
			t.Parallel()
			at := freePort(t)
			o := harness.Options{
				Args:    []string{"--policy", "rr", "--workers", "2"},
				Listen:  []string{at},
				Metrics: freePort(t),
				Wrap:    []string{"sh", "-c", tt.wrap, "sh"},
				Unready: true, // nobody can read that it is
			}
			if tt.root {
				o.Wrap = append([]string{"unshare", "--mount"}, o.Wrap...)
			}
			if tt.files != nil {
				o.Files = tt.files(t)
			}
			m := harness.Start(t, o)
			m.AllReady()
			m.Rebase()
			for range f.of(60, 2000) { // more than any of them holds
				m.Signal(syscall.SIGUSR1)
				accountsSince(t, m, m.Status(), load.Run(t.Context(), load.Config{Address: at, Clients: 4, Total: 10}))
			}
			if took := m.Stop(); took > soon {
				t.Errorf("it took %v to stop", took)
			}
		})
	}
}

// Nor does a log that nobody reads keep rrd from ending, with the reason or without.
func TestEndsWithABlockedLog(t *testing.T) {
	t.Parallel()
	log := unread(t)
	fd := int(log.Fd()) // once: it makes the pipe block
	if err := syscall.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	for err := error(nil); err == nil; {
		_, err = syscall.Write(fd, make([]byte, 4096))
	}
	if err := syscall.SetNonblock(fd, false); err != nil { // the master has the flag, too
		t.Fatal(err)
	}
	harness.Run(t, harness.Options{Args: []string{"--workers", "1"}, Command: []string{"false"}, NoMetrics: true, ExitCode: 3,
		Wrap: []string{"sh", "-c", `exec "$@" 2>&3 3>&-`, "sh"}, Files: []*os.File{log}})
}

func TestF40Starved(t *testing.T) { t.Parallel(); starved(t, form{}) }

// A fifth of a core for master, workers and some that only burn it: slow, but
// nobody is lost and nobody is taken for hung.
func starved(t *testing.T, f form) {
	lasts := time.Duration(f.of(3000, 60000)) * time.Millisecond
	burners := f.of(2, 8)
	group := cgroup(t, "cpu")
	put(t, group, "cpu.cfs_quota_us", "20000") // of 100,000
	enter := []string{"sh", "-c", "echo $$ > " + filepath.Join(group, "cgroup.procs") + ` && exec "$@"`, "sh"}
	m := harness.Start(t, harness.Options{
		Args: []string{"--policy", "rr", "--workers", "2", "--hang-timeout", "5s", "--drain-timeout", "20s"}, Wrap: enter,
	})
	for range burners {
		burner := exec.Command(enter[0], append(enter[1:], "sh", "-c", "while :; do :; done")...)
		if err := burner.Start(); err != nil {
			t.Fatal(err)
		}
		defer burner.Wait()         //nolint:errcheck // it was killed
		defer burner.Process.Kill() //nolint:errcheck // as above
	}
	r := serves(t, m, load.Config{Rate: 40, Duration: lasts, Timeout: patient})
	accounts(t, m, r)
	for _, name := range []string{"worker.hung", "worker.exit"} {
		if e := m.Events(harness.Named(name)); len(e) > 0 {
			t.Error(e[0].Line)
		}
	}
}

// The master dies while its workers cannot run: what was sent to them is served
// when they can, what waited in the master or in the kernel is reset. Workers that
// are stopped end instead: at the death of its parent the kernel sends SIGHUP to a
// process group with stopped members (credentials(7), "orphaned").
func TestMasterDiesWithAQueue(t *testing.T) {
	const workers, window, n = 2, 4, 30
	for _, how := range []string{"frozen", "stopped"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			dir := ""
			if how == "frozen" {
				dir = cgroup(t, "freezer")
			}
			m := harness.Start(t, harness.Options{
				Args:     []string{"--policy", "rr", "--workers", strconv.Itoa(workers), "--busy-after", "off", "--queue-limit", "10"},
				ExitCode: -1,
			})
			pids := []int{m.PID(0), m.PID(1)}
			for _, pid := range pids {
				if dir == "" {
					m.Kill(pid, syscall.SIGSTOP)
				} else {
					put(t, dir, "cgroup.procs", strconv.Itoa(pid))
				}
			}
			if dir != "" {
				t.Cleanup(func() { put(t, dir, "freezer.state", "THAWED") })
				put(t, dir, "freezer.state", "FROZEN")
			}
			finish := waiting(t, m, load.Config{Clients: n, Total: n})
			m.WaitStatus("the queue to be full", func(s *harness.Status) bool { return s.Accepted() == workers*window+10 })
			m.WaitStatus("the kernel to have the rest", func(*harness.Status) bool {
				_, samples := m.Metrics()
				return sample(samples, "rrd_listener_accept_queue_connections", "listener=") == n-workers*window-10
			})
			m.Signal(syscall.SIGKILL)
			m.WaitExit()
			served := 0
			if dir != "" {
				served = workers * window
				put(t, dir, "freezer.state", "THAWED")
			}
			if r := finish(); r.Count(load.OK) != served || r.Count(load.Reset)+r.Count(load.Empty) != n-served {
				t.Errorf("%d should be served: %v", served, r)
			}
		})
	}
}

// Programs that know nothing of rrd go on without it, until somebody ends them.
func TestMasterDiesBeforeListenFDsWorkers(t *testing.T) {
	for _, policy := range []string{"none", "reuseport"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			m := harness.Start(t, harness.Options{
				Args:    []string{"--policy", policy, "--workers", "2", "--worker-protocol", "listen-fds", "--ready-after", "500ms"},
				Command: []string{"python3", "-c", listenFDsProgram}, ExitCode: -1,
			})
			pids := []int{m.PID(0), m.PID(1)}
			serves(t, m, load.Config{Total: 20, Judge: load.AnyOK})
			m.Signal(syscall.SIGKILL)
			m.WaitExit()
			if r := load.Run(t.Context(), load.Config{Address: m.Addr(), Clients: 4, Total: 40, Judge: load.AnyOK}); r.Count(load.OK) != 40 {
				t.Error(r)
			}
			for _, pid := range pids {
				m.Kill(pid, syscall.SIGKILL)
			}
		})
	}
}
