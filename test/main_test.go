//go:build linux

package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/test/harness"
	"rrd/test/load"
)

// The tests of this package use the built program as a user does: real processes,
// real clients, and only what is documented. What all of them check at their end
// is told in package harness, who judges whether a connection was lost in package
// load.

func TestMain(m *testing.M) { harness.Main(m) }

// rr starts a master with n built-in workers.
func rr(t *testing.T, n int, args ...string) *harness.Master {
	t.Helper()
	return policy(t, "rr", n, args...)
}

func policy(t *testing.T, name string, n int, args ...string) *harness.Master {
	t.Helper()
	return harness.Start(t, harness.Options{Args: append([]string{"--policy", name, "--workers", strconv.Itoa(n)}, args...)})
}

// run loads the master, watching the law, and returns the ledger.
func run(t *testing.T, m *harness.Master, cfg load.Config) *load.Report {
	t.Helper()
	if cfg.Address == "" {
		cfg.Address = m.Addr()
	}
	stop := m.WatchLaw()
	r := load.Run(t.Context(), cfg)
	stop()
	t.Log(r)
	return r
}

// serves is run where every connection must be answered.
func serves(t *testing.T, m *harness.Master, cfg load.Config) *load.Report {
	t.Helper()
	r := run(t, m, cfg)
	if len(r.Failed()) > 0 {
		t.Errorf("%d of %d connections failed: %v", len(r.Failed()), len(r.Results), r)
	}
	return r
}

// accounts checks the idle master's books against the ledger: each connection was
// accepted and acked once, and by the worker whose answer the client got. It is
// for tests whose clients all came from these reports and lost nothing.
func accounts(t *testing.T, m *harness.Master, reports ...*load.Report) *harness.Status {
	t.Helper()
	s := m.Idle()
	answered := make(map[int]int)
	total := 0
	for _, r := range reports {
		total += len(r.Results)
		for slot, n := range r.BySlot() {
			answered[slot] += n
		}
	}
	if s.Accepted() != total || s.Acked() != total || s.Dropped() != 0 {
		t.Errorf("accepted %d, acked %d, dropped %d; the clients made %d connections", s.Accepted(), s.Acked(), s.Dropped(), total)
	}
	for _, w := range s.Workers {
		if w.Acks != answered[w.Slot] {
			t.Errorf("slot %d has acked %d connections and answered %d", w.Slot, w.Acks, answered[w.Slot])
		}
	}
	return s
}

// lacks skips a test for what this machine does not have: root, a tool, a kind of
// control group. In CI, where CI is true, that is a failure: a row that silently no
// longer runs proves nothing. What a CI knowingly does without it names, separated by
// commas, in E2E_WITHOUT.
func lacks(t *testing.T, what string, reason any) {
	t.Helper()
	known := slices.Contains(strings.Split(os.Getenv("E2E_WITHOUT"), ","), what)
	if os.Getenv("CI") == "true" && !known {
		t.Fatalf("CI is without %s: %v; install or allow it, or name it in E2E_WITHOUT", what, reason)
	}
	t.Skipf("no %s: %v", what, reason)
}

// needsTool is for tests that run another program.
func needsTool(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			lacks(t, name, err)
		}
	}
}

// needsRoot is for tests that only root can make.
func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		lacks(t, "root", "this needs another identity, or other rights, for a process")
	}
}

// gate is a FIFO that fault workers wait at; open opens it for all of them.
type gate struct {
	t    *testing.T
	path string
	f    *os.File
}

func newGate(t *testing.T) *gate {
	t.Helper()
	g := &gate{t: t, path: filepath.Join(t.TempDir(), "gate")}
	t.Cleanup(func() { _ = g.f.Close() }) // nil: nobody has opened it
	if err := unix.Mkfifo(g.path, 0o600); err != nil {
		t.Fatal(err)
	}
	return g
}

// open keeps the FIFO open until the master has ended, for late comers.
func (g *gate) open() {
	g.t.Helper()
	var err error
	if g.f, err = os.OpenFile(g.path, os.O_RDWR, 0); err != nil {
		g.t.Fatal(err)
	}
}

// faulty starts n fault workers; args are the fault worker's.
func faulty(t *testing.T, n int, flags []string, args ...string) *harness.Master {
	t.Helper()
	at := harness.Host() + ":0"
	command := append([]string{harness.Build(t, "", "rrd/test/faultworker"), "-listen", "tcp/" + at}, args...)
	return harness.Start(t, harness.Options{
		Args:    append([]string{"--policy", "rr", "--workers", strconv.Itoa(n)}, flags...),
		Listen:  []string{at},
		Command: command,
	})
}
