//go:build linux

package test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// upgradable is a master whose program is a file of the test's.
type upgradable struct {
	*harness.Master
	t       *testing.T
	program string
}

func startUpgradable(t *testing.T, o harness.Options) *upgradable {
	t.Helper()
	u := &upgradable{t: t, program: filepath.Join(t.TempDir(), "rrd")}
	u.install(harness.RRD(t))
	o.Program = u.program
	u.Master = harness.Start(t, o)
	// The first one closes what this process was started with and has no use for.
	if why := u.upgrade(); why != "" {
		t.Fatal(why)
	}
	u.AllReady()
	u.Rebase()
	return u
}

// install puts a program in the place of the one that runs, as a package does.
func (u *upgradable) install(path string) {
	u.t.Helper()
	if err := os.RemoveAll(u.program + ".new"); err != nil {
		u.t.Fatal(err)
	}
	copyFile(u.t, path, u.program+".new")
	if err := os.Rename(u.program+".new", u.program); err != nil {
		u.t.Fatal(err)
	}
}

// installBad puts a program there that does as mode says.
func (u *upgradable) installBad(mode string) {
	u.t.Helper()
	if err := os.WriteFile(u.program+".mode", []byte(mode), 0o600); err != nil {
		u.t.Fatal(err)
	}
	u.install(harness.Build(u.t, "", "rrd/test/badimage"))
}

// upgrade sends USR2 and waits for what becomes of it: "" or why it failed.
func (u *upgradable) upgrade() string {
	u.t.Helper()
	mark := u.Mark()
	u.Signal(syscall.SIGUSR2)
	e := u.WaitFrom(mark, 1, func(e harness.Event) bool { return e.Name == "upgrade.done" || e.Name == "upgrade.failed" })[0]
	return e.Str("error")
}

// identity is what an upgrade must not change.
func (u *upgradable) identity() string {
	u.t.Helper()
	var pids []int
	for _, w := range u.AllReady().Workers {
		pids = append(pids, w.PID, w.Generation)
	}
	return fmt.Sprintf("pid %d, workers %v, socket %s", u.MasterPID(), pids, listenInode(u.t, u.Addr()))
}

// fdCount is how many descriptors the master has.
func (u *upgradable) fdCount() int {
	u.t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", u.MasterPID()))
	if err != nil {
		u.t.Fatal(err)
	}
	return len(entries)
}

// mustHave waits until the master has exactly so many descriptors: those of its load go a
// little later.
func (u *upgradable) mustHave(fds int) {
	u.t.Helper()
	harness.Poll(u.t, "the descriptors to be as many as before", func() error {
		if now := u.fdCount(); now != fds {
			return fmt.Errorf("%d descriptors, were %d", now, fds)
		}
		return nil
	})
}

// Nobody notices: not the workers, not the listener, not a client in the middle of
// its answer, not the counters.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	second := buildVersion(t, "v2")
	u := startUpgradable(t, harness.Options{Args: []string{"--workers", "3"}})
	before := u.identity()
	slow := make(chan error, 1)
	url := "http://" + u.Addr() + "/sleep?ms=1500"
	go func() { slow <- get(url) }() // received below
	finish := underWith(t, u.Master, load.Config{Rate: 300, Duration: 24 * time.Hour})
	u.WaitStatus("load", func(s *harness.Status) bool { return s.Acked() > 50 })
	u.install(second)
	mark := u.Mark()
	if why := u.upgrade(); why != "" {
		t.Fatal(why)
	}
	done := u.WaitFrom(mark, 1, harness.Named("upgrade.done"))[0]
	if !strings.HasPrefix(done.Str("to"), "v2") || strings.HasPrefix(done.Str("from"), "v2") {
		t.Error(done.Line)
	}
	acked := u.Status().Acked()
	u.WaitStatus("more load", func(s *harness.Status) bool { return s.Acked() > acked+50 })
	r := finish()
	if len(r.Failed()) > 0 {
		t.Errorf("%v", r)
	}
	if err := <-slow; err != nil {
		t.Errorf("who was being served: %v", err)
	}
	if after := u.identity(); after != before {
		t.Errorf("%s, was %s", after, before)
	}
	text, samples := u.Metrics()
	if !strings.Contains(text, `version="v2"`) || samples[`rrd_reloads_total{kind="upgrade",result="ok"}`] != 2 {
		t.Error(text)
	}
	if s := u.Idle(); s.Accepted() < len(r.Results) {
		t.Errorf("accepted %d of %d: the counts began anew", s.Accepted(), len(r.Results))
	}
	// What is started now is of the new program, and everything still works.
	u.Kill(u.PID(0), syscall.SIGKILL)
	u.AllReady()
	u.Rebase()
}

func get(url string) error {
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(url) //nolint:noctx // a test's own server
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// buildVersion builds rrd as another version.
func buildVersion(t *testing.T, version string, more ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rrd-"+version)
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags", strings.Join(append([]string{"-X", "main.version=" + version}, more...), " "), "-o", path, "rrd/cmd/rrd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return path
}

// Connections that wait or are unanswered cross, in their order, and with stopped
// workers, too.
func TestUpgradeWithAQueue(t *testing.T) {
	t.Parallel()
	u := startUpgradable(t, harness.Options{Args: []string{"--workers", "2", "--handoff-window", "2", "--hang-timeout", "off"}})
	pids := []int{u.PID(0), u.PID(1)}
	for _, pid := range pids {
		u.Kill(pid, syscall.SIGSTOP)
	}
	const n = 40
	type result struct {
		status string
		err    error
	}
	results := make(chan result, n)
	for range n {
		c, err := net.Dial("tcp", u.Addr())
		if err != nil {
			t.Fatal(err)
		}
		go func() { // all are received below
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(20 * time.Second))
			fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			line, err := bufio.NewReader(c).ReadString('\n')
			results <- result{line, err}
		}()
	}
	waiting := func(s *harness.Status) bool { return s.Accepted() == n }
	before := u.WaitStatus("all to be accepted", waiting)
	for range 3 {
		if why := u.upgrade(); why != "" {
			t.Fatal(why)
		}
	}
	after := u.WaitStatus("all to be there still", waiting)
	if after.Acked() != before.Acked() {
		t.Errorf("acked %d, was %d", after.Acked(), before.Acked())
	}
	for _, pid := range pids {
		u.Kill(pid, syscall.SIGCONT)
	}
	for range n {
		if r := <-results; r.err != nil || !strings.HasPrefix(r.status, "HTTP/1.1 200") {
			t.Errorf("%q %v", r.status, r.err)
		}
	}
}

// Whatever the new program is worth, the old one goes on, and says why.
func TestUpgradeFails(t *testing.T) {
	t.Parallel()
	u := startUpgradable(t, harness.Options{Args: []string{"--workers", "2"}})
	late := buildVersion(t, "v3", "-X", "main.restoreFault=it-cannot")
	before, fds := u.identity(), u.fdCount()
	finish := under(t, u.Master, 200)
	for _, tt := range []struct {
		name string
		put  func()
		says string
	}{
		{"exit", func() { u.installBad("exit") }, "exit status 7"},
		{"nonsense", func() { u.installBad("nonsense") }, `"hello", as no rrd does`},
		{"late", func() { u.install(late) }, "panic: it-cannot"},
		{"no program", func() { _ = os.Remove(u.program) }, "no such file"},
		{"no executable", func() {
			if err := os.WriteFile(u.program, []byte("#!"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "permission denied"},
		{"hang", func() { _ = os.Remove(u.program); u.installBad("hang") }, "no answer within 10s"},
	} {
		tt.put()
		if why := u.upgrade(); !strings.Contains(why, tt.says) {
			t.Errorf("%s: %q, want %q", tt.name, why, tt.says)
		}
		if after := u.identity(); after != before {
			t.Errorf("%s: %s, was %s", tt.name, after, before)
		}
	}
	u.install(harness.RRD(t))
	if why := u.upgrade(); why != "" {
		t.Error(why)
	}
	r := finish()
	if len(r.Failed()) > 0 {
		t.Error(r)
	}
	accounts(t, u.Master, r)
	u.mustHave(fds)
	_, samples := u.Metrics()
	if samples[`rrd_reloads_total{kind="upgrade",result="error"}`] != 6 {
		t.Error("failures are not counted")
	}
}

// An upgrade to a file that was changed and not reloaded is refused: nobody knows
// what it would do.
func TestUpgradeWithAChangedFile(t *testing.T) {
	t.Parallel()
	c := startConfigured(t, harness.Options{}, "workers = 2\n")
	mark := c.Mark()
	c.write("workers = 3\n")
	c.Signal(syscall.SIGUSR2)
	if e := c.WaitFrom(mark, 1, harness.Named("upgrade.failed"))[0]; !strings.Contains(e.Str("error"), "workers): reload first") {
		t.Error(e.Line)
	}
}

func TestF29Upgrade(t *testing.T) { t.Parallel(); upgradesUnderLoad(t, form{}) }

// Upgrades under load lose nobody and leave no descriptor.
func upgradesUnderLoad(t *testing.T, f form) {
	u := startUpgradable(t, harness.Options{Args: []string{"--workers", "4"}})
	before, fds := u.identity(), u.fdCount()
	finish := under(t, u.Master, float64(f.of(500, 5000)))
	n := f.of(5, 20)
	pace := time.NewTicker(time.Duration(f.of(1, 2500)) * time.Millisecond) // the long form is of 200,000 connections
	defer pace.Stop()
	for range n {
		if why := u.upgrade(); why != "" {
			t.Error(why)
		}
		<-pace.C
	}
	r := finish()
	if len(r.Failed()) > 0 {
		t.Error(r)
	}
	f.note(t, "%d upgrades, %d connections, %d lost", n, len(r.Results), len(r.Failed()))
	if after := u.identity(); after != before {
		t.Errorf("%s, was %s", after, before)
	}
	accounts(t, u.Master, r)
	u.mustHave(fds)
}

func TestF30UpgradeStorm(t *testing.T) { t.Parallel(); upgradeStorm(t, form{}) }

// Signals that come at any moment of an upgrade end nothing.
func upgradeStorm(t *testing.T, f form) {
	u := startUpgradable(t, harness.Options{Args: []string{"--workers", "2", "--canary-time", "off"}})
	finish := under(t, u.Master, 200)
	stop := make(chan struct{})
	stormed := make(chan struct{})
	go func() { // ends with stop
		defer close(stormed)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(500 * time.Microsecond):
				_ = syscall.Kill(u.MasterPID(), []syscall.Signal{syscall.SIGUSR1, syscall.SIGHUP, syscall.SIGCHLD, syscall.SIGPIPE}[i%4])
			}
		}
	}()
	for range f.of(3, 20) {
		if why := u.upgrade(); why != "" {
			t.Error(why)
		}
	}
	close(stop)
	<-stormed
	r := finish()
	if len(r.Failed()) > 0 {
		t.Error(r)
	}
	u.AllReady()
}

// A Node program's channel crosses as well.
func TestUpgradeWithNodeWorkers(t *testing.T) {
	t.Parallel()
	needsTool(t, "node")
	program, err := filepath.Abs(filepath.Join("bench", "testdata", "server.js"))
	if err != nil {
		t.Fatal(err)
	}
	u := startUpgradable(t, harness.Options{Args: []string{"--workers", "2"}, Listen: []string{}, Command: []string{"node", program}})
	address := u.Wait(harness.Named("listener.open")).Str("address")
	plain := func(a load.Answer, _ *load.Result) error {
		if a.Status != 200 || !strings.HasPrefix(string(a.Body), "ok ") {
			return fmt.Errorf("status %d, %q", a.Status, a.Body)
		}
		return nil
	}
	var pids []int
	for _, w := range u.AllReady().Workers {
		pids = append(pids, w.PID)
	}
	finish := underWith(t, u.Master, load.Config{Address: address, Rate: 150, Duration: 24 * time.Hour, Judge: plain})
	for range 3 {
		if why := u.upgrade(); why != "" {
			t.Error(why)
		}
	}
	if r := finish(); len(r.Failed()) > 0 {
		t.Error(r)
	}
	for _, w := range u.AllReady().Workers {
		if !slices.Contains(pids, w.PID) {
			t.Errorf("worker %d is new", w.PID)
		}
	}
}

// Who asks over the control socket is answered by the program that goes on, on the same
// connection, and so is what was asked behind it.
func TestControlUpgrade(t *testing.T) {
	t.Parallel()
	second := buildVersion(t, "v2")
	late := buildVersion(t, "v3", "-X", "main.restoreFault=it-cannot")
	u := startUpgradable(t, harness.Options{Control: true, Args: []string{"--workers", "2"}})
	u.install(late)
	refused(t, u.Master, 1, "panic: it-cannot", "upgrade")
	u.install(second)
	c, err := net.Dial("unix", u.Control())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, `{"v":1,"id":1,"cmd":"upgrade"}`+"\n"+`{"v":1,"id":2,"cmd":"status"}`+"\n"); err != nil {
		t.Fatal(err)
	}
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	answers, err := io.ReadAll(c)
	lines := strings.Split(string(answers), "\n")
	if err != nil || len(lines) != 3 || lines[0] != fmt.Sprintf(`{"id":1,"ok":true,"result":{"version":"v2","pid":%d}}`, u.MasterPID()) ||
		!strings.HasPrefix(lines[1], `{"id":2,"ok":true,"result":{"version":"v2"`) {
		t.Errorf("%q, %v", lines, err)
	}
	if out := done(t, u.Master, "upgrade"); !strings.HasPrefix(out, "upgraded: version v2, process ") {
		t.Errorf("%q", out)
	}
	if out := done(t, u.Master, "status"); !strings.Contains(out, "v2") {
		t.Error(out)
	}
	u.installBad("exit")
	refused(t, u.Master, 1, "exit status 7", "upgrade")
	u.install(second)
	done(t, u.Master, "upgrade")
	u.AllReady()
	// The history is that of all the images.
	history, at := done(t, u.Master, "events"), 0
	for _, want := range []string{"listener.open", "worker.ready worker=0", "panic: it-cannot", "to=v2", "upgrade.failed", "upgrade.done"} {
		i := strings.Index(history[at:], want)
		if i < 0 {
			t.Fatalf("no %q after byte %d of\n%s", want, at, history)
		}
		at += i
	}
}
