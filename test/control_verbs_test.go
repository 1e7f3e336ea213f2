//go:build linux

package test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// controlled starts a master with n built-in workers and a control socket.
func controlled(t *testing.T, n int, args ...string) *harness.Master {
	t.Helper()
	return harness.Start(t, harness.Options{Control: true, Args: append([]string{"--policy", "rr", "--workers", fmt.Sprint(n)}, args...)})
}

// done runs rrdctl, which must succeed, and returns what it has said.
func done(t *testing.T, m *harness.Master, args ...string) string {
	t.Helper()
	r := m.Ctl(args...)
	if r.Code != 0 || r.Err != "" {
		t.Fatalf("rrdctl %q: code %d\n%s%s", args, r.Code, r.Out, r.Err)
	}
	return r.Out
}

// refused runs rrdctl, which must end with a code and say a text.
func refused(t *testing.T, m *harness.Master, code int, says string, args ...string) {
	t.Helper()
	if r := m.Ctl(args...); r.Code != code || !strings.Contains(r.Err, says) {
		t.Errorf("rrdctl %q: code %d, want %d and %q\n%s%s", args, r.Code, code, says, r.Out, r.Err)
	}
}

// status is that of rrdctl; the law holds in it.
func ctlStatus(t *testing.T, m *harness.Master) (s struct {
	PID      int
	Ready    bool
	Draining bool
	Reason   string
	Limit    int `json:"queue_limit"`
	Desired  int `json:"workers_desired"`
	Reload   *struct {
		OK    bool
		Error string
	}
	Workers []struct {
		Slot, PID  int
		State      string
		Held       bool
		Generation int
	}
	Listeners []struct {
		Name     string
		Accepted int
		LawHolds bool `json:"law_holds"`
	}
}) {
	t.Helper()
	if err := json.Unmarshal([]byte(done(t, m, "status", "-o", "json")), &s); err != nil {
		t.Fatal(err)
	}
	for _, l := range s.Listeners {
		if !l.LawHolds {
			t.Errorf("the law is broken: %+v", l)
		}
	}
	return s
}

// The number of workers under load: each command waits until it is so, says what
// became of each slot, and nobody is lost.
func TestControlScale(t *testing.T) {
	t.Parallel()
	m := controlled(t, 2)
	ctx, cancel := context.WithCancel(t.Context())
	finish := waitingContext(ctx, m, load.Config{Rate: 300, Duration: time.Minute, URI: func(int) string { return "/sleep?ms=5" }})
	for _, x := range []struct {
		args  string
		n     int
		says  []string
		count map[string]int
	}{
		{"workers set 6", 6, []string{"6 workers, 2 before"}, map[string]int{"ready (pid": 4}},
		{"workers dec", 5, []string{"slot 5: draining (pid", "slot 5: gone (pid", "5 workers, 6 before"}, nil},
		{"workers inc", 6, []string{"slot 5: ready (pid", "6 workers, 5 before"}, nil},
		{"workers set 6", 6, []string{"6 workers, 6 before"}, nil},
		{"workers set 1", 1, []string{"1 workers, 6 before"}, map[string]int{"gone (pid": 5}},
		{"workers set 3", 3, nil, map[string]int{"ready (pid": 2}},
	} {
		out := done(t, m, strings.Fields(x.args)...)
		for _, want := range x.says {
			if !strings.Contains(out, want) {
				t.Errorf("%s does not say %q:\n%s", x.args, want, out)
			}
		}
		for want, n := range x.count {
			if got := strings.Count(out, want); got != n {
				t.Errorf("%s says %q %d times, want %d:\n%s", x.args, want, got, n, out)
			}
		}
		// It is so now, not some time later.
		s := ctlStatus(t, m)
		ready := slices.DeleteFunc(s.Workers, func(w struct {
			Slot, PID  int
			State      string
			Held       bool
			Generation int
		}) bool {
			return w.State != "ready"
		})
		if s.Desired != x.n || len(ready) != x.n {
			t.Errorf("after %s: %+v", x.args, s)
		}
	}
	refused(t, m, 2, "0 is not from 1 to 1024", "workers", "set", "0")
	refused(t, m, 2, "4096 is not from 1 to 1024", "workers", "set", "4096")
	cancel()
	r := finish()
	if len(r.Failed()) > 0 {
		t.Error(r)
	}
	accounts(t, m, r)
	m.Rebase()
}

// Single slots: restarted, drained, filled again, killed.
func TestControlSlots(t *testing.T) {
	t.Parallel()
	m := controlled(t, 3, "--respawn-min", "10ms", "--respawn-max", "10ms")
	ctx, cancel := context.WithCancel(t.Context())
	finish := waitingContext(ctx, m, load.Config{Rate: 300, Duration: time.Minute})
	before := m.PID(1)
	done(t, m, "workers", "restart", "1")
	if now := m.PID(1); now == before {
		t.Error("slot 1 has the same process")
	}
	out := done(t, m, "workers", "drain", "1")
	if !strings.Contains(out, "slot 1: draining (pid") || !strings.Contains(out, "slot 1: drained") {
		t.Error(out)
	}
	if s := ctlStatus(t, m); s.Workers[1].PID != 0 || !s.Workers[1].Held || s.Desired != 3 {
		t.Errorf("%+v", s)
	}
	done(t, m, "workers", "set", "4") // a held slot is not waited for
	done(t, m, "workers", "set", "3")
	out = done(t, m, "workers", "undrain", "1")
	if !strings.Contains(out, "slot 1: ready (pid") {
		t.Error(out)
	}
	cancel()
	if r := finish(); len(r.Failed()) > 0 {
		t.Error(r)
	}
	pid := m.PID(2)
	if out = done(t, m, "workers", "kill", "2"); !strings.Contains(out, "slot 2: killed") || harness.Alive(pid) {
		t.Errorf("process %d is alive: %v\n%s", pid, harness.Alive(pid), out)
	}
	if e := m.WaitFrom(0, 1, func(e harness.Event) bool { return e.Name == "worker.exit" && e.Int("worker_pid") == pid })[0]; !strings.Contains(e.Str("reason"), "over the control socket") {
		t.Error(e.Line)
	}
	m.AllReady()
	if out = done(t, m, "workers", "signal", "SIGTERM", "0"); !strings.Contains(out, "slot 0: TERM sent (pid") {
		t.Error(out)
	}
	m.WaitFrom(0, 1, harness.OfSlot("worker.exit", 0))
	m.AllReady()
	if out = done(t, m, "workers", "signal", "CONT", "all"); strings.Count(out, "CONT sent") != 3 {
		t.Error(out)
	}
	refused(t, m, 2, "there is no slot 3", "workers", "kill", "3")
	refused(t, m, 2, "is not one of", "workers", "signal", "NONE", "0")
	if out := done(t, m, "workers", "dump", "0"); !strings.Contains(out, "writes its stacks to its stderr") {
		t.Error(out)
	}
	m.WaitLog("goroutines of process") // raw output is on the master's stderr
	m.Rebase()
}

// A worker that does not come up: the command says so, with the reason.
func TestControlScaleFails(t *testing.T) {
	t.Parallel()
	at := harness.Host() + ":0"
	m := harness.Start(t, harness.Options{
		Control: true,
		Args:    []string{"--policy", "rr", "--workers", "2", "--respawn-min", "50ms", "--respawn-max", "50ms"},
		Listen:  []string{at},
		Command: []string{"sh", "-c", `[ "$RRD_SLOT" -lt 2 ] || exit 7; exec "$0" "$@"`, harness.Build(t, "", "rrd/test/faultworker"), "-listen", "tcp/" + at, "serve"},
	})
	refused(t, m, 1, "slot 2 exited with code 7", "workers", "set", "3")
	if s := m.Status(); s.Desired != 3 {
		t.Errorf("%d workers are wanted", s.Desired)
	}
	done(t, m, "workers", "set", "2")
	accounts(t, m, serves(t, m, load.Config{Total: 20}))
	m.Rebase()
}

// Stop waits for the end and knows how it went; everything is gone with it.
func TestControlStop(t *testing.T) {
	t.Parallel()
	m := controlled(t, 2)
	finish := waiting(t, m, load.Config{Clients: 20, Total: 20, URI: func(int) string { return "/sleep?ms=1000" }})
	m.WaitStatus("all to be taken", func(s *harness.Status) bool { return s.Acked() == 20 })
	out := done(t, m, "stop")
	select {
	case <-m.Exited():
	case <-time.After(soon):
		t.Error("rrdctl stop has returned, and rrd is there")
	}
	if !strings.Contains(out, "with exit code 0, 0 connections cut") || strings.Count(out, "draining (pid") != 2 {
		t.Error(out)
	}
	if r := finish(); r.Count(load.OK) != 20 {
		t.Error(r)
	}
	lines := strings.Split(strings.TrimSpace(m.Log()), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, `"event":"stop"`) {
		t.Error(last)
	}
	refused(t, m, 3, "no rrd is there", "status")
}

func TestControlStopNow(t *testing.T) {
	t.Parallel()
	m := controlled(t, 2)
	finish := waiting(t, m, load.Config{Clients: 10, Total: 10, URI: func(int) string { return "/sleep?ms=30000" }})
	m.WaitStatus("all to be taken", func(s *harness.Status) bool { return s.Acked() == 10 })
	first := make(chan harness.Ctl, 1)
	go func() { first <- m.Ctl("stop") }() // waited for below
	m.Wait(harness.Named("drain.start"))
	start := time.Now()
	out := done(t, m, "stop", "--now")
	if took := time.Since(start); took > soon || !strings.Contains(out, "10 connections cut") {
		t.Errorf("%v\n%s", took, out)
	}
	if r := <-first; r.Code != 0 || !strings.Contains(r.Out, "10 connections cut") {
		t.Errorf("%+v", r)
	}
	m.WaitExit()
	if r := finish(); r.Count(load.OK) != 0 {
		t.Error(r)
	}
}

// drain --close leaves rotation for good and tells how many connections are open; a TERM
// after it is the first.
func TestControlDrain(t *testing.T) {
	t.Parallel()
	m := controlled(t, 2, "--drain-timeout", "500ms")
	at := m.Addr()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if r := m.Ctl("drain", "--close"); r.Code != 1 || !strings.Contains(r.Out, "1 connections are still open") || strings.Count(r.Err, "\n") != 1 {
		t.Errorf("%+v", r)
	}
	refused(t, m, 1, "closed already", "drain")
	refused(t, m, 1, "needs a restart", "upgrade")
	if late, err := net.DialTimeout("tcp", at, time.Second); err == nil {
		late.Close()
		t.Error("it still listens")
	}
	if code, body, err := m.Get("/-/ready"); code != http.StatusServiceUnavailable || err != nil {
		t.Errorf("%d %q %v", code, body, err)
	}
	if s := ctlStatus(t, m); s.Ready || !s.Draining {
		t.Errorf("%+v", s)
	}
	// The connection that was open still is.
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Error(err)
	}
	if n, err := c.Read(make([]byte, 1000)); n == 0 || err != nil {
		t.Errorf("%d %v", n, err)
	}
	c.Close()
	if r := m.Ctl("drain", "--close"); r.Code != 0 || !strings.Contains(r.Out, "nothing is open") {
		t.Errorf("%+v", r)
	}
	m.Signal(syscall.SIGTERM)
	m.WaitExit()
	if e := m.Wait(harness.Named("stop")); e.Int("exit_code") != 0 || len(m.Events(harness.Named("stop.now"))) != 0 {
		t.Error(m.Log())
	}
}

// Reload over the socket: what is wrong with the file comes back, with code 1.
func TestControlReload(t *testing.T) {
	t.Parallel()
	c := startConfigured(t, harness.Options{Control: true, Args: []string{"--policy", "rr", "--canary-time", "100ms"}}, "workers = 2\n")
	before := c.pids()
	c.write("workers = 3\nbusy-after = \"60ms\"\n")
	out := done(t, c.Master, "reload")
	if !strings.Contains(out, "slot 0: replaced") || !strings.Contains(out, "slot 1: replaced") || !strings.HasSuffix(out, "reloaded\n") {
		t.Error(out)
	}
	after := c.AllReady()
	if len(after.Workers) != 3 || slices.Contains(before, after.Workers[0].PID) {
		t.Errorf("%+v", after.Workers)
	}
	if out := done(t, c.Master, "config", "show", "--origin"); !strings.Contains(out, `busy-after = "60ms" # `+c.path+":2") {
		t.Error(out)
	}
	c.write("workers = 3\nworker = 4\n")
	refused(t, c.Master, 1, c.path+`:2: "worker" is no setting`, "reload")
	if s := ctlStatus(t, c.Master); s.Reload == nil || s.Reload.OK || !strings.Contains(s.Reload.Error, "is no setting") {
		t.Errorf("%+v", s.Reload)
	}
	if out := done(t, c.Master, "status"); !strings.Contains(out, "LAST RELOAD FAILED") {
		t.Error(out)
	}
	// What a reload would say, without doing it.
	refused(t, c.Master, 1, `"worker" is no setting`, "config", "check", c.path)
	c.write("workers = 3\n")
	if out := done(t, c.Master, "config", "check", c.path); !strings.HasSuffix(out, c.path+" is good\n") {
		t.Error(out)
	}
	done(t, c.Master, "reload")
	if out := done(t, c.Master, "status"); strings.Contains(out, "FAILED") {
		t.Error(out)
	}
	c.Rebase()
}

// What only looks.
func TestControlLooks(t *testing.T) {
	t.Parallel()
	m := controlled(t, 2)
	accounts(t, m, serves(t, m, load.Config{Total: 40}))
	if s := ctlStatus(t, m); s.PID != m.MasterPID() || !s.Ready || s.Listeners[0].Accepted != 40 {
		t.Errorf("%+v", s)
	}
	for args, want := range map[string]string{
		"status":                       `(?m)^workers 2/2 ready  accepted 40 `,
		"workers":                      `(?m)^ +1 +\d+ +1 +ready `,
		"top --once":                   `(?m)^dispatch p50 .* law holds$`,
		"top --interval 100ms":         `(?m)^SLOT .*CONN/S`,
		"log-level":                    `^info\n$`,
		"events":                       `control\.open path=` + m.Control(),
		"config show":                  `(?m)^workers = "2"$`,
		"config show --origin":         `(?m)^policy = "rr" # flag$`,
		"debug goroutines":             `(?s)^goroutine .*main\.\(\*master\)`,
		"debug fds":                    `(?m)unix listener +` + m.Control() + `$`,
		"debug trace --seconds 1 -f -": `^go 1\.`,
	} {
		if out := done(t, m, strings.Fields(args)...); !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("%s: %.2000s", args, out)
		}
	}
	mark := m.Mark()
	done(t, m, "log-level", "error")
	done(t, m, "workers", "inc")
	done(t, m, "log-level", "info")
	done(t, m, "workers", "dec")
	m.WaitFrom(mark, 1, harness.OfSlot("worker.exit", 2))
	if n := len(m.Events(harness.OfSlot("worker.ready", 2))); n != 0 {
		t.Error("worker.ready was logged at level error")
	}
	if out := done(t, m, "events"); !strings.Contains(out, "worker.ready worker=2") {
		t.Errorf("who looks at the events does not see them:\n%s", out)
	}
	if _, samples := m.Metrics(); samples[`rrd_control_requests_total{command="log.level",result="ok"}`] != 3 {
		t.Errorf("%v log levels were counted", samples[`rrd_control_requests_total{command="log.level",result="ok"}`])
	}
}

// Who follows sees what happens, until rrd ends.
func TestControlEvents(t *testing.T) {
	t.Parallel()
	m := controlled(t, 1, "--respawn-min", "10ms", "--respawn-max", "10ms")
	done(t, m, "log-level", "error") // that changes nothing for who follows
	all := make(chan harness.Ctl, 1)
	go func() { all <- m.Ctl("events", "--follow", "-n", "0") }() // waited for below
	harness.Poll(t, "the follower", func() error {
		_, samples := m.Metrics()
		if samples["process_open_fds"] <= 0 {
			return fmt.Errorf("no metrics")
		}
		if out := m.Ctl("debug", "fds").Out; strings.Count(out, "unix connection") < 2 {
			return fmt.Errorf("nobody follows: %s", out)
		}
		return nil
	})
	done(t, m, "workers", "kill", "0")
	m.AllReady()
	done(t, m, "stop")
	r := <-all
	at := 0
	for _, want := range []string{"control.request command=workers.kill", "worker.exit worker=0", "worker.start worker=0", "worker.ready worker=0", "drain.start"} {
		i := strings.Index(r.Out[at:], want)
		if i < 0 {
			t.Fatalf("no %q after byte %d of\n%s%s", want, at, r.Out, r.Err)
		}
		at += i
	}
	m.WaitExit()
}

// Without a path: the first directory there is, the second master beside the
// first, and rrdctl finds them.
func TestControlAuto(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	env := []string{"RUNTIME_DIRECTORY=" + dir}
	start := func() (*harness.Master, string) {
		m := harness.Start(t, harness.Options{Args: []string{"--workers", "1", "--control", "auto"}, Env: env})
		return m, m.Wait(harness.Named("control.open")).Str("path")
	}
	first, path := start()
	if path != filepath.Join(dir, "control.sock") {
		t.Error(path)
	}
	second, path := start()
	if path != filepath.Join(dir, fmt.Sprintf("control-%d.sock", second.MasterPID())) {
		t.Error(path)
	}
	for _, m := range []*harness.Master{first, second} {
		m.Stop()
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
