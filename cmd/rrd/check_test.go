//go:build unix

package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func noBudget(*config) error { return nil }

// checked parses args on this machine and checks them.
func checked(t *testing.T, budget func(*config) error, args ...string) (string, error) {
	t.Helper()
	c, _, err := parseConfig(append([]string{"--check"}, args...), nil)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	err = c.check(&out, takeActivationFrom(nil, os.Getpid(), 3), budget)
	return out.String(), err
}

// write makes a file for a test.
func write(t *testing.T, path, data string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), mode); err != nil {
		t.Fatal(err)
	}
}

// taken is an address that somebody listens on until the test ends.
func taken(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.Addr().String()
}

func TestCheckMistakes(t *testing.T) {
	dir := t.TempDir()
	file, script, stale := filepath.Join(dir, "file"), filepath.Join(dir, "run0"), filepath.Join(dir, "stale")
	write(t, file, "", 0o600)
	write(t, script, "#!/bin/sh\n", 0o700)
	if err := os.Mkdir(filepath.Join(dir, "0.1"), 0o700); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	live := filepath.Join(dir, "live")
	alive, err := net.Listen("unix", live)
	if err != nil {
		t.Fatal(err)
	}
	defer alive.Close()
	busy := taken(t)

	for _, x := range []struct {
		args []string
		want string // "" is success
	}{
		{words("--listen 127.0.0.1:0"), ""},
		{words("--listen a=127.0.0.1:0 --listen b=127.0.0.1:0 -- /bin/sh"), ""},
		{words("--listen udp://127.0.0.1:0 --listen [::ffff:127.0.0.1]:0 -- sh"), ""},
		{words("--listen " + busy), `--listen: "` + busy + `" is taken: stop whoever listens there, or choose another (from flag)`},
		{words("--listen web=" + busy + ",backlog=5"), `--listen: "web=` + busy + `,backlog=5" is taken`},
		{words("--listen 192.0.2.1:0"), `--listen: "192.0.2.1:0" is no address of this machine (from flag)`},
		{words("--listen unix:" + stale), ""},
		{words("--listen unix:" + live), `is taken: stop whoever listens there, or choose another path (from flag)`},
		{words("--listen unix:" + file), `exists and is no socket: remove it, or choose another path (from flag)`},
		{words("--listen unix:" + dir + "/none/s"), `cannot be made in its directory: no such file or directory (from flag)`},
		{words("--listen unix:" + file + "/s"), `cannot be made: not a directory (from flag)`},
		{words("--listen fd:web"), `--listen: "fd:web" cannot be had: LISTEN_FDS is not set`},
		{words("--chdir " + dir + "/none"), `/none" cannot be entered: no such file or directory (from flag)`},
		{words("--chdir " + file), `cannot be entered: not a directory (from flag)`},
		{words("--control " + dir + "/none/c"), `/none: no such file or directory (from flag)`},
		{words("--control /tmp/c"), `may be written to by others`},
		{words("--metrics " + busy), `--metrics: "` + busy + `" is taken: stop whoever listens there, or choose another (from flag)`},
		{words("--metrics 127.0.0.1:0 --control " + dir + "/c"), ""},
		{words("-- " + dir + "/none"), `cannot be run: no such file or directory`},
		{words("-- " + file), `cannot be run: permission denied`},
		{words("-- " + dir), `cannot be run: `},
		{words("-- there-is-no-such-program"), `command "there-is-no-such-program" cannot be run: there is no such program in PATH: name its path`},
		{words("--chdir " + dir + " -- ./run{slot}"), ""},
		{words("--chdir " + dir + "/{slot}.{generation} -- ../run{slot}"), ""},
		{words("-- ./run{slot}"), `command "./run0" cannot be run: no such file or directory`},
		{words("--env PATH=/nowhere:" + dir + " -- run0"), ""},
		{words("--env PATH=/nowhere -- sh"), `command "sh" cannot be run`},
	} {
		args := x.args
		if !strings.Contains(strings.Join(args, " "), "--metrics") {
			args = append(words("--metrics off"), args...)
		}
		if !strings.Contains(strings.Join(args, " "), "--listen") {
			args = append(words("--listen 127.0.0.1:0"), args...)
		}
		out, err := checked(t, noBudget, args...)
		if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("%q: %v, want %q", x.args, err, x.want)
		}
		if err != nil && (out != "" || strings.ContainsRune(err.Error(), '\n')) {
			t.Errorf("%q: an error and output: %q %q", x.args, err, out)
		}
	}
	left, _ := filepath.Glob(filepath.Join(dir, ".rrd-check-*"))
	if len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if _, err := os.Stat(stale); err != nil {
		t.Error("the check removed a socket:", err)
	}
}

func TestCheckBudget(t *testing.T) {
	_, err := checked(t, func(c *config) error { return errors.New("too little") }, words("--listen 127.0.0.1:0 --metrics off")...)
	if err == nil || err.Error() != "too little" {
		t.Error(err)
	}
}

func TestCheckDefaultMetricsAddressTaken(t *testing.T) {
	busy := taken(t)
	c, _, err := parseConfig(words("--listen 127.0.0.1:0"), nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Metrics = endpoint{"tcp4", busy} // as if it were the default
	var out strings.Builder
	if err := c.check(&out, takeActivationFrom(nil, 1, 3), noBudget); err != nil {
		t.Error(err)
	}
	if !strings.Contains(out.String(), "# warning: --metrics: ") {
		t.Errorf("no warning in %q", out.String())
	}
}

func TestCheckOutput(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "r.toml")
	write(t, path, "command = ['/bin/sh', \"a\\\"b\\n\\u0001é\"]\nworkers = 2\nlisten = ['127.0.0.1:0']\nmetrics = 'off'\n[env]\nKEY = 'secret'\n", 0o600)
	out, err := checked(t, noBudget, "--config", path, "--drain-timeout", "1m")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"command = [\"/bin/sh\", \"a\\\"b\\u000A\\u0001é\"]\n",
		"listen = [\"127.0.0.1:0\"] # " + path + ":3\n",
		"workers = \"2\" # " + path + ":2\n",
		"drain-timeout = \"1m\" # flag\n",
		"stop-timeout = \"5s\" # default\n",
		"policy = \"auto\" # default; rr (auto: descriptors can be passed on this system)\n",
		"# config: \"" + path + "\" # flag\n",
		"# env: [\"KEY\"] # " + path + ":5\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	if strings.Contains(out, "secret") {
		t.Error("a secret is shown")
	}
	// It can be read back and says the same.
	again := filepath.Join(dir, "again.toml")
	write(t, again, out, 0o600)
	c, _, err := parseConfig([]string{"--config", again}, nil)
	if err != nil {
		t.Fatalf("reading it back: %v\n%s", err, out)
	}
	if c.Workers != 2 || c.Command[1] != "a\"b\n\x01é" || c.Listen[0].Name != "127.0.0.1:0" {
		t.Errorf("read back: %+v", c)
	}
}
