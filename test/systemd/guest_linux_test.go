package systemd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
)

// guest is a running systemd with the units of rrd. It has a network of its own, so rrd
// listens on port 80.
type guest struct {
	t       *testing.T // the test that runs now
	pid     int        // of its process 1, outside
	exitedC chan struct{}
}

// boot boots the Debian in root. The guest ends with the test.
func boot(t *testing.T, root string) *guest {
	t.Helper()
	units, err := filepath.Abs("../../docs/deploy/systemd")
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	cgroup := fmt.Sprintf("rrd-test-%d", os.Getpid())
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("./boot.sh", root, work, cgroup)
	cmd.Env = append(os.Environ(), "UNITS="+units, "RRD="+harness.RRD(t), "RRDCTL="+harness.Build(t, "", "rrd/cmd/rrdctl"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Setsid:     true, Pdeathsig: syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("this machine gives no new namespaces, which take CAP_SYS_ADMIN: %v", err)
	}
	g := &guest{t: t, pid: cmd.Process.Pid, exitedC: make(chan struct{})}
	go g.reap(cmd)
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // and with its process 1 the kernel kills all of them
		<-g.exitedC
		removeCgroup(t, cgroup)
	})
	harness.Poll(g.t, "systemd to run", func() error {
		select {
		case <-g.exitedC:
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("systemd did not boot: %s", text)
		default:
		}
		// "degraded" where some unit of Debian does not like namespaces.
		if out, _ := g.try("systemctl", "is-system-running"); out != "running" && out != "degraded" {
			return fmt.Errorf("%q", out)
		}
		return nil
	})
	return g
}

// reap waits for process 1. The cleanup of boot waits for it.
func (g *guest) reap(cmd *exec.Cmd) {
	_ = cmd.Wait() // killed
	close(g.exitedC)
}

// removeCgroup removes the cgroup of a guest that has ended, in a mount namespace that ends
// with the command.
func removeCgroup(t *testing.T, name string) {
	t.Helper()
	const script = `mount -t cgroup2 cgroup2 "$1"; for try in $(seq 100); do
		find "$1/$2" -depth -type d -exec rmdir {} + && exit 0; sleep 0.05; done; exit 1`
	out, err := exec.Command("unshare", "--mount", "--propagation", "private", "bash", "-c", script, "bash", t.TempDir(), name).CombinedOutput()
	if err != nil {
		t.Errorf("the cgroup %s is left: %v\n%s", name, err, out)
	}
}

// try runs a command in the guest and returns its output without the last line feed.
func (g *guest) try(argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "nsenter", append([]string{"-t", strconv.Itoa(g.pid), "-a", "--"}, argv...)...).CombinedOutput()
	return strings.TrimSuffix(string(out), "\n"), err
}

// run is try for a command that must succeed.
func (g *guest) run(argv ...string) string {
	g.t.Helper()
	out, err := g.try(argv...)
	if err != nil {
		status, _ := g.try("systemctl", "status", "--no-pager", "-n", "20", "rrd")
		g.t.Fatalf("%q: %v\n%s\n%s", argv, err, out, status)
	}
	return out
}

// fails runs a command that must not succeed.
func (g *guest) fails(argv ...string) {
	g.t.Helper()
	if out, err := g.try(argv...); err == nil {
		g.t.Errorf("%q succeeded\n%s", argv, out)
	}
}

// write puts a file into the guest.
func (g *guest) write(path, text string) {
	g.t.Helper()
	g.run("sh", "-c", `mkdir -p "${1%/*}"; printf %s "$2" >"$1"`, "sh", path, text)
}

// property is one of rrd.service.
func (g *guest) property(name string) string {
	g.t.Helper()
	return g.run("systemctl", "show", "--value", "-p", name, "rrd.service")
}

// must fails the test unless a property of rrd.service has a value.
func (g *guest) must(name, want string) {
	g.t.Helper()
	if got := g.property(name); got != want {
		g.t.Errorf("%s is %q, want %q", name, got, want)
	}
}

// becomes waits until a property of rrd.service has a value.
func (g *guest) becomes(name, want string) {
	g.t.Helper()
	harness.Poll(g.t, name+" to be "+want, func() error {
		if got := g.property(name); got != want {
			return fmt.Errorf("%q", got)
		}
		return nil
	})
}

// reset brings the units back to how they are shipped, stopped, with a configuration.
func (g *guest) reset(config string) {
	g.t.Helper()
	g.run("systemctl", "stop", "rrd.socket", "rrd.service")
	g.run("rm", "-rf", "/etc/systemd/system/rrd.service.d")
	g.run("systemctl", "daemon-reload")
	_, _ = g.try("systemctl", "reset-failed", "rrd.socket", "rrd.service") // an error for a unit that was never loaded
	g.write("/etc/rrd/rrd.toml", config)
}

// dropIn changes rrd.service.
func (g *guest) dropIn(text string) {
	g.t.Helper()
	g.write("/etc/systemd/system/rrd.service.d/test.conf", text)
	g.run("systemctl", "daemon-reload")
}

// answer is an answer of the built-in worker.
type answer struct {
	Worker, PID, Generation int
}

// get asks the built-in worker on port 80. It waits in the queue while no master runs.
func (g *guest) get() (a answer, err error) {
	const script = `exec 3<>/dev/tcp/127.0.0.1/80; printf 'GET / HTTP/1.0\r\n\r\n' >&3; cat <&3`
	out, err := g.try("timeout", "20", "bash", "-euc", script)
	if err != nil {
		return a, fmt.Errorf("%w: %s", err, out)
	}
	_, body, ok := strings.Cut(out, "\r\n\r\n")
	if !ok {
		return a, fmt.Errorf("no answer: %q", out)
	}
	return a, json.Unmarshal([]byte(body), &a)
}

// serves fails the test unless rrd answers.
func (g *guest) serves() answer {
	g.t.Helper()
	a, err := g.get()
	if err != nil {
		g.t.Error(err)
	}
	return a
}

// record is a line of the journal.
type record struct {
	Priority string `json:"PRIORITY"`
	Message  string `json:"MESSAGE"`
	Unit     string `json:"_SYSTEMD_UNIT"`
}

// journal returns all lines of rrd's processes.
func (g *guest) journal() (records []record) {
	g.t.Helper()
	g.run("journalctl", "--sync")
	d := json.NewDecoder(strings.NewReader(g.run("journalctl", "-o", "json", "--no-pager", "_SYSTEMD_UNIT=rrd.service")))
	for d.More() {
		var r record
		var wrong *json.UnmarshalTypeError
		// A message that is not text is an array of bytes: a stack of a crash.
		if err := d.Decode(&r); err != nil && !errors.As(err, &wrong) {
			g.t.Fatal(err)
		}
		records = append(records, r)
	}
	return records
}
