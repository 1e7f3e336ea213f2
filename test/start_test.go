//go:build linux

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// soon is far less than any time-out of rrd that could be at work, and enough for
// a busy machine.
const soon = 5 * time.Second

// Commands that cannot work: exit 3 with the reason, each slot started once.
func TestNoWorkerEverReady(t *testing.T) {
	notExecutable := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(notExecutable, []byte("#!/bin/sh\n"), 0o644); err != nil { //nolint:gosec // its mode is the subject
		t.Fatal(err)
	}
	noFormat := filepath.Join(t.TempDir(), "data")
	writeProgram(t, noFormat, []byte("\x00data"))
	for name, tt := range map[string]struct {
		command []string
		says    []string
	}{
		"exit code":      {[]string{"sh", "-c", "echo no configuration >&2; exit 7"}, []string{"code 7", "no configuration"}},
		"clean exit":     {[]string{"true"}, []string{"code 0"}},
		"signal":         {[]string{"sh", "-c", "kill -ABRT $$"}, []string{"abort"}},
		"no such file":   {[]string{"/no/such/program"}, []string{"/no/such/program", "no such file or directory"}},
		"no such name":   {[]string{"no-such-program"}, []string{"no-such-program", "no such file or directory"}},
		"not executable": {[]string{notExecutable}, []string{notExecutable, "permission denied"}},
		"no program":     {[]string{noFormat}, []string{noFormat, "exec format error"}},
		"a directory":    {[]string{"/tmp"}, []string{"/tmp"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			harness.RRD(t) // the first one builds it, which is not what takes long here
			start := time.Now()
			m := harness.Run(t, harness.Options{
				Args: []string{"--policy", "rr", "--workers", "4"}, Command: tt.command, ExitCode: 3,
			})
			if took := time.Since(start); took > soon {
				t.Errorf("it took %v", took)
			}
			for _, word := range tt.says {
				if !strings.Contains(m.Log(), word) {
					t.Errorf("the log does not say %q:\n%s", word, m.Log())
				}
			}
			if n := len(m.Events(harness.Named("worker.start"))); n > 4 {
				t.Errorf("%d processes were started", n)
			}
			last := m.Log()[strings.LastIndexByte(m.Log(), '\n')+1:]
			if !strings.HasPrefix(last, "rrd: ") && !regexp.MustCompile(`(?m)^rrd: .*no worker`).MatchString(m.Log()) {
				t.Errorf("no line for people: %s", m.Log())
			}
		})
	}
}

// One that hangs while it starts: the start time-out.
func TestStartTimeout(t *testing.T) {
	t.Parallel()
	m := harness.Run(t, harness.Options{
		Args: []string{"--policy", "rr", "--workers", "2", "--start-timeout", "300ms"}, Command: []string{"sleep", "1000"}, ExitCode: 3,
	})
	if !strings.Contains(m.Log(), "did not become ready") {
		t.Error(m.Log())
	}
}

// Under rr a program that never speaks is told the three ways out.
func TestSilentProgram(t *testing.T) {
	t.Parallel()
	m := harness.Start(t, harness.Options{
		Args: []string{"--policy", "rr", "--workers", "1", "--start-timeout", "7s"}, Command: []string{"sleep", "1000"},
		Unready: true, ExitCode: 3,
	})
	e := m.Wait(harness.Named("worker.silent"))
	for _, word := range []string{"library", "--policy none", "Node"} {
		if !strings.Contains(e.Line, word) {
			t.Errorf("it does not say %s: %s", word, e.Line)
		}
	}
	m.WaitExit()
	if n := len(m.Events(harness.Named("worker.silent"))); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// crashing is a command that becomes ready and dies after each start of the given
// slots as long as a file is there. args are the fault worker's.
func crashing(t *testing.T, after, slots string, args ...string) (command []string, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "crash")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	worker := harness.Build(t, "", "rrd/test/faultworker")
	// The shell goes on as the worker itself, so that it is the leader that dies.
	script := fmt.Sprintf(`case " %s " in *" $RRD_SLOT "*) [ -e %s ] && { (sleep %s; kill -9 $$) & } ;; esac; exec %s -listen tcp/web %s serve`,
		slots, file, after, worker, strings.Join(args, " "))
	return []string{"sh", "-c", script}, file
}

// A slot that dies again and again is started at growing intervals; the others
// serve as if nothing were.
func TestBackoff(t *testing.T) {
	t.Parallel()
	b := newBook(t)
	command, file := crashing(t, "0.05", "1", b.args()...)
	m := harness.Start(t, harness.Options{
		Args: []string{"--policy", "rr", "--workers", "3", "--respawn-min", "100ms", "--respawn-max", "400ms"},
		// Its sleep inherits the channel, which only means that it is a process of the worker's group.
		Listen: []string{"web=" + harness.Host() + ":0"}, Command: command, Unready: true,
	})
	m.Wait(harness.OfSlot("worker.exit", 1))
	m.WaitReady() // one broken slot does not keep it back
	r := run(t, m, load.Config{Rate: 200, Total: 400})
	pauses := m.WaitFrom(0, 6, harness.OfSlot("worker.backoff", 1))
	// Doubling from the minimum, with jitter, to the maximum.
	want := []float64{0.1, 0.2, 0.4, 0.4, 0.4, 0.4}
	for i, e := range pauses {
		if got := e.Num("duration_s"); got < want[i]*0.4 || got > want[i]*1.6 {
			t.Errorf("pause %d is %.3fs, want about %.1fs", i, got, want[i])
		}
	}
	if n := len(m.Events(harness.Named("worker.backoff"))) - len(m.Events(harness.OfSlot("worker.backoff", 1))); n != 0 {
		t.Errorf("%d pauses of the other slots", n)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	m.AllReady()
	// What a dying process has begun with dies with it; nothing else does.
	t.Logf("%d of %d connections were begun by processes that died then", b.judge(m, r), len(r.Results))
}

// A first failure after a healthy run is made good at once. 10 s is what counts as
// healthy, so this one is slow.
func TestRespawnAtOnceAfterHealth(t *testing.T) {
	t.Parallel()
	command, file := crashing(t, "10.5", "0")
	m := harness.Start(t, harness.Options{
		Args:   []string{"--policy", "rr", "--workers", "2", "--respawn-min", "20s", "--respawn-max", "30s"},
		Listen: []string{"web=" + harness.Host() + ":0"}, Command: command,
	})
	if err := os.Remove(file); err != nil { // once only
		t.Fatal(err)
	}
	mark := m.Mark()
	m.WaitFrom(mark, 1, harness.OfSlot("worker.exit", 0))
	start := time.Now()
	m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", 0))
	if took := time.Since(start); took > soon {
		t.Errorf("it was started again after %v", took)
	}
}

// --restart says who is started again.
func TestRestart(t *testing.T) {
	for _, tt := range []struct {
		restart, end string
		again        bool
	}{
		{"on-failure", "exit 0", false},
		{"on-failure", "exit 1", true},
		{"never", "exit 1", false},
		{"always", "exit 0", true},
	} {
		t.Run(tt.restart+" "+tt.end, func(t *testing.T) {
			t.Parallel()
			gate := newGate(t)
			// Ready as a listen-fds program, then ended by the gate.
			script := fmt.Sprintf(`[ "$RRD_SLOT" = 0 ] || exec sleep 1000; read x < %s; %s`, gate.path, tt.end)
			m := harness.Start(t, harness.Options{
				Args: append([]string{"--policy", "none", "--workers", "2", "--worker-protocol", "listen-fds", "--ready-after", "50ms",
					"--restart", tt.restart, "--drain-timeout", "100ms"}, quick...),
				Command: []string{"sh", "-c", script},
			})
			mark := m.Mark()
			gate.open()
			if _, err := gate.f.WriteString("\n"); err != nil {
				t.Fatal(err)
			}
			m.WaitFrom(mark, 1, harness.OfSlot("worker.exit", 0))
			if tt.again {
				m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", 0))
				return
			}
			m.WaitStatus("the slot to be down", func(s *harness.Status) bool { return s.Workers[0].State == "down" })
			m.Rebase()
		})
	}
}

// Programs that know nothing of rrd take their listeners from descriptor 3 on.
func TestListenFDs(t *testing.T) {
	for _, policy := range []string{"none", "reuseport"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			m := harness.Start(t, harness.Options{
				Args:    []string{"--policy", policy, "--workers", "2"},
				Command: []string{"python3", "-c", listenFDsProgram},
			})
			serves(t, m, load.Config{Clients: 4, Total: 200, Judge: load.AnyOK})
			if took := m.Stop(); took > 10*time.Second {
				t.Errorf("it took %v to stop", took)
			}
		})
	}
}

const listenFDsProgram = `
import http.server, os, signal, socket, sys
assert os.environ["LISTEN_PID"] == str(os.getpid()), os.environ
assert os.environ["LISTEN_FDS"] == "1", os.environ
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"python %d\n" % os.getpid()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
class Server(http.server.ThreadingHTTPServer):
    def server_bind(self):
        pass
    def server_activate(self):
        pass
server = Server(("", 0), Handler, bind_and_activate=False)
server.socket = socket.socket(fileno=3)
server.socket.setblocking(True)
signal.signal(signal.SIGTERM, lambda *a: os._exit(0))
server.serve_forever()
`

// sd_notify's READY=1 counts, and an early one before --ready-after.
func TestNotifyReady(t *testing.T) {
	t.Parallel()
	program := `import os, socket, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
time.sleep(1000)
`
	start := time.Now()
	m := harness.Start(t, harness.Options{
		Args:    []string{"--policy", "none", "--workers", "1", "--ready-after", "25s", "--drain-timeout", "100ms"},
		Command: []string{"python3", "-c", program},
	})
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("ready after %v", took)
	}
	m.Stop()
}

// A program that ignores its listener is told about, once.
func TestListenerIgnored(t *testing.T) {
	t.Parallel()
	m := harness.Start(t, harness.Options{
		Args:    []string{"--policy", "none", "--workers", "1", "--ready-after", "50ms", "--drain-timeout", "100ms"},
		Listen:  []string{harness.Host() + ":0,backlog=4"},
		Command: []string{"sleep", "1000"},
	})
	done := make(chan struct{})
	go func() { // waited for below
		defer close(done)
		load.Run(t.Context(), load.Config{Address: m.Addr(), Clients: 16, Total: 16, Timeout: 4 * time.Second})
	}()
	m.Wait(harness.Named("listener.ignored"))
	<-done
	if n := len(m.Events(harness.Named("listener.ignored"))); n != 1 {
		t.Errorf("said %d times", n)
	}
}

func TestCheck(t *testing.T) {
	config := filepath.Join(t.TempDir(), "rrd.toml")
	if err := os.WriteFile(config, []byte("workers = 3\npolicy = \"rr\"\ncommand = [\"sleep\", \"1\"]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		args []string
		code int
		says string
	}{
		"good":          {[]string{"--check", "--config", config}, 0, ""},
		"bad value":     {[]string{"--check", "--workers", "1025"}, 2, "--workers"},
		"no such file":  {[]string{"--check", "--config", "/no/such/file"}, 2, "/no/such/file"},
		"unknown flag":  {[]string{"--check", "--frobnicate"}, 2, "--frobnicate"},
		"no such user":  {[]string{"--check", "--user", "nobody-of-that-name"}, 2, "nobody-of-that-name"},
		"bad listen":    {[]string{"--check", "--listen", "80"}, 2, ":80"},
		"without --":    {[]string{"sleep"}, 2, "--"},
		"nothing after": {[]string{"--"}, 2, "--"},
		"RRD_ in --env": {[]string{"--env", "RRD_X=1"}, 2, "RRD_X"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := harness.Run(t, harness.Options{Args: tt.args, ExitCode: tt.code})
			if !strings.Contains(m.Log(), tt.says) || tt.code != 0 && strings.Contains(m.Log(), "\n") {
				t.Errorf("stderr %q", m.Log())
			}
		})
	}
}

// A flag wins over the environment, and that over the file.
func TestPrecedence(t *testing.T) {
	t.Parallel()
	config := filepath.Join(t.TempDir(), "rrd.toml")
	if err := os.WriteFile(config, []byte("workers = 1\npolicy = \"none\"\nqueue-limit = 100\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := harness.Start(t, harness.Options{
		Args: []string{"--config", config, "--workers", "3"}, Env: []string{"RRD_WORKERS=2", "RRD_POLICY=rr", "RRD_NO_SUCH=1"},
	})
	if s := m.Status(); s.Desired != 3 || s.Policy != "rr" {
		t.Errorf("%d workers, policy %s", s.Desired, s.Policy)
	}
	if _, samples := m.Metrics(); samples["rrd_connections_queue_limit"] != 100 {
		t.Errorf("queue limit %v", samples["rrd_connections_queue_limit"])
	}
	if e := m.Wait(harness.Named("config.warning")); !strings.Contains(e.Line, "RRD_NO_SUCH") {
		t.Error(e.Line)
	}
}

func TestVersionAndHelp(t *testing.T) {
	t.Parallel()
	if m := harness.Run(t, harness.Options{Args: []string{"--version"}}); !strings.Contains(m.Stdout(), "rrd") {
		t.Errorf("version %q", m.Stdout())
	}
	m := harness.Run(t, harness.Options{Args: []string{"--help"}})
	for _, flag := range []string{"--policy", "--listen", "--workers", "--check"} {
		if !strings.Contains(m.Stdout(), flag) {
			t.Errorf("help does not name %s", flag)
		}
	}
}

// A program that puts itself into the background is told to run in the foreground.
func TestDaemonizes(t *testing.T) {
	t.Parallel()
	m := harness.Run(t, harness.Options{
		Args:    []string{"--policy", "none", "--workers", "2", "--worker-protocol", "listen-fds"},
		Command: []string{"sh", "-c", "sleep 1000 & exit 0"}, ExitCode: 3,
	})
	if !strings.Contains(m.Log(), "run it in the foreground") {
		t.Errorf("the log does not say what to do:\n%s", m.Log())
	}
	if n := len(m.Events(harness.Named("worker.start"))); n != 2 {
		t.Errorf("%d processes were started", n)
	}
}
