//go:build linux

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// Workers that are well used, old or big are replaced, one at a time and successor first.

func recycled(slot int) harness.Match { return harness.OfSlot("worker.recycle", slot) }

// Under load workers are replaced for what they have taken, and nobody is lost.
func TestRecycleByConnections(t *testing.T) {
	t.Parallel()
	m := rr(t, 2, "--max-connections-per-worker", "100")
	finish := under(t, m, 400)
	for slot := range 2 {
		e := m.WaitFrom(0, 2, recycled(slot))[1]
		if !strings.Contains(e.Str("reason"), "--max-connections-per-worker 100") {
			t.Error(e.Line)
		}
	}
	if r := finish(); len(r.Failed()) > 0 {
		t.Error(r)
	}
	s := m.AllReady()
	for _, w := range s.Workers {
		if w.Starts["recycle"] < 1 || w.Exits["code"]+w.Exits["signal"]+w.Exits["killed_stuck"] > 0 {
			t.Errorf("slot %d: starts %v, exits %v", w.Slot, w.Starts, w.Exits)
		}
		if w.Generation != 1 {
			t.Errorf("slot %d is of generation %d: a respawn keeps it", w.Slot, w.Generation)
		}
	}
	oneAtATime(t, m)
}

// oneAtATime checks by the log that no worker was recycled while a successor was still
// to come, and that each old one drained only when its successor was ready.
func oneAtATime(t *testing.T, m *harness.Master) {
	t.Helper()
	pending := -1
	for _, e := range m.Events(nil) {
		switch e.Name {
		case "worker.recycle":
			if pending >= 0 {
				t.Errorf("slot %d is recycled while slot %d is: %s", e.Int("worker"), pending, e.Line)
			}
			pending = e.Int("worker")
		case "worker.ready":
			if pending == e.Int("worker") {
				pending = -1
			}
		case "worker.drain":
			if pending == e.Int("worker") && len(m.Events(harness.Named("drain.start"))) == 0 {
				t.Errorf("it drains before its successor is ready: %s", e.Line)
			}
		}
	}
}

// By age, which a reload changes while rrd runs.
func TestRecycleByAge(t *testing.T) {
	t.Parallel()
	c := startConfigured(t, harness.Options{}, "workers = 2\ncanary-time = \"off\"\n")
	finish := under(t, c.Master, 200)
	c.write("workers = 2\ncanary-time = \"off\"\nmax-age = \"2s\"\n")
	mark := c.Mark()
	if why := c.reload(); why != "" {
		t.Fatal(why)
	}
	for slot := range 2 {
		e := c.WaitFrom(mark, 1, recycled(slot))[0]
		if !strings.Contains(e.Str("reason"), "--max-age 2s") {
			t.Error(e.Line)
		}
	}
	// And it does not stand in the way of reloads, one of which ends it.
	c.write("workers = 2\ncanary-time = \"off\"\n")
	if why := c.reload(); why != "" {
		t.Error(why)
	}
	if r := finish(); len(r.Failed()) > 0 {
		t.Error(r)
	}
}

// By size: a program that has grown is replaced by one that has not.
func TestRecycleByMemory(t *testing.T) {
	t.Parallel()
	m := rr(t, 1, "--max-rss", "64MB")
	small := m.PID(0)
	serves(t, m, load.Config{Total: 10})
	span(2500 * time.Millisecond) // in which it is looked at twice
	if now := m.PID(0); now != small {
		t.Fatalf("a small worker was replaced: %v", m.Events(recycled(0)))
	}
	big := rr(t, 1, "--max-rss", "1MB")
	if e := big.Wait(recycled(0)); !strings.Contains(e.Str("reason"), "--max-rss 1 MB") {
		t.Error(e.Line)
	}
}

// A successor that fails leaves the old one, and is tried again after a pause.
func TestRecycleFails(t *testing.T) {
	t.Parallel()
	broken := filepath.Join(t.TempDir(), "broken")
	command := []string{"sh", "-c", fmt.Sprintf(`test -e %s && exit 7; exec "$@"`, broken), "sh", userProgram(t), "-addr", "web"}
	m := harness.Start(t, harness.Options{Listen: []string{"web=" + harness.Host() + ":0"}, Command: command,
		Args: []string{"--policy", "rr", "--workers", "1", "--max-age", "1s", "--respawn-min", "1s", "--respawn-max", "2s",
			"--hook-before-spawn", "true"}})
	if err := os.WriteFile(broken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	failed := m.WaitFrom(m.Mark(), 2, harness.Named("worker.recycle_failed"))
	if !strings.Contains(failed[0].Str("error"), "exited with code 7") {
		t.Error(failed[0].Line)
	}
	pid := m.PID(0)
	if pause := timeOf(t, failed[1]).Sub(timeOf(t, failed[0])); pause < 900*time.Millisecond {
		t.Errorf("tried again after %v", pause)
	}
	serves(t, m, load.Config{Address: m.AddrOf("web"), Total: 10, Judge: hello(true)})
	if now := m.PID(0); now != pid {
		t.Errorf("worker %d, was %d", now, pid)
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	harness.Poll(t, "another worker", func() error {
		if !harness.Alive(pid) {
			return nil
		}
		return fmt.Errorf("worker %d is still there", pid)
	})
	m.Signal(syscall.SIGTERM)
	m.WaitExit()
}
