//go:build linux

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// nodeHello writes a Node program that asks for its listener, and returns its path.
func nodeHello(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "server.js")
	const text = `require("http").createServer((q, s) => s.end("hello\n")).listen(0, "127.0.0.1")`
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// releases are two directories with a program each. Both are reached by one link, which
// leads to the first.
type releases struct {
	t    *testing.T
	link string
}

// newReleases writes the shell script of each release.
func newReleases(t *testing.T, scripts ...string) *releases {
	t.Helper()
	r := &releases{t: t, link: filepath.Join(t.TempDir(), "current")}
	for i, script := range scripts {
		if err := os.MkdirAll(r.dir(i), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(r.dir(i), "app"), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.flip(0)
	return r
}

func (r *releases) dir(i int) string {
	return filepath.Join(filepath.Dir(r.link), fmt.Sprintf("r%d", i))
}

// flip lets the link lead to another release.
func (r *releases) flip(i int) {
	r.t.Helper()
	if err := os.Symlink(r.dir(i), r.link+".new"); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(r.link+".new", r.link); err != nil {
		r.t.Fatal(err)
	}
}

// A release that is well in the first slot and fails in a later one leaves the old release
// serving everywhere: the same processes, though the link leads to the new one.
func TestReloadToAReleaseThatFailsLate(t *testing.T) {
	for name, tt := range map[string]struct {
		exec  string
		args  []string
		judge load.Judge
	}{
		"rr":        {"exec " + userProgram(t) + " -addr web", []string{"--policy", "rr"}, hello(true)},
		"none":      {"exec " + userProgram(t) + " -addr web", []string{"--policy", "none"}, hello(true)},
		"reuseport": {"exec " + userProgram(t) + " -addr web", []string{"--policy", "reuseport"}, hello(true)},
		"node":      {"exec node " + nodeHello(t), []string{"--worker-protocol", "node"}, load.AnyOK},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newReleases(t, tt.exec, `[ "$RRD_SLOT" = 1 ] && exit 7; `+tt.exec)
			listen := []string{"web=" + harness.Host() + ":0"}
			if name == "node" {
				listen = []string{} // it asks, and its listener must outlive the new workers
			}
			m := harness.Start(t, harness.Options{Control: true, Listen: listen, Command: []string{r.link + "/app"},
				Args: append([]string{"--workers", "3", "--canary-time", "200ms"}, tt.args...)})
			c := &configured{Master: m, t: t}
			before, mark := c.pids(), c.Mark()
			address := m.Addr()
			r.flip(1)
			finish := underWith(t, m, load.Config{Address: address, Rate: 100, Duration: 24 * time.Hour, Judge: tt.judge})
			if why := c.reload(); !strings.Contains(why, "slot 1") || !strings.Contains(why, "exited with code 7") {
				t.Errorf("%q", why)
			}
			if now := c.pids(); !slices.Equal(now, before) {
				t.Errorf("workers %v, were %v", now, before)
			}
			c.WaitFrom(mark, 2, harness.Named("worker.exit")) // that of slot 0 has drained
			if rep := finish(); len(rep.Failed()) > 0 {
				t.Error(rep)
			}
			for _, w := range c.AllReady().Workers {
				if w.Generation != 1 {
					t.Errorf("slot %d is of generation %d", w.Slot, w.Generation)
				}
			}
			for _, pid := range before {
				if e := c.Events(func(e harness.Event) bool { return e.Name == "worker.drain" && e.Int("worker_pid") == pid }); len(e) > 0 {
					t.Errorf("worker %d was told to drain", pid)
				}
			}
			c.Rebase() // the death has made rrd start helpers
		})
	}
}

// A reload that raises the number of workers and whose added one fails is a failed reload.
func TestReloadThatAddsAWorkerThatFails(t *testing.T) {
	t.Parallel()
	program := userProgram(t)
	file := func(workers int, shell string) string {
		return fmt.Sprintf("workers = %d\ncanary-time = \"100ms\"\nlisten = [\"web=%s:0\"]\ncommand = [\"sh\", \"-c\", '''%sexec %s -addr web''']\n",
			workers, harness.Host(), shell, program)
	}
	c := startConfigured(t, harness.Options{Listen: []string{}, Control: true}, file(2, ""))
	before := c.pids()
	text, err := os.ReadFile(c.path)
	if err != nil {
		t.Fatal(err)
	}
	c.write(strings.NewReplacer("workers = 2", "workers = 3", "'''exec", "'''[ $RRD_SLOT = 2 ] && exit 7; exec").Replace(string(text)))
	if r := c.Ctl("reload"); r.Code != 1 || !strings.Contains(r.Err, "slot 2") {
		t.Errorf("%+v", r)
	}
	if s := c.AllReady(); s.Desired != 2 {
		t.Errorf("%d workers are wanted, and there were 2", s.Desired)
	}
	if now := c.pids(); !slices.Equal(now, before) {
		t.Errorf("workers %v, were %v", now, before)
	}
	c.write(strings.Replace(string(text), "workers = 2", "workers = 3", 1))
	if r := c.Ctl("reload"); r.Code != 0 || !strings.Contains(r.Out, "slot 2: added") {
		t.Errorf("%+v", r)
	}
	if n := len(c.pids()); n != 3 {
		t.Errorf("%d workers", n)
	}
	c.Rebase() // one more process than at the start
}
