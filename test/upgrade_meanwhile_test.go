//go:build linux

package test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"rrd/test/harness"
)

// installSlow puts a program there whose check run is under way from the return of the
// next upgrade's mark until the gate is opened.
func (u *upgradable) installSlow() (checking func(), open func()) {
	u.t.Helper()
	began, gate := u.program+".began", u.program+".gate"
	for _, path := range []string{began, gate} {
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			u.t.Fatal(err)
		}
	}
	script := fmt.Sprintf("#!/bin/sh\nif [ \"$1\" = __rrd-check-state ]; then echo > %s; read x < %s; fi\nexec %s \"$@\"\n", began, gate, harness.RRD(u.t))
	writeProgram(u.t, u.program+".new", []byte(script))
	if err := os.Rename(u.program+".new", u.program); err != nil {
		u.t.Fatal(err)
	}
	checking = func() {
		if _, err := os.ReadFile(began); err != nil {
			u.t.Fatal(err)
		}
	}
	open = func() {
		if err := os.WriteFile(gate, []byte("\n"), 0); err != nil {
			u.t.Fatal(err)
		}
	}
	return checking, open
}

// A TERM that comes while the new program is being checked is not forgotten by it, also
// where a lame duck still serves.
func TestTermInAnUpgrade(t *testing.T) {
	t.Parallel()
	u := startUpgradable(t, harness.Options{Args: []string{"--workers", "2", "--lame-duck", "2s"}})
	checking, open := u.installSlow()
	mark := u.Mark()
	u.Signal(syscall.SIGUSR2)
	checking()
	u.Signal(syscall.SIGTERM)
	u.WaitFrom(mark, 1, harness.Named("lameduck.start"))
	open()
	e := u.WaitFrom(mark, 1, func(e harness.Event) bool { return e.Name == "upgrade.done" || e.Name == "upgrade.failed" })[0]
	if why := e.Str("error"); !strings.Contains(why, "being stopped") {
		t.Errorf("upgrade: %q", why)
	}
	u.WaitExit()
}

// HUP and USR2 that come meanwhile are heeded by the new program.
func TestSignalsInAnUpgrade(t *testing.T) {
	t.Parallel()
	u := startUpgradable(t, harness.Options{Args: []string{"--workers", "1", "--canary-time", "off"}})
	checking, open := u.installSlow()
	mark := u.Mark()
	u.Signal(syscall.SIGUSR2)
	checking()
	u.Signal(syscall.SIGHUP)
	u.Signal(syscall.SIGUSR2)
	u.install(harness.RRD(u.t)) // whose check run needs no gate
	open()
	u.WaitFrom(mark, 2, harness.Named("upgrade.done"))
	u.WaitFrom(mark, 1, harness.Named("reload.done"))
	u.AllReady()
}

// A worker that ends while the pool comes to a stand is told of by its hook all the same.
func TestHookInAnUpgrade(t *testing.T) {
	t.Parallel()
	told := filepath.Join(t.TempDir(), "told")
	// Somebody holds its output, which is read for a while longer.
	u := startUpgradable(t, harness.Options{
		Args:    []string{"--workers", "2", "--worker-output", "json", "--hook-worker-exit", "echo $RRD_WORKER_PID >> " + told},
		Command: []string{"/bin/sh", "-c", `setsid sleep 2 & exec "$0" -addr :80`, userProgram(t)},
	})
	checking, open := u.installSlow()
	mark, pid := u.Mark(), u.PID(0)
	u.Signal(syscall.SIGUSR2)
	checking()
	u.Kill(pid, syscall.SIGKILL)
	open()
	u.WaitFrom(mark, 1, harness.Named("upgrade.done"))
	u.WaitFrom(mark, 1, harness.OfSlot("worker.exit", 0))
	u.AllReady()
	harness.Poll(t, "the hook", func() error {
		text, err := os.ReadFile(told)
		if want := fmt.Sprintf("%d\n", pid); err == nil && string(text) != want {
			err = fmt.Errorf("it was told of %q, want %q", text, want)
		}
		return err
	})
	u.Rebase()
}

// The files of sockets that have crossed an upgrade are removed at the end.
func TestSocketFilesAfterAnUpgrade(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	m := harness.Start(t, harness.Options{Args: []string{"--workers", "1", "--metrics", "unix:" + filepath.Join(dir, "metrics")},
		Listen: []string{"unix:" + filepath.Join(dir, "web")}, NoMetrics: true})
	m.Signal(syscall.SIGUSR2)
	m.Wait(harness.Named("upgrade.done"))
	m.Stop()
	for _, name := range []string{"metrics", "web"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Workers have the limit of open files that rrd was started with, whatever it needs itself,
// also those that start after an upgrade.
func TestFileLimitAfterAnUpgrade(t *testing.T) {
	t.Parallel()
	u := startUpgradable(t, harness.Options{Args: []string{"--policy", "none", "--worker-protocol", "listen-fds", "--ready-after", "50ms", "--workers", "1"},
		Command: []string{"sleep", "1000"}, // no program of Go, which raises it by itself
		Wrap:    []string{"/bin/sh", "-c", `ulimit -Sn 300; exec "$0" "$@"`}})
	limits := func() string {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", u.PID(0)))
		if err != nil {
			t.Fatal(err)
		}
		_, line, _ := strings.Cut(string(text), "Max open files")
		line, _, _ = strings.Cut(line, "\n")
		return line
	}
	before, mark := limits(), u.Mark()
	u.Signal(syscall.SIGHUP)
	u.WaitFrom(mark, 1, harness.Named("reload.done"))
	if after := limits(); after != before {
		t.Errorf("%q, was %q", after, before)
	}
}
