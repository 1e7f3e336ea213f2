//go:build linux

package test

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"rrd/test/harness"
	"rrd/test/load"
)

// Security: F47 to F52 of the matrix in docs/reliability.md.

func TestF47StrayDescriptors(t *testing.T) { strayDescriptors(t, form{}) }

// A master that was started with 200 descriptors that are not its own gives its
// workers exactly theirs, the first ones and every successor. The worker is sleep,
// which opens nothing.
func strayDescriptors(t *testing.T, f form) {
	starts := f.of(3, 200)
	socket := regexp.MustCompile(`^socket:\[\d+\]$`)
	pipe := regexp.MustCompile(`^pipe:\[\d+\]$`)
	null := regexp.MustCompile(`^/dev/null$`)
	for _, tt := range []struct {
		policy, protocol string
		sockets          int // listeners, then the channel
	}{
		{"rr", "auto", 1}, {"none", "auto", 3}, {"none", "rrd", 1}, {"none", "listen-fds", 2}, {"reuseport", "auto", 3}, {"reuseport", "listen-fds", 2},
	} {
		t.Run(tt.policy+" "+tt.protocol, func(t *testing.T) {
			t.Parallel()
			var stray []*os.File
			for range 200 {
				f, err := os.Open(os.DevNull)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				stray = append(stray, f)
			}
			m := harness.Start(t, harness.Options{
				Args: append([]string{"--policy", tt.policy, "--workers", "1", "--worker-protocol", tt.protocol,
					"--ready-after", "1ms", "--drain-timeout", "50ms", "--stop-timeout", "50ms"}, quick...),
				Listen: []string{"a=" + harness.Host() + ":0", "b=" + harness.Host() + ":0"}, Files: stray,
				Command: []string{"sleep", "1000"}, Unready: true,
			})
			want := append([]*regexp.Regexp{null, pipe, pipe}, slices.Repeat([]*regexp.Regexp{socket}, tt.sockets)...)
			starts := starts
			if tt.protocol == "rrd" || tt.policy == "rr" {
				starts = 1 // it never speaks, so it would not be started again
			}
			mark := 0
			for range starts {
				pid := m.WaitFrom(mark, 1, harness.Named("worker.start"))[0].Int("worker_pid")
				mark = m.Mark()
				harness.Poll(t, "sleep to have its descriptors and no others", func() error {
					open, err := harness.FDs(pid)
					if err != nil {
						return err
					}
					ok := len(open) == len(want)
					for i, form := range want {
						ok = ok && form.MatchString(open[i])
					}
					if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err != nil || string(name) != "sleep\n" || !ok {
						return fmt.Errorf("%q, %v, has %v", name, err, open)
					}
					return nil
				})
				if starts > 1 {
					// One that dies before any was ready is not started again.
					m.WaitFrom(0, 1, func(e harness.Event) bool {
						return harness.Named("worker.ready")(e) && e.Int("worker_pid") == pid
					})
					m.Kill(pid, syscall.SIGKILL)
				}
			}
		})
	}
}

// secret is a value that must be seen nowhere but in the worker.
const secret = "correct-horse-battery-staple"

func TestF48Environment(t *testing.T) { environment(t, form{}) }

// What rrd is given for its workers reaches them, and nobody else: not the log,
// not the metrics, not --check; and what is for rrd alone does not reach them.
func environment(t *testing.T, _ form) {
	dir := t.TempDir()
	file := filepath.Join(dir, "env")
	if err := os.WriteFile(file, []byte("FILE_TOKEN="+secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "rrd.toml")
	if err := os.WriteFile(config, []byte("env-file = \""+file+"\"\n[env]\nTABLE_TOKEN = \""+secret+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	foreign := []string{
		"RRD_LOG_LEVEL=debug", "RRD_UNKNOWN=" + secret, "RRD_CHANNEL_FD=9", "RRD_SLOT=9", "RRD_GENERATION=9", "RRD_PROTOCOL=9",
		"LISTEN_FDS=0", "LISTEN_PID=9", "LISTEN_FDNAMES=nine", "LISTEN_PIDFDID=9", "NOTIFY_SOCKET=/run/nine", "WATCHDOG_USEC=9", "WATCHDOG_PID=9",
		"NODE_CHANNEL_FD=9", "NODE_CHANNEL_SERIALIZATION_MODE=json", "NODE_UNIQUE_ID=9",
	}
	for _, policy := range policies {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			m := harness.Start(t, harness.Options{
				Args: append([]string{"--policy", policy, "--workers", "1", "--config", config}, quick...),
				Env:  append(slices.Clone(foreign), "OWN_TOKEN="+secret),
			})
			m.Kill(m.PID(0), syscall.SIGKILL) // its successor is as good
			m.WaitFrom(0, 2, harness.Named("worker.ready"))
			pid := m.AllReady().Workers[0].PID
			env, err := harness.Environ(pid)
			if err != nil {
				t.Fatal(err)
			}
			ours := map[string]string{"RRD_SLOT": "0", "RRD_GENERATION": "1", "RRD_PROTOCOL": "2"}
			for name, want := range ours {
				if env[name] != want {
					t.Errorf("%s=%s, want %s", name, env[name], want)
				}
			}
			for _, name := range []string{"OWN_TOKEN", "FILE_TOKEN", "TABLE_TOKEN"} {
				if env[name] != secret {
					t.Errorf("%s=%q did not reach it", name, env[name])
				}
			}
			for name := range env {
				rrds := slices.ContainsFunc([]string{"RRD_", "LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_", "NODE_CHANNEL_", "NODE_UNIQUE_ID"},
					func(prefix string) bool { return strings.HasPrefix(name, prefix) })
				// The built-in worker asks for its listeners over the channel.
				if rrds && name != "RRD_CHANNEL_FD" && ours[name] == "" {
					t.Errorf("%s=%s is not for it", name, env[name])
				}
			}
			m.Signal(syscall.SIGUSR1)
			m.Wait(harness.Named("dump.goroutine"))
			_, status, _ := m.Get("/status.json")
			metrics, _ := m.Metrics()
			_, landing, _ := m.Get("/")
			for name, text := range map[string]string{"log": m.Log(), "stdout": m.Stdout(), "status": status, "metrics": metrics, "landing page": landing} {
				if strings.Contains(text, secret) {
					t.Errorf("the secret is in the %s", name)
				}
			}
		})
	}
	t.Run("check", func(t *testing.T) {
		t.Parallel()
		m := harness.Run(t, harness.Options{
			Args: []string{"--check", "--config", config, "--env", "FLAG_TOKEN=" + secret},
			Env:  append(slices.Clone(foreign), "OWN_TOKEN="+secret), NoMetrics: true,
		})
		if text := m.Log() + m.Stdout(); strings.Contains(text, secret) || !strings.Contains(text, "FLAG_TOKEN") {
			t.Errorf("--check shows %s", text)
		}
	})
	t.Run("error", func(t *testing.T) {
		t.Parallel()
		bad := filepath.Join(t.TempDir(), "env")
		if err := os.WriteFile(bad, []byte("KEY=begin\n"+secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		m := harness.Run(t, harness.Options{Args: []string{"--env-file", bad}, NoMetrics: true, ExitCode: 2})
		if strings.Contains(m.Log(), secret) {
			t.Error(m.Log())
		}
	})
}

// evil is what no log may take literally.
const evil = "x\n{\"level\":\"error\",\"event\":\"forged\"}\r\x1b]0;forged\x07\x1b[31m\u2028\u202e\x7f\u009b31m\xff\xfe"

func TestF49LogForging(t *testing.T) { forging(t, form{}) }

// Whatever comes from outside is one field of one record, in both formats: a
// worker's output (random bytes among it), addresses that it asks for, arguments,
// names of variables, paths.
func forging(t *testing.T, f form) {
	bytes := f.of(20_000, 2_000_000)
	for _, format := range []string{"json", "console"} {
		t.Run(format, func(t *testing.T) {
			t.Parallel()
			at := freePort(t)
			worker := harness.Build(t, "", "rrd/test/faultworker")
			script := fmt.Sprintf(`printf '%%s\n' "$1"; printf '%%s\n' "$1" >&2; head -c %d /dev/urandom; echo; exec %s -listen "tcp/web" serve`, bytes, worker)
			m := harness.Start(t, harness.Options{
				Args:   []string{"--policy", "rr", "--workers", "1", "--worker-output", "json", "--log-format", format},
				Listen: []string{"web=" + at}, Metrics: freePort(t), Unready: true,
				Command: []string{"sh", "-c", script, "sh", evil},
				Env:     []string{"RRD_" + strings.ReplaceAll(evil, "=", "") + "=1"},
			})
			m.AllReady()
			accounts(t, m, serves(t, m, load.Config{Address: at, Total: 10}))
			m.Signal(syscall.SIGUSR1)
			m.WaitLog("dump.goroutine")
			m.Stop()
			clean(t, m, format)
		})
		t.Run(format+", refused", func(t *testing.T) {
			t.Parallel()
			worker := harness.Build(t, "", "rrd/test/faultworker")
			m := harness.Run(t, harness.Options{
				Args:    []string{"--policy", "rr", "--workers", "1", "--worker-output", "json", "--log-format", format},
				Listen:  []string{},
				Command: []string{worker, "-listen", "tcp/" + evil, "serve"}, Metrics: freePort(t), ExitCode: 3,
			})
			clean(t, m, format)
		})
	}
	// An error of the command line is one line.
	for name, args := range map[string][]string{
		"listen": {"--listen", evil + "=:80"}, "path": {"--listen", "unix:/tmp/" + evil}, "address": {"--listen", evil}, "policy": {"--policy", evil}, "flag": {"--" + evil}, "user": {"--user", evil},
		"word": {evil}, "config": {"--config", evil}, "env": {"--env", evil}, "chdir": {"--chdir", "/" + evil}, "workers": {"--workers", evil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := harness.Run(t, harness.Options{Args: append([]string{"--check"}, args...), NoMetrics: true, ExitCode: 2})
			if text := m.Log(); strings.Contains(text, "\n") || harmful(text) != "" {
				t.Errorf("%s in %q", harmful(text), text)
			}
		})
	}
}

// harmful returns the first character that a terminal or a reader of lines may take
// for more than itself.
func harmful(line string) string {
	for i, r := range line {
		if r == utf8.RuneError {
			if _, size := utf8.DecodeRuneInString(line[i:]); size < 2 {
				return fmt.Sprintf("%q", line[i])
			}
		}
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || r == '\u202e' {
			return fmt.Sprintf("%q", r)
		}
	}
	return ""
}

// clean checks that the log holds records and nothing else. The last lines of rrd
// itself, with its exit code, are for people in any format.
func clean(t *testing.T, m *harness.Master, format string) {
	t.Helper()
	stamp := regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z `)
	for line := range strings.Lines(m.Log()) {
		line = strings.TrimSuffix(line, "\n")
		if bad := harmful(line); bad != "" {
			t.Fatalf("%s in %.500q", bad, line)
		}
		var record map[string]any
		switch {
		case strings.HasPrefix(line, "rrd: "):
		case format == "console":
			if !stamp.MatchString(line) {
				t.Fatalf("no record: %.500q", line)
			}
		case json.Unmarshal([]byte(line), &record) != nil || record["event"] == nil:
			t.Fatalf("no record: %.500q", line)
		case record["event"] == "forged":
			t.Fatalf("forged: %.500q", line)
		}
	}
}

// identityProgram is a worker that tries what it must not be able to do to the
// master, and says what it could.
const identityProgram = `
import ctypes, json, os, signal, socket, sys, time
master = os.getppid()
libc = ctypes.CDLL(None, use_errno=True)
could = []
def attempt(what, f, *args):
    try:
        f(*args)
        could.append(what)
    except OSError:
        pass
def call(f, *args):
    if f(*args) < 0:
        raise OSError(ctypes.get_errno(), "")
for name in "SIGHUP", "SIGTERM", "SIGKILL", "SIGSTOP", "SIGUSR1":
    attempt(name, os.kill, master, getattr(signal, name))
attempt("signal 0", os.kill, master, 0)
attempt("ptrace", call, libc.ptrace, 16, master, 0, 0)  # PTRACE_ATTACH
for path in "environ", "mem", "maps", "fd", "fd/1", "cwd", "root", "exe", "auxv", "syscall", "stack":
    p = "/proc/%d/%s" % (master, path)
    attempt("list " + path, os.listdir, p) if path == "fd" else attempt("readlink " + path, os.readlink, p)
    attempt("open " + path, open, p, "rb")
pidfd = libc.syscall(434, master, 0)  # pidfd_open
attempt("pidfd_getfd", call, libc.syscall, 438, pidfd, 3, 0)
attempt("setuid", os.setuid, 0)
attempt("setgid", os.setgid, 0)
attempt("setgroups", os.setgroups, [0])
attempt("priority", os.setpriority, os.PRIO_PROCESS, master, 5)
attempt("oom_score", lambda: open("/proc/%d/oom_score_adj" % master, "w").write("1000"))
attempt("chroot", os.chroot, "/")
attempt("prlimit", call, libc.prlimit, master, 7, (ctypes.c_long * 2)(3, 3), None)
s = socket.socket()
attempt("port 80", s.bind, (sys.argv[1], 80))
status = dict(line.rstrip("\n").split(":\t", 1) for line in open("/proc/self/status") if ":\t" in line)
os.write(1, (json.dumps({"could": could, "groups": os.getgroups(), "status": status}) + "\n").encode())  # at once, so that two do not mix
time.sleep(1000)
`

func TestF50PrivilegeDrop(t *testing.T) { privilegeDrop(t, form{}) }

// Started as root, with groups and capabilities that it might hand down, rrd gives
// its workers another identity and nothing more, and what they try against it is
// refused.
func privilegeDrop(t *testing.T, _ form) {
	needsRoot(t)
	needsTool(t, "setpriv", "python3")
	for _, policy := range policies {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			dropsPrivileges(t, policy)
		})
	}
}

func dropsPrivileges(t *testing.T, policy string) {
	python := "/usr/bin/python3" // others may be root's own
	if _, err := os.Stat(python); err != nil {
		python = "python3"
	}
	protocol := "auto"
	if policy == "rr" {
		protocol = "rrd"
	}
	m := harness.Start(t, harness.Options{
		Args: []string{"--policy", policy, "--workers", "2", "--user", "nobody", "--group", "4242", "--worker-output", "raw",
			"--worker-protocol", protocol, "--ready-after", "50ms", "--drain-timeout", "50ms"},
		Wrap:    []string{"setpriv", "--groups", "4,24,27", "--inh-caps", "+net_bind_service,+sys_ptrace", "--ambient-caps", "+net_bind_service,+sys_ptrace"},
		Command: []string{python, "-c", identityProgram, harness.Host()}, Unready: true,
	})
	harness.Poll(t, "both to speak", func() error {
		if n := strings.Count(m.Stdout(), "could"); n < 2 {
			return fmt.Errorf("only %d of them did", n)
		}
		return nil
	})
	for line := range strings.Lines(m.Stdout()) {
		var got struct {
			Could  []string
			Groups []int
			Status map[string]string
		}
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		if len(got.Could) > 0 || len(got.Groups) > 0 {
			t.Errorf("a worker could %v, and has the groups %v", got.Could, got.Groups)
		}
		none := "0000000000000000"
		for field, want := range map[string]string{
			"Uid": "65534\t65534\t65534\t65534", "Gid": "4242\t4242\t4242\t4242", "NoNewPrivs": "1",
			"CapInh": none, "CapPrm": none, "CapEff": none, "CapAmb": none,
		} {
			if got.Status[field] != want {
				t.Errorf("%s is %q, want %q", field, got.Status[field], want)
			}
		}
	}
	if state := harness.State(m.MasterPID()); state == "T" || state == "" {
		t.Errorf("the master is in state %q", state)
	}
}

func TestF51MetricsAbuse(t *testing.T) { t.Parallel(); metricsAbuse(t, form{}) }

// Scrapers without end, clients that send headers without end and clients that
// never finish one have the HTTP address to themselves, and nothing of the rest.
func metricsAbuse(t *testing.T, f form) {
	n := f.of(300, 1000)
	lasts := time.Duration(f.of(2000, 30000)) * time.Millisecond
	m := rr(t, 2)
	at := m.MetricsAddr()
	calm := serves(t, m, load.Config{Rate: 200, Total: 400})
	for range 50 { // what scraping needs anyhow
		m.Metrics()
	}
	before := rss(t, m.MasterPID())
	open, err := harness.FDs(m.MasterPID())
	if err != nil {
		t.Fatal(err)
	}
	end := make(chan struct{})
	var abusers sync.WaitGroup
	for i := range n {
		abusers.Go(func() { abuse(at, i%3, end) })
	}
	most := 0
	watch := make(chan struct{})
	abusers.Go(func() {
		defer close(watch)
		for tick := time.NewTicker(50 * time.Millisecond); ; <-tick.C {
			if now, err := harness.FDs(m.MasterPID()); err == nil {
				most = max(most, len(now))
			}
			select {
			case <-end:
				tick.Stop()
				return
			default:
			}
		}
	})
	r := load.Run(t.Context(), load.Config{Address: m.Addr(), Rate: 200, Duration: lasts})
	during := rss(t, m.MasterPID())
	close(end)
	abusers.Wait()
	<-watch
	f.note(t, "p99 %v, with %d abusers %v; resident %d kB, then %d kB; at most %d descriptors more",
		calm.Percentile(0.99), n, r.Percentile(0.99), before>>10, during>>10, most-len(open))
	if len(r.Failed()) > 0 {
		t.Error(r)
	}
	// The clients' own times are those of a machine whose loopback is flooded; rrd's are
	// what abuse of it could change.
	m.Idle() // those who were abused may still wait in the kernel
	_, samples := m.Metrics()
	slow := samples["rrd_dispatch_duration_seconds_count"] - samples[`rrd_dispatch_duration_seconds_bucket{le="0.25"}`]
	if all := samples["rrd_dispatch_duration_seconds_count"]; slow > all/100 || all == 0 {
		t.Errorf("%v of %v connections were with the master for more than 250 ms", slow, all)
	}
	if during > before+8<<20 {
		t.Errorf("the master has grown from %d to %d kB", before>>10, during>>10)
	}
	// 40, and connections that are being dispatched just then.
	if most > len(open)+128 {
		t.Errorf("they cost the master %d descriptors", most-len(open))
	}
	accounts(t, m, calm, r)
}

// abuse goes on until end is closed.
func abuse(at string, kind int, end <-chan struct{}) {
	huge := []byte("GET /metrics HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("X-Filler: "+strings.Repeat("y", 1000)+"\r\n", 64))
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * time.Second}
	for {
		select {
		case <-end:
			return
		default:
		}
		if kind == 0 {
			if res, err := client.Get("http://" + at + "/metrics"); err == nil { //nolint:noctx // it has a time-out
				_, _ = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			}
			continue
		}
		c, err := net.DialTimeout("tcp", at, time.Second)
		if err != nil {
			continue
		}
		_ = c.SetDeadline(time.Now().Add(500 * time.Millisecond))
		if kind == 1 {
			_, _ = c.Write(huge)
		} else {
			_, _ = io.WriteString(c, "GET /metrics HTT")
		}
		_, _ = io.Copy(io.Discard, c)
		_ = c.Close()
	}
}

func TestF52SharedWorkerDeath(t *testing.T) { sharedDeath(t, form{}) }

// Where workers accept themselves a death loses what that worker had accepted, and
// nobody else: what waits in the kernel is served by the others or its successor.
func sharedDeath(t *testing.T, f form) {
	kills := f.of(5, 200)
	for name, o := range map[string]harness.Options{
		"none":      {Args: []string{"--policy", "none"}},
		"reuseport": {Args: []string{"--policy", "reuseport"}},
		"none, listen-fds": {Args: []string{"--policy", "none", "--worker-protocol", "listen-fds", "--ready-after", "off", "--worker-output", "json"}, Command: []string{
			"python3", "-c", strings.NewReplacer(
				"body = ", "__import__('time').sleep(0.04); body = ",
				"server.serve_forever()", `socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))
server.serve_forever()`,
			).Replace(listenFDsProgram),
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const busy = 40 // each connection takes so many ms: 6 are open at a time
			rate := 150.0
			o.Args = append(append(o.Args, "--workers", "4"), quick...)
			m := harness.Start(t, o)
			cfg := load.Config{Rate: rate, Duration: 24 * time.Hour, URI: func(int) string { return fmt.Sprintf("/sleep?ms=%d", busy) }}
			if o.Command != nil {
				cfg.Judge = load.AnyOK
				cfg.Rate = 30 // Python's start alone takes much of the machine
			}
			finish := underWith(t, m, cfg)
			var from, to []time.Time // of each death
			for i := range kills {
				span(150 * time.Millisecond)
				mark, pid := m.Mark(), m.PID(i%4)
				from = append(from, time.Now())
				m.Kill(pid, syscall.SIGKILL)
				m.WaitFrom(mark, 1, harness.OfSlot("worker.exit", i%4))
				to = append(to, time.Now())
				m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", i%4))
			}
			r := finish()
			for _, bad := range r.Failed() {
				// It was open when somebody died, and it was cut then.
				cut := false
				for i := range from {
					cut = cut || r.Began.Add(bad.Started).Before(to[i]) && r.Began.Add(bad.Ended).After(from[i])
				}
				if !cut || bad.Outcome != load.Empty && bad.Outcome != load.Reset {
					t.Errorf("connection %d, %v to %v: %v, %v; nobody died then", bad.Seq, bad.Started, bad.Ended, bad.Outcome, bad.Err)
				}
			}
			f.note(t, "%s: %d of %d connections lost in %d deaths", name, len(r.Failed()), len(r.Results), kills)
		})
	}
}
