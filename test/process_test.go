//go:build linux

package test

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"testing"

	"rrd/test/harness"
	"rrd/test/load"
)

// A worker has the master's environment less what speaks to the master itself,
// and what the protocol adds; nothing else.
func TestWorkerEnvironment(t *testing.T) {
	each(t, func(t *testing.T, policy string) {
		removed := []string{
			"RRD_WORKERS=1", "RRD_ANYTHING=x", "RRD_CHANNEL_FD=77", "RRD_SLOT=9", "LISTEN_FDS=1", "LISTEN_PID=1", "LISTEN_FDNAMES=x",
			"NOTIFY_SOCKET=/nowhere", "WATCHDOG_USEC=1", "WATCHDOG_PID=1", "NODE_CHANNEL_FD=5", "NODE_CHANNEL_SERIALIZATION_MODE=json",
			"NODE_UNIQUE_ID=1",
		}
		kept := []string{"CANARY=yes", "EMPTY=", "RRDX=1", "LISTENER=1"}
		m := harness.Start(t, harness.Options{
			Args: []string{"--policy", policy, "--env", "PLACE={slot} of {generation}", "--env", "CANARY=yes again"},
			Env:  append(slices.Clone(removed), kept...),
		})
		env, err := harness.Environ(m.PID(0))
		if err != nil {
			t.Fatal(err)
		}
		want := make(map[string]string)
		for _, kv := range m.Environ() {
			if slices.Contains(removed, kv) {
				continue
			}
			name, value, _ := strings.Cut(kv, "=")
			want[name] = value
		}
		want["PLACE"], want["CANARY"] = "0 of 1", "yes again"
		want["RRD_SLOT"], want["RRD_GENERATION"], want["RRD_PROTOCOL"] = "0", "1", "2"
		want["RRD_CHANNEL_FD"] = env["RRD_CHANNEL_FD"]
		var diff []string
		for name, value := range env {
			if w, ok := want[name]; !ok || w != value {
				diff = append(diff, fmt.Sprintf("+%s=%s", name, value))
			}
		}
		for name, value := range want {
			if v, ok := env[name]; !ok || v != value {
				diff = append(diff, fmt.Sprintf("-%s=%s", name, value))
			}
		}
		sort.Strings(diff)
		if len(diff) > 0 {
			t.Errorf("the environment differs:\n%s", strings.Join(diff, "\n"))
		}
	})
}

// A worker has exactly the descriptors that it should: those that the master
// itself was given by mistake do not get through. The worker is ls, which shows
// its own directory as one more.
func TestWorkerDescriptors(t *testing.T) {
	for _, tt := range []struct {
		policy, protocol string
		want             string
	}{
		{"rr", "auto", "0 1 2 3"},
		{"none", "auto", "0 1 2 3 4 5"}, // two listeners, then the channel
		{"reuseport", "auto", "0 1 2 3 4 5"},
		{"none", "listen-fds", "0 1 2 3 4"},
		{"none", "rrd", "0 1 2 3"},
	} {
		t.Run(tt.policy+" "+tt.protocol, func(t *testing.T) {
			t.Parallel()
			var stray []*os.File
			for range 40 {
				f, err := os.Open(os.DevNull)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				stray = append(stray, f)
			}
			ls := func(path string) string {
				m := harness.Run(t, harness.Options{
					Args:   []string{"--policy", tt.policy, "--workers", "1", "--worker-protocol", tt.protocol, "--worker-output", "raw"},
					Listen: []string{"a=" + harness.Host() + ":0", "b=" + harness.Host() + ":0"}, Files: stray, ExitCode: 3,
					Command: []string{"ls", "-o", path},
				})
				return m.Stdout()
			}
			var got []string
			for line := range strings.Lines(ls("/proc/self/fd")) {
				if fields := strings.Fields(line); len(fields) > 8 && fields[len(fields)-2] == "->" {
					got = append(got, fields[len(fields)-3])
				}
			}
			if want := fmt.Sprintf("%s %d", tt.want, (len(tt.want)+1)/2); strings.Join(got, " ") != want {
				t.Errorf("it has %v, want %s", got, want)
			}
			if stdin := ls("/proc/self/fd/0"); !strings.HasSuffix(stdin, "-> /dev/null") {
				t.Errorf("stdin is %s", stdin)
			}
		})
	}
}

// A program that does not raise it has the limit that it was given. (Go programs
// raise theirs to the hard limit as they start.)
func TestWorkerLimit(t *testing.T) {
	t.Parallel()
	m := harness.Start(t, harness.Options{
		Args:    []string{"--policy", "none", "--workers", "1", "--ready-after", "50ms", "--drain-timeout", "200ms", "--worker-nofile", "234"},
		Command: []string{"sleep", "1000"},
	})
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", m.PID(0)))
	if err != nil || !regexp.MustCompile(`Max open files +234 `).Match(limits) {
		t.Errorf("%v, limits\n%s", err, limits)
	}
}

// Masks and dispositions of signals are the defaults, whatever the master's are;
// a worker leads a process group of its own.
func TestWorkerSignals(t *testing.T) {
	t.Parallel()
	m := harness.Start(t, harness.Options{
		Args:    []string{"--policy", "none", "--workers", "1", "--ready-after", "50ms", "--drain-timeout", "200ms"},
		Wrap:    []string{"sh", "-c", `trap '' USR1 WINCH; exec "$@"`, "sh"},
		Command: []string{"sleep", "1000"},
	})
	status, err := harness.StatusFields(m.PID(0))
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{"SigBlk", "SigIgn", "SigCgt"} {
		if status[field] != "0000000000000000" {
			t.Errorf("%s is %s", field, status[field])
		}
	}
	if status["NSpgid"] != status["Pid"] {
		t.Errorf("process group %s of process %s", status["NSpgid"], status["Pid"])
	}
}

func TestWorkerIdentity(t *testing.T) {
	needsRoot(t)
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	four := func(id string) string { return strings.Join([]string{id, id, id, id}, " ") }
	each(t, func(t *testing.T, policy string) {
		dir := t.TempDir()
		for _, d := range []string{dir, filepath.Dir(dir)} { // nobody must get there
			if err := os.Chmod(d, 0o755); err != nil { //nolint:gosec // it is empty
				t.Fatal(err)
			}
		}
		m := harness.Start(t, harness.Options{Args: []string{
			"--policy", policy, "--workers", "2", "--user", "nobody", "--chdir", dir,
		}})
		serves(t, m, load.Config{Clients: 4, Total: 100})
		for slot := range 2 {
			pid := m.PID(slot)
			got, err := harness.StatusFields(pid)
			if err != nil {
				t.Fatal(err)
			}
			for field, want := range map[string]string{
				"Uid": four(nobody.Uid), "Gid": four(nobody.Gid), "Groups": nobody.Gid, "NoNewPrivs": "1",
				"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapAmb": "0000000000000000",
			} {
				if got[field] != want && !(field == "Groups" && got[field] == "") {
					t.Errorf("slot %d: %s is %q, want %q", slot, field, got[field], want)
				}
			}
			if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err != nil || cwd != dir {
				t.Errorf("it runs in %s, %v", cwd, err)
			}
		}
		// The master stays what it is.
		if got, err := harness.StatusFields(m.MasterPID()); err != nil || got["Uid"] != four("0") {
			t.Errorf("the master is %s, %v", got["Uid"], err)
		}
	})
}

// Programs open /dev/stdout and its like for their logs (nginx, php-fpm), also as --user,
// and find the home of that user.
func TestUserOpensItsOutput(t *testing.T) {
	needsRoot(t)
	t.Parallel()
	const script = `for f in /dev/stdout /dev/stderr /proc/self/fd/1; do (echo "opened $f" >$f) || echo "refused $f"; done
echo "home $HOME, user $USER, logname $LOGNAME"; exit 4`
	for _, output := range []string{"raw", "prefix", "json"} {
		m := harness.Run(t, harness.Options{
			Args:    []string{"--workers", "1", "--user", "nobody", "--worker-output", output, "--env", "LOGNAME=given"},
			Command: []string{"/bin/sh", "-c", script}, Env: []string{"HOME=/root", "USER=root"}, ExitCode: 3,
		})
		nobody, err := user.Lookup("nobody")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"opened /dev/stdout", "opened /dev/stderr", "opened /proc/self/fd/1",
			"home " + nobody.HomeDir + ", user nobody, logname given"} {
			if !strings.Contains(m.Stdout()+m.Log(), want) {
				t.Errorf("%s: no %q in\n%s%s", output, want, m.Stdout(), m.Log())
			}
		}
	}
}

// A worker that is not root asks for what only root may have.
func TestWorkerAsksBeyondItsRights(t *testing.T) {
	needsRoot(t)
	t.Parallel()
	for name, args := range map[string][]string{
		"a low port":              {"-addr", harness.Host() + ":88"},
		"a directory not its own": {"-network", "unix", "-addr", filepath.Join(t.TempDir(), "s")},
	} {
		m := harness.Run(t, harness.Options{
			Args: []string{"--policy", "rr", "--workers", "1", "--user", "nobody"}, Listen: []string{}, ExitCode: 3,
			Command: append([]string{userProgram(t)}, args...),
		})
		if !strings.Contains(m.Log(), "permission denied") {
			t.Errorf("%s: %s", name, m.Log())
		}
	}
}

// talking is a worker that writes this script's output before it serves.
func talking(t *testing.T, mode, script string) *harness.Master {
	t.Helper()
	return harness.Start(t, harness.Options{
		Args:    []string{"--policy", "rr", "--workers", "2", "--worker-output", mode},
		Listen:  []string{"web=" + harness.Host() + ":0"},
		Command: []string{"sh", "-c", script + "\nexec " + harness.Build(t, "", "rrd/test/faultworker") + " -listen tcp/web serve"},
	})
}

func TestWorkerOutput(t *testing.T) {
	const script = `echo "to stdout $RRD_SLOT"; echo "to stderr $RRD_SLOT" >&2; printf 'bytes \377\001\033[31m end\n'; head -c 40000 /dev/zero | tr '\0' x; echo`
	t.Run("raw", func(t *testing.T) {
		t.Parallel()
		m := talking(t, "raw", script)
		m.WaitStdout("to stdout 1\n")
		m.WaitLog("to stderr 0\n")
		m.WaitStdout("bytes \377\001\033[31m end\n")
		m.WaitStdout(strings.Repeat("x", 40000))
	})
	t.Run("prefix", func(t *testing.T) {
		t.Parallel()
		m := talking(t, "prefix", script)
		for _, want := range []string{"[slot 0] to stdout 0\n", "[slot 1] to stderr 1\n", "[slot 1] bytes \377"} {
			m.WaitStdout(want)
		}
		for line := range strings.Lines(m.Stdout()) {
			if !strings.HasPrefix(line, "[slot ") || len(line) > 17_000 {
				t.Errorf("a line of %d bytes: %.100q", len(line), line)
			}
		}
	})
	t.Run("json", func(t *testing.T) {
		t.Parallel()
		m := talking(t, "json", script)
		for slot := range 2 {
			for stream, text := range map[string]string{"stdout": "to stdout ", "stderr": "to stderr "} {
				e := m.Wait(func(e harness.Event) bool {
					return e.Name == "worker.output" && e.Int("worker") == slot && strings.HasPrefix(e.Str("line"), text)
				})
				if e.Str("stream") != stream || e.Str("line") != text+fmt.Sprint(slot) || e.Int("worker_pid") != m.PID(slot) {
					t.Error(e.Line)
				}
			}
			m.Wait(func(e harness.Event) bool {
				return strings.HasPrefix(e.Str("line"), "bytes ") && e.Int("worker") == slot
			})
			long := m.WaitFrom(0, 3, func(e harness.Event) bool {
				return strings.HasPrefix(e.Str("line"), "xxx") && e.Int("worker") == slot
			})
			n := 0
			for _, e := range long {
				n += len(e.Str("line"))
			}
			if n != 40000 || !long[0].Bool("more") || long[2].Bool("more") {
				t.Errorf("%d bytes in three parts", n)
			}
		}
		for line := range strings.Lines(m.Log()) {
			if strings.ContainsAny(line, "\033\001") {
				t.Errorf("control bytes in %.100q", line)
			}
		}
	})
}

// noisy is a worker that writes without end.
func noisy(t *testing.T) []string {
	t.Helper()
	program := harness.Build(t, "", "rrd/test/faultworker")
	return []string{"sh", "-c", "(while :; do echo " + strings.Repeat("noise ", 100) + "; done) & exec " + program + " -listen tcp/web serve"}
}

// unread returns the writing end of a pipe that nobody reads.
func unread(t *testing.T) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.Close()
		_ = w.Close()
	})
	return w
}

// Output that nobody reads stops neither the workers nor the master.
func TestBlockedOutput(t *testing.T) {
	t.Parallel()
	m := harness.Start(t, harness.Options{
		Args:    []string{"--policy", "rr", "--workers", "2", "--worker-output", "prefix"},
		Listen:  []string{"web=" + harness.Host() + ":0"},
		Files:   []*os.File{unread(t)},
		Wrap:    []string{"sh", "-c", `exec "$@" >&3`, "sh"},
		Command: noisy(t),
	})
	accounts(t, m, serves(t, m, load.Config{Clients: 4, Total: 500}))
}

// Nor does a log that nobody reads, and the end comes all the same.
func TestBlockedLog(t *testing.T) {
	t.Parallel()
	at := freePort(t)
	m := harness.Start(t, harness.Options{
		Args:    []string{"--policy", "rr", "--workers", "2", "--worker-output", "json"},
		Listen:  []string{"web=" + at},
		Metrics: freePort(t),
		Files:   []*os.File{unread(t)},
		Wrap:    []string{"sh", "-c", `exec "$@" 2>&3`, "sh"},
		Command: noisy(t),
		Unready: true,
	})
	m.AllReady()
	accounts(t, m, serves(t, m, load.Config{Address: at, Clients: 4, Total: 500}))
	if took := m.Stop(); took > soon {
		t.Errorf("it took %v to stop", took)
	}
}

// The built-in worker is rrd itself: where --user may not execute it, that is said before
// anything opens. A directory that the user may not enter is no matter.
func TestUserMayNotExecuteRRD(t *testing.T) {
	needsRoot(t)
	t.Parallel()
	dir := t.TempDir()
	program := filepath.Join(dir, "rrd")
	copyFile(t, harness.RRD(t), program)
	if err := os.Chmod(program, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, more := range []string{"--workers=1", "--check"} {
		m := harness.Run(t, harness.Options{Program: program, Args: []string{"--user", "nobody", more}, ExitCode: 2})
		if want := `rrd: --user: "nobody" may not execute rrd itself (` + program + `)`; !strings.Contains(m.Log(), want) {
			t.Errorf("%s: no %q in\n%s", more, want, m.Log())
		}
	}
	for path, mode := range map[string]os.FileMode{program: 0o755, dir: 0o700} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	m := harness.Start(t, harness.Options{Program: program, Args: []string{"--user", "nobody", "--workers", "1"}})
	serves(t, m, load.Config{Total: 3})
}
