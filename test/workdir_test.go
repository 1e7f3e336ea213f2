//go:build linux

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"rrd/test/harness"
)

// A working directory that is reached by a link leads to the release of now: in a reload,
// at a respawn, after an upgrade in place, and when the old release is deleted.
func TestWorkingDirectoryByALink(t *testing.T) {
	t.Parallel()
	run := "exec " + userProgram(t) + " -addr web"
	r := newReleases(t, run, run, run)
	for i := range 3 {
		text := fmt.Sprintf("command = [\"./app\"]\nworkers = 2\ncanary-time = \"off\"\nrespawn-max = \"1s\"\nlisten = [\"web=%s:0\"]\n", harness.Host())
		if i > 0 {
			text = strings.Replace(text, "web=", fmt.Sprintf("r%d=%s:0\", \"web=", i, harness.Host()), 1)
		}
		if err := os.WriteFile(filepath.Join(r.dir(i), "rrd.toml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m := harness.Start(t, harness.Options{Listen: []string{}, Args: []string{"--config", "rrd.toml"},
		Wrap: []string{"sh", "-c", `cd "$0" && export PWD="$0" && exec "$@"`, r.link}})
	c := &configured{Master: m, t: t}
	in := func(release int) {
		t.Helper()
		for _, pid := range c.pids() {
			if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err != nil || dir != r.dir(release) {
				t.Errorf("a worker is in %s, want %s: %v", dir, r.dir(release), err)
			}
		}
	}
	in(0)
	r.flip(1)
	if err := os.RemoveAll(r.dir(0)); err != nil {
		t.Fatal(err)
	}
	if why := c.reload(); why != "" {
		t.Fatal(why)
	}
	in(1)
	c.AddrOf("r1") // its file is the one of the release
	mark := c.Mark()
	c.Kill(c.pids()[0], syscall.SIGKILL)
	c.WaitFrom(mark, 1, harness.Named("worker.ready"))
	in(1)
	c.Signal(syscall.SIGUSR2)
	c.Wait(harness.Named("upgrade.done"))
	r.flip(2)
	if why := c.reload(); why != "" {
		t.Fatal(why)
	}
	in(2)
	if err := os.Remove(r.link); err != nil {
		t.Fatal(err)
	}
	if why := c.reload(); !strings.Contains(why, r.link) {
		t.Errorf("%q does not name the directory", why)
	}
	r.flip(2)
	c.Rebase() // one listener more than at the start
}
