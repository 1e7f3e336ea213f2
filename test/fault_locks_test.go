//go:build linux

package test

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// A worker that holds a lock which the master would need, or clears a flag that the master
// relies on, harms nobody but itself: the others serve, the master answers, ends in time,
// and leaves the address to the next.

func TestWorkerThatLocksItsChannel(t *testing.T) {
	t.Parallel()
	attack{mode: "lock-channel", policy: "rr"}.run(t)
}

func TestWorkerThatLocksAConnection(t *testing.T) {
	t.Parallel()
	attack{mode: "lock-connection", policy: "rr", takes: 1}.run(t)
}

func TestWorkerThatMakesAcceptBlock(t *testing.T) {
	t.Parallel()
	// The master takes the socket over a second after the crash.
	attack{mode: "block-accept", policy: "reuseport", flags: []string{"--respawn-min", "1m", "--respawn-max", "1m"}, atOnce: true}.run(t)
}

func TestWorkerThatTrimsItsMessages(t *testing.T) {
	t.Parallel()
	attack{mode: "trim:40", policy: "rr", breaks: true}.run(t)
}

// As the first, and the master is killed while its helper hangs.
func TestKilledMasterWhoseChannelIsLocked(t *testing.T) {
	t.Parallel()
	attack{mode: "lock-channel", policy: "rr", kill: true}.run(t)
}

type attack struct {
	mode, policy string
	takes        int  // connections that each attack may take with it
	kill         bool // end the master with SIGKILL
	breaks       bool // it is a violation
	flags        []string
	atOnce       bool // the first process of slot 0 attacks
}

const attackLoad = 600

func (a attack) run(t *testing.T) {
	needsRoot(t) // userfaultfd(2)
	b := newBook(t)
	if a.atOnce {
		b.arm()
	}
	m := a.start(t, b, harness.Host()+":0", harness.Options{ExitCode: harness.AnyExit, Unready: a.atOnce})
	if a.atOnce {
		m.WaitReady()
		m.Wait(harness.OfSlot("worker.exit", 0))
	} else {
		b.arm()
		m.Kill(m.PID(0), syscall.SIGKILL) // its successor attacks
		m.WaitFrom(0, 2, harness.OfSlot("worker.start", 0))
	}
	finish := waiting(t, m, load.Config{Rate: 300, Total: attackLoad, Timeout: a.patience()})
	a.watch(t, m, b)
	r := finish()
	t.Log(r)
	attacks := max(len(b.strangers(m)), 1)
	if failed := attackLoad - r.Count(load.OK); failed > a.takes*attacks {
		t.Errorf("%d of the others' clients failed", failed-a.takes*attacks)
	}
	if a.breaks && len(m.Events(harness.Named("worker.broke"))) == 0 {
		t.Error("no worker was ended for it")
	}
	helpers := harness.Helpers(m.MasterPID())
	if a.kill {
		m.Signal(syscall.SIGKILL)
		m.WaitExit()
	} else if took := m.Stop(); took > 4*time.Second {
		t.Errorf("TERM took %v", took)
	}
	if a.kill { // the locked worker does not hear of it
		b.endAll(m)
	}
	next := a.start(t, b, m.Addr(), harness.Options{})
	if a.policy == "reuseport" { // the stranger has a socket of the same group
		b.endAll(m)
	}
	serves(t, next, load.Config{Total: 20})
	b.endAll(m)
	for _, pid := range helpers {
		harness.Poll(t, "the helpers to end", func() error {
			if harness.Alive(pid) {
				return fmt.Errorf("helper %d is in state %s", pid, harness.State(pid))
			}
			return nil
		})
	}
}

// patience is how long a client waits: those of a locked connection are not to hold the
// test up.
func (a attack) patience() time.Duration {
	if a.takes > 0 {
		return 4 * time.Second
	}
	return 15 * time.Second
}

func (a attack) start(t *testing.T, b *book, at string, o harness.Options) *harness.Master {
	t.Helper()
	o.Args = append([]string{"--policy", a.policy, "--workers", "3", "--user", "root",
		"--hang-timeout", "1s", "--drain-timeout", "2s", "--stop-timeout", "500ms"}, append(slices.Clone(quick), a.flags...)...)
	o.Listen = []string{at}
	o.Command = append([]string{harness.Build(t, "", "rrd/test/faultworker"), "-listen", "tcp/" + at, "-armed", b.armed,
		"-slots", "0", "-others", "lib"}, a.mode)
	return harness.Start(t, o)
}

// watch looks at the master during the attack, and ends further attacks once some have
// begun: then every slot serves in the end.
func (a attack) watch(t *testing.T, m *harness.Master, b *book) {
	t.Helper()
	disarmed := false
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		start := time.Now()
		status, _, err := m.Get("/-/healthy")
		if err != nil || status != http.StatusOK {
			t.Fatalf("/-/healthy: %d, %v", status, err)
		}
		m.Metrics()
		if took := time.Since(start); took > 5*time.Second { // the machine may be busy; a loop that waits does not answer at all
			t.Errorf("it took %v to answer", took)
		}
		if !disarmed && !a.kill && (a.mode != "lock-connection" || len(b.strangers(m)) > 0) && time.Until(end) < time.Second {
			b.disarm()
			disarmed = true
		}
	}
	if !disarmed {
		b.disarm()
	}
}

// strangers are the processes that attacks have left outside of every group.
func (b *book) strangers(m *harness.Master) []int {
	return b.find(m, "hold-connection", "clear-nonblock")
}

// endAll ends all fault workers of a master, and their strangers.
func (b *book) endAll(m *harness.Master) {
	b.t.Helper()
	harness.Poll(b.t, "the fault workers to end", func() error {
		left := b.find(m, "faultworker", "hold-connection", "clear-nonblock")
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if len(left) > 0 {
			return fmt.Errorf("%v are left", left)
		}
		return nil
	})
}

// find returns the processes of a master whose command line has one of words.
func (b *book) find(m *harness.Master, words ...string) (pids []int) {
	mark := slices.IndexFunc(m.Environ(), func(kv string) bool { return strings.HasPrefix(kv, "E2E_MARK=") })
	names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil || !slices.ContainsFunc(words, func(w string) bool { return strings.Contains(string(text), w) }) {
			continue
		}
		pid, _ := strconv.Atoi(strings.Split(name, "/")[2])
		if env, err := harness.Environ(pid); err == nil && pid != m.MasterPID() && "E2E_MARK="+env["E2E_MARK"] == m.Environ()[mark] {
			pids = append(pids, pid)
		}
	}
	return pids
}
