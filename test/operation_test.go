//go:build linux

package test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
)

// The lines of "A first service" in docs/operation.md, as a new user types them, but for
// the address.
func TestDocumentedFirstService(t *testing.T) {
	t.Parallel()
	needsTool(t, "sh", "curl", "sed", "mktemp")
	page, err := os.ReadFile(filepath.Join("..", "docs", "operation.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, script, found := strings.Cut(string(page), "\n```sh\n")
	script, _, closed := strings.Cut(script, "\n```\n")
	if !found || !closed {
		t.Fatal("docs/operation.md has no block of sh")
	}
	script = strings.ReplaceAll(script, "127.0.0.1:8080", harness.Host()+":8080")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-eu", "-c", script)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir(), "RRD_METRICS=off", "CGO_ENABLED=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{`"worker":0`, "slot 0: restarted", "upgraded: version next", `"upgrade.done"`, `"connections_cut":0`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("nothing says %s:\n%s", want, out)
		}
	}
}

// What the page tells of HAProxy is read by HAProxy; F53 runs the like.
func TestDocumentedHAProxy(t *testing.T) {
	t.Parallel()
	haproxy := findHAProxy(t)
	page, err := os.ReadFile(filepath.Join("..", "docs", "operation.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, backend, found := strings.Cut(string(page), "\nbackend app\n")
	backend, _, closed := strings.Cut(backend, "\n```\n")
	if !found || !closed {
		t.Fatal("docs/operation.md has no backend app")
	}
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	text := "defaults\n\ttimeout connect 1s\n\ttimeout client 1s\n\ttimeout server 1s\n" +
		"frontend front\n\tmode tcp\n\tbind " + harness.Host() + ":8080\n\tdefault_backend app\nbackend app\n" + backend + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(haproxy, "-c", "-f", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
