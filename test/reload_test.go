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

	"golang.org/x/sys/unix"

	"rrd/test/harness"
	"rrd/test/load"
)

// configured is a master with a file that the test rewrites.
type configured struct {
	*harness.Master
	t    *testing.T
	path string
}

func startConfigured(t *testing.T, o harness.Options, text string) *configured {
	t.Helper()
	c := &configured{t: t, path: filepath.Join(t.TempDir(), "rrd.toml")}
	c.write(text)
	o.Args = append([]string{"--config", c.path}, o.Args...)
	c.Master = harness.Start(t, o)
	return c
}

func (c *configured) write(text string) {
	c.t.Helper()
	if err := os.WriteFile(c.path, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// reload sends HUP and waits for what becomes of it: "" or why it failed.
func (c *configured) reload() string {
	c.t.Helper()
	mark := c.Mark()
	c.Signal(syscall.SIGHUP)
	e := c.WaitFrom(mark, 1, func(e harness.Event) bool { return e.Name == "reload.done" || e.Name == "reload.failed" })[0]
	return e.Str("error")
}

func (c *configured) pids() (pids []int) {
	for _, w := range c.AllReady().Workers {
		if w.State != "" {
			pids = append(pids, w.PID)
		}
	}
	return pids
}

// What the file changes takes effect, and no client notices: workers are of the next
// generation, kept listeners keep their socket.
func TestReload(t *testing.T) {
	t.Parallel()
	web, api, old := harness.Host()+":0", harness.Host()+":0", harness.Host()+":0"
	file := func(workers int, env string, listen ...string) string {
		return fmt.Sprintf("workers = %d\ncanary-time = \"200ms\"\nenv = [\"WHO=%s\"]\nlisten = [\"%s\"]\n", workers, env, strings.Join(listen, `", "`))
	}
	c := startConfigured(t, harness.Options{Listen: []string{}}, file(2, "first", "web="+web, "old="+old))
	before := c.pids()
	address := c.AddrOf("web")
	finish := underWith(t, c.Master, load.Config{Address: address, Rate: 300, Duration: 24 * time.Hour})
	inode := listenInode(t, address)

	c.write(file(3, "second", "web="+web+",backlog=77", "api="+api))
	if why := c.reload(); why != "" {
		t.Fatal(why)
	}
	c.WaitStatus("three of generation 2", func(s *harness.Status) bool {
		return s.Desired == 3 && !slices.ContainsFunc(s.Workers, func(w harness.Worker) bool { return w.State != "ready" || w.Generation != 2 && w.Slot < 2 })
	})
	if r := finish(); len(r.Failed()) > 0 {
		t.Errorf("%v", r)
	}
	if now := listenInode(t, address); now != inode {
		t.Errorf("the listener is another: inode %s, was %s", now, inode)
	}
	for _, pid := range c.pids() {
		if slices.Contains(before, pid) {
			t.Errorf("worker %d was not replaced", pid)
		}
		if env := environOf(t, pid); !slices.Contains(env, "WHO=second") {
			t.Errorf("worker %d has %q", pid, env)
		}
	}
	if r := load.Run(t.Context(), load.Config{Address: c.AddrOf("api"), Total: 6}); len(r.Failed()) > 0 {
		t.Error(r)
	}
	c.Wait(func(e harness.Event) bool { return e.Name == "listener.close" && e.Str("listener") == "old" })
	text, samples := c.Metrics()
	if samples["rrd_config_last_reload_successful"] != 1 || samples[`rrd_reloads_total{kind="config",result="ok"}`] != 1 {
		t.Error(text)
	}
	// What TTIN has made of the number holds until a reload changes it.
	c.Signal(syscall.SIGTTIN)
	c.WaitStatus("four workers", func(s *harness.Status) bool { return s.Desired == 4 })
	if why := c.reload(); why != "" {
		t.Error(why)
	}
	if s := c.AllReady(); s.Desired != 4 {
		t.Errorf("%d workers", s.Desired)
	}
	c.Rebase() // three more processes than at the start
}

// A file that is wrong changes nothing, and the reason is told.
func TestReloadRefused(t *testing.T) {
	t.Parallel()
	web := harness.Host() + ":0"
	base := fmt.Sprintf("workers = 2\nlisten = [\"web=%s\"]\n", web)
	c := startConfigured(t, harness.Options{Listen: []string{}, Control: true}, base)
	before := c.pids()
	for text, says := range map[string]string{
		base + "wrokers = 3\n":                                                              "wrokers",
		base + "queue-limit = \"many\"\n":                                                   "queue-limit",
		"workers = 2\nlisten = [\"web=:0":                                                   "correct the TOML",
		base + "policy = \"none\"\n":                                                        "--policy",
		base + "worker-output = \"json\"\n":                                                 "--worker-output",
		base + "queue-limit = 1000000\n":                                                    "open files",
		base + "command = [\"sleep\", \"1\"]\n":                                             "needs a restart",
		base + "chdir = \"/no/such/place\"\n":                                               "--chdir",
		fmt.Sprintf("workers = 2\nlisten = [\"www=%s\"]\n", web):                            "another name",
		fmt.Sprintf("workers = 2\nlisten = [\"web=%s\", \"fd:9\"]\n", web):                  "needs a restart",
		fmt.Sprintf("workers = 2\nlisten = [\"web=%s\", \"x=%s\"]\n", web, c.MetricsAddr()): "stop whoever is there",
	} {
		c.write(text)
		if why := c.reload(); !strings.Contains(why, says) || strings.Contains(why, "\n") {
			t.Errorf("%q: %q, want %q", text, why, says)
		}
		says = strings.Replace(says, "whoever is there", "whoever listens there", 1) // as --check has it
		if r := c.Ctl("config", "check", c.path); r.Code != 1 || !strings.Contains(r.Err, says) {
			t.Errorf("%q: config check: %+v, want %q", text, r, says)
		}
		if now := c.pids(); !slices.Equal(now, before) {
			t.Errorf("%q: workers %v, were %v", text, now, before)
		}
	}
	text, samples := c.Metrics()
	if samples["rrd_config_last_reload_successful"] != 0 || samples[`rrd_reloads_total{kind="config",result="error"}`] != 11 {
		t.Error(text)
	}
	_, status, err := c.Get("/status.json")
	if err != nil || !strings.Contains(status, `"last_failure"`) {
		t.Errorf("%s %v", status, err)
	}
	c.write(base)
	if why := c.reload(); why != "" {
		t.Error(why)
	}
}

// A command that does not work never takes the place of one that does.
func TestReloadToABrokenCommand(t *testing.T) {
	t.Parallel()
	program := userProgram(t)
	address := harness.Host() + ":0"
	file := func(shell string) string {
		return fmt.Sprintf("workers = 2\nstart-timeout = \"3s\"\ncanary-time = \"4s\"\nlisten = [\"web=%s\"]\ncommand = [\"sh\", \"-c\", '''%s''']\n", address, shell)
	}
	good := "exec " + program + " -addr web"
	c := startConfigured(t, harness.Options{Listen: []string{}, Env: []string{"LC_ALL=C"}}, file(good))
	before := c.pids()
	finish := underWith(t, c.Master, load.Config{Rate: 200, Duration: 24 * time.Hour, Address: c.AddrOf("web"), Judge: hello(true)})
	for shell, says := range map[string]string{
		"exit 7": "exited with code 7",
		// Ready, and then it crashes: connections that it has taken by then are lost with
		// it, as with any crash, so it takes none.
		"trap '' TERM; exec sleep 1000": "not ready within 3s",
		"exec /no/such/program":         "exited with code 127",
	} {
		c.write(file(shell))
		if why := c.reload(); !strings.Contains(why, says) || !strings.Contains(why, "slot 0") {
			t.Errorf("%s: %q, want %q", shell, why, says)
		}
		if now := c.pids(); !slices.Equal(now, before) {
			t.Errorf("%s: workers %v, were %v", shell, now, before)
		}
	}
	c.write(file(good))
	if why := c.reload(); why != "" {
		t.Error(why)
	}
	if r := finish(); len(r.Failed()) > 0 {
		t.Error(r)
	}
}

// One that gets ready and crashes soon after serves beside the old ones by then, so
// they never stopped.
func TestReloadToACommandThatCrashesLater(t *testing.T) {
	t.Parallel()
	program := userProgram(t)
	address := harness.Host() + ":0"
	file := func(shell string) string {
		return fmt.Sprintf("workers = 2\ncanary-time = \"5s\"\nlisten = [\"web=%s\"]\ncommand = [\"sh\", \"-c\", '''%s''']\n", address, shell)
	}
	c := startConfigured(t, harness.Options{Listen: []string{}}, file("exec "+program+" -addr web"))
	before := c.pids()
	c.write(file(program + " -addr web & p=$!; sleep 1; kill -9 $p; wait $p; exit 7"))
	if why := c.reload(); !strings.Contains(why, "slot 0") {
		t.Errorf("%q", why)
	}
	if now := c.pids(); !slices.Equal(now, before) {
		t.Errorf("workers %v, were %v", now, before)
	}
}

func TestF27Reload(t *testing.T) { t.Parallel(); reloads(t, form{}) }

// Reloads under load lose nobody.
func reloads(t *testing.T, f form) {
	c := startConfigured(t, harness.Options{}, "workers = 4\ncanary-time = \"off\"\n")
	finish := under(t, c.Master, float64(f.of(500, 5000)))
	n := f.of(8, 100)
	pace := time.NewTicker(time.Duration(f.of(1, 400)) * time.Millisecond) // the long form is of 200,000 connections
	defer pace.Stop()
	for range n {
		if why := c.reload(); why != "" {
			t.Error(why)
		}
		<-pace.C
	}
	r := finish()
	if len(r.Failed()) > 0 {
		t.Error(r)
	}
	f.note(t, "%d reloads, %d connections, %d lost", n, len(r.Results), len(r.Failed()))
	if s := c.AllReady(); s.Workers[0].Generation != n+1 {
		t.Errorf("generation %d after %d reloads", s.Workers[0].Generation, n)
	}
	accounts(t, c.Master, r)
}

func TestF28BadReload(t *testing.T) { t.Parallel(); badReloads(t, form{}) }

// Bad reloads under load lose nobody and restart no worker.
func badReloads(t *testing.T, f form) {
	c := startConfigured(t, harness.Options{}, "workers = 4\n")
	before := c.pids()
	finish := under(t, c.Master, 500)
	for i := range f.of(9, 50) {
		c.write([]string{"workers = \n", "policy = \"reuseport\"\n", "command = [\"/no/such/program\"]\n"}[i%3])
		if why := c.reload(); why == "" {
			t.Error("it was not refused")
		}
	}
	r := finish()
	if len(r.Failed()) > 0 {
		t.Error(r)
	}
	if now := c.pids(); !slices.Equal(now, before) {
		t.Errorf("workers %v, were %v", now, before)
	}
	accounts(t, c.Master, r)
}

// listenInode names the socket that listens at address, by /proc/net/tcp.
func listenInode(t *testing.T, address string) string {
	t.Helper()
	text, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	var a, b, x, d, port int
	if _, err := fmt.Sscanf(address, "%d.%d.%d.%d:%d", &a, &b, &x, &d, &port); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%02X%02X%02X%02X:%04X", d, x, b, a, port)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 9 && f[1] == want && f[3] == "0A" {
			return f[9]
		}
	}
	t.Fatalf("nobody listens at %s", address)
	return ""
}

func environOf(t *testing.T, pid int) []string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(text), "\x00")
}

// HUP waits for a worker that is being restarted.
func TestReloadDuringARestart(t *testing.T) {
	t.Parallel()
	h := newHookFile(t)
	closed := filepath.Join(t.TempDir(), "closed") // as long as it is there, no worker starts
	hook := h.says("spawn") + "; while [ -e " + closed + " ]; do sleep 0.01; done"
	c := startConfigured(t, harness.Options{Control: true}, fmt.Sprintf("workers = 2\ncanary-time = \"off\"\nhook-before-spawn = %q\n", hook))
	if err := os.WriteFile(closed, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan harness.Ctl, 1)
	go func() { done <- c.Ctl("workers", "restart", "0") }() // waited for below
	h.wait(3)                                                // two of them at the start
	c.Signal(syscall.SIGHUP)
	if err := os.Remove(closed); err != nil {
		t.Fatal(err)
	}
	if r := <-done; r.Code != 0 {
		t.Errorf("%+v", r)
	}
	c.Wait(harness.Named("reload.done"))
	if bad := c.Events(harness.Named("reload.failed")); len(bad) > 0 {
		t.Errorf("%v", bad)
	}
	if s := c.AllReady(); s.Workers[1].Generation < 2 {
		t.Errorf("%+v", s.Workers)
	}
}

// rrd wants two threads for itself, and auto says the same number of workers before and
// after a reload.
func TestAutoOnOneProcessor(t *testing.T) {
	t.Parallel()
	c := startConfigured(t, harness.Options{Wrap: []string{"taskset", "-c", firstProcessor(t)}}, "workers = \"auto\"\ncanary-time = \"off\"\n")
	for range 2 {
		if s := c.AllReady(); s.Desired != 1 {
			t.Errorf("%d workers", s.Desired)
		}
		if why := c.reload(); why != "" {
			t.Error(why)
		}
	}
}

// firstProcessor is one that this process may run on.
func firstProcessor(t *testing.T) string {
	t.Helper()
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		t.Fatal(err)
	}
	for n := range len(allowed) * 64 {
		if allowed.IsSet(n) {
			return strconv.Itoa(n)
		}
	}
	t.Fatal("this process may run nowhere")
	return ""
}

// A reload that fails leaves the level that rrdctl has set, too.
func TestFailedReloadKeepsTheLogLevel(t *testing.T) {
	t.Parallel()
	base := "workers = 1\ncanary-time = \"off\"\n"
	c := startConfigured(t, harness.Options{Control: true}, base)
	if r := c.Ctl("log-level", "debug"); r.Code != 0 {
		t.Errorf("%+v", r)
	}
	c.write(base + "log-level = \"warn\"\nhook-before-spawn = \"false\"\n")
	if why := c.reload(); !strings.Contains(why, "before-spawn") {
		t.Error(why)
	}
	if r := c.Ctl("log-level"); r.Out != "debug\n" {
		t.Errorf("%+v", r)
	}
}

// Where the default limits were lowered for the limit of open files, more workers lower
// them further, also after an upgrade, and fewer give it back.
func TestResizeWithFewDescriptors(t *testing.T) {
	t.Parallel()
	m := harness.Start(t, harness.Options{Control: true, Args: []string{"--workers", "1", "--policy", "rr"},
		Wrap: []string{"/bin/sh", "-c", `ulimit -n 512; exec "$0" "$@"`}})
	limit := func() int { return ctlStatus(t, m).Limit }
	first := limit()
	done(t, m, "workers", "inc")
	second := limit()
	done(t, m, "upgrade")
	if now := limit(); now != second {
		t.Errorf("after the upgrade the queue's limit is %d, was %d", now, second)
	}
	done(t, m, "workers", "inc")
	if third := limit(); first >= 4096 || second >= first || third >= second || third < 16 {
		t.Errorf("the queue's limit was %d, then %d, then %d", first, second, third)
	}
	refused(t, m, 1, "raise it (ulimit -n", "workers", "set", "100")
	done(t, m, "workers", "set", "1")
	if last := limit(); last != first {
		t.Errorf("the queue's limit is %d, was %d", last, first)
	}
	m.Rebase() // after an upgrade
}
