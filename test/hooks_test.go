//go:build linux

package test

import (
	"fmt"
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

// hookFile is a file that hooks append lines to.
type hookFile struct {
	t    *testing.T
	path string
}

func newHookFile(t *testing.T) *hookFile {
	t.Helper()
	return &hookFile{t, filepath.Join(t.TempDir(), "said")}
}

// says is a command that appends a line.
func (h *hookFile) says(text string) string { return fmt.Sprintf("echo %q >>%s", text, h.path) }

func (h *hookFile) lines() []string {
	text, err := os.ReadFile(h.path)
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

func (h *hookFile) wait(n int) []string {
	h.t.Helper()
	harness.Poll(h.t, fmt.Sprintf("%d lines of hooks", n), func() error {
		if lines := h.lines(); len(lines) < n {
			return fmt.Errorf("%q", lines)
		}
		return nil
	})
	return h.lines()
}

// Each hook hears what it should, in order, with the facts; what it writes is in the
// log.
func TestHooks(t *testing.T) {
	t.Parallel()
	h := newHookFile(t)
	m := rr(t, 1, append([]string{
		"--hook-before-start", h.says("$RRD_HOOK pid=$RRD_PID $RRD_WORKERS $RRD_POLICY $SECRET"),
		"--hook-before-spawn", h.says("$RRD_HOOK slot=$RRD_SLOT generation=$RRD_GENERATION"),
		"--hook-worker-ready", h.says("$RRD_HOOK slot=$RRD_SLOT generation=$RRD_GENERATION pid=$RRD_WORKER_PID") + "; echo out; echo err >&2",
		"--hook-worker-exit", h.says("$RRD_HOOK slot=$RRD_SLOT pid=$RRD_WORKER_PID $RRD_EXIT_CAUSE $RRD_EXIT_REQUESTED code=$RRD_EXIT_CODE signal=$RRD_EXIT_SIGNAL"),
	}, quick...)...)
	first := m.PID(0)
	h.wait(3)
	m.Kill(first, syscall.SIGKILL)
	h.wait(6)
	second := m.PID(0)
	m.Stop()
	got := h.wait(7)
	me := m.MasterPID()
	want := []string{
		fmt.Sprintf("before-start pid=%d 1 rr ", me),
		"before-spawn slot=0 generation=1",
		fmt.Sprintf("worker-ready slot=0 generation=1 pid=%d", first),
		fmt.Sprintf("worker-exit slot=0 pid=%d signal false code= signal=9", first),
		"before-spawn slot=0 generation=1",
		fmt.Sprintf("worker-ready slot=0 generation=1 pid=%d", second),
		fmt.Sprintf("worker-exit slot=0 pid=%d requested true code= signal=15", second),
	}
	// A spawn is asked for beside the hook of the exit that it follows from.
	slices.Sort(got[3:5])
	slices.Sort(want[3:5])
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	out := m.WaitFrom(0, 2, harness.Named("hook.output"))
	if out[0].Str("line") != "out" || out[1].Str("line") != "err" || out[0].Str("hook") != "worker-ready" || out[0].Int("worker") != 0 {
		t.Errorf("%s\n%s", out[0].Line, out[1].Line)
	}
}

// A hook that fails before the start ends it; nobody was served.
func TestHookBeforeStartFails(t *testing.T) {
	t.Parallel()
	for command, says := range map[string]string{
		"echo the database is gone >&2; exit 7": "hook before-start: exit status 7: the database is gone (from flag)",
		"exec /no/such/program":                 "hook before-start: exit status 127: ",
		"kill -9 $$":                            "hook before-start: signal: killed",
	} {
		m := harness.Run(t, harness.Options{Args: []string{"--hook-before-start", command}, ExitCode: 1})
		if !strings.Contains(m.Log(), "rrd: --hook-before-start: "+says) {
			t.Errorf("%s:\n%s", command, m.Log())
		}
		if opened := m.Events(harness.Named("listener.open")); len(opened) > 0 {
			t.Errorf("it has opened %v", opened)
		}
	}
}

// A hook that takes too long is killed with what it has started.
func TestHookTimeout(t *testing.T) {
	t.Parallel()
	h := newHookFile(t)
	command := "sleep 1000 & echo $! >>" + h.path + "; wait"
	m := harness.Run(t, harness.Options{Args: []string{"--hook-before-start", command, "--hook-timeout", "500ms"}, ExitCode: 1})
	if !strings.Contains(m.Log(), "it was killed after --hook-timeout 500ms") {
		t.Error(m.Log())
	}
	pid, err := strconv.Atoi(h.lines()[0])
	if err != nil {
		t.Fatal(err)
	}
	harness.Poll(t, "the sleeper to be gone", func() error {
		if harness.Alive(pid) {
			return fmt.Errorf("process %d lives", pid)
		}
		return nil
	})
}

// TERM does not wait for a hook before the start.
func TestHookBeforeStartIsInterrupted(t *testing.T) {
	t.Parallel()
	h := newHookFile(t)
	m := harness.Start(t, harness.Options{Args: []string{"--hook-before-start", h.says("here") + "; exec sleep 1000"}, Unready: true})
	h.wait(1)
	m.Signal(syscall.SIGTERM)
	if code := m.WaitExit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// A spawn that its hook refuses is tried again, and then succeeds.
func TestHookBeforeSpawnRefuses(t *testing.T) {
	t.Parallel()
	allowed := filepath.Join(t.TempDir(), "allowed")
	if err := os.WriteFile(allowed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m := rr(t, 2, append([]string{"--hook-before-spawn", "test -e " + allowed + " || { echo not now; exit 3; }"}, quick...)...)
	if err := os.Remove(allowed); err != nil {
		t.Fatal(err)
	}
	m.Kill(m.PID(0), syscall.SIGKILL)
	e := m.WaitFrom(0, 2, harness.Named("worker.spawn_failed"))[1]
	if !strings.Contains(e.Str("error"), "hook before-spawn: exit status 3: not now") || e.Int("worker") != 0 {
		t.Error(e.Line)
	}
	serves(t, m, load.Config{Total: 10}) // the other one
	if err := os.WriteFile(allowed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m.AllReady()
	// In a reload it stops the roll.
	pid := m.PID(1)
	if err := os.Remove(allowed); err != nil {
		t.Fatal(err)
	}
	mark := m.Mark()
	m.Signal(syscall.SIGHUP)
	if e := m.WaitFrom(mark, 1, harness.Named("reload.failed"))[0]; !strings.Contains(e.Str("error"), "not now") {
		t.Error(e.Line)
	}
	if now := m.PID(1); now != pid {
		t.Errorf("worker %d, was %d", now, pid)
	}
}

// With a hook that refuses every spawn no worker becomes ready.
func TestHookBeforeSpawnRefusesTheBoot(t *testing.T) {
	t.Parallel()
	m := harness.Run(t, harness.Options{Args: []string{"--workers", "2", "--hook-before-spawn", "echo never; false"}, ExitCode: 3})
	if !strings.Contains(m.Log(), "hook before-spawn: exit status 1: never") {
		t.Error(m.Log())
	}
}

// Nobody waits for a hook that hears of workers, nor is it left behind.
func TestHookThatHangs(t *testing.T) {
	t.Parallel()
	h := newHookFile(t)
	m := rr(t, 1, append([]string{"--hook-timeout", "off",
		"--hook-worker-ready", h.says("ready") + "; sleep 1000", "--hook-worker-exit", h.says("exit")}, quick...)...)
	h.wait(1)
	m.Kill(m.PID(0), syscall.SIGKILL)
	m.WaitFrom(0, 2, harness.Named("worker.ready"))
	serves(t, m, load.Config{Total: 10})
	m.Signal(syscall.SIGTERM)
	m.WaitFrom(0, 2, harness.Named("worker.exit"))
	m.TermUntilExit() // which does not wait for hooks
	if lines := h.lines(); !slices.Equal(lines, []string{"ready"}) {
		t.Errorf("%q", lines)
	}
}

// What a hook leaves running is no reason to wait for it.
func TestHookLeavesADaemon(t *testing.T) {
	t.Parallel()
	h := newHookFile(t)
	began := time.Now()
	m := rr(t, 1, "--hook-before-start", "sleep 1000 & echo $! >>"+h.path)
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("the start took %v", took)
	}
	pid, err := strconv.Atoi(h.lines()[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	m.Kill(pid, syscall.SIGKILL)
}

// As process 1 rrd reaps strangers, of whom hooks are none.
func TestHooksAsProcess1(t *testing.T) {
	h := newHookFile(t)
	m := asInit(t, harness.Options{Args: append([]string{"--workers", "2",
		"--hook-before-start", "true", "--hook-before-spawn", "sleep 0.01; exit 0", "--hook-worker-exit", h.says("$RRD_EXIT_SIGNAL") + "; exit 5"}, quick...)})
	for range 5 {
		mark := m.Mark()
		m.Kill(inside(t, m, m.PID(0)), syscall.SIGKILL)
		if e := m.WaitFrom(mark, 1, harness.Named("hook.failed"))[0]; !strings.Contains(e.Str("error"), "exit status 5") {
			t.Error(e.Line)
		}
		m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", 0))
	}
	if bad := m.Events(harness.Named("worker.spawn_failed")); len(bad) > 0 {
		t.Errorf("%v", bad)
	}
}

// Over the control socket it is heard, too, when all that is left to wait for is a hook.
func TestStopNowDuringTheLastHooks(t *testing.T) {
	t.Parallel()
	h := newHookFile(t)
	m := harness.Start(t, harness.Options{Control: true, Args: []string{"--workers", "1", "--hook-timeout", "10m",
		"--hook-worker-exit", h.says("exit") + "; sleep 1000"}})
	m.Signal(syscall.SIGTERM)
	h.wait(1)
	if c := m.Ctl("stop", "--now"); c.Code != 0 {
		t.Errorf("%+v", c)
	}
	m.WaitExit()
}
