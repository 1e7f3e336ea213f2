//go:build unix

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"rrd/dispatcher"
	"rrd/metrics"
	"rrd/worker/pool"
)

// testHost is a machine of 6 CPUs, root, with two files and one user.
func testHost(files map[string]string) *host {
	return &host{
		readFile: func(path string) ([]byte, error) {
			if data, ok := files[path]; ok {
				return []byte(data), nil
			}
			return nil, &fs.PathError{Op: "open", Path: path, Err: syscall.ENOENT}
		},
		account: func(v string) (account, error) {
			switch v {
			case "web":
				return account{33, 34, "web", "/srv/web"}, nil
			case "4711":
				return account{uid: 4711, gid: -1}, nil
			}
			return account{}, errors.New("is no user of this system: name one, or give its number")
		},
		group: func(v string) (int, error) {
			if v == "www" {
				return 80, nil
			}
			return 0, errors.New("is no group of this system: name one, or give its number")
		},
		passDescriptors: func() error { return nil },
		program:         func(path string) (string, string) { return path, "" },
		maxProcs:        6,
	}
}

// words splits on spaces; "" is no word at all.
func words(s string) []string { return strings.Fields(s) }

func TestDefaults(t *testing.T) {
	c, act, err := testHost(nil).parseConfig(nil, nil)
	if err != nil || act != actionRun {
		t.Fatal(act, err)
	}
	want := &config{
		Listen:       []dispatcher.ListenerConfig{{Name: "127.0.0.1:8080", Network: "tcp4", Address: "127.0.0.1:8080", UID: -1, GID: -1}},
		Policy:       "rr",
		PolicyReason: "auto: descriptors can be passed on this system",
		Workers:      6,
		QueueLimit:   4096, QueueTimeout: off, HandoffWindow: 4, BusyAfter: 50 * time.Millisecond,
		HangTimeout: 30 * time.Second, HangSignal: syscall.SIGKILL, RescueLimit: 1024, MaxConnectionsActive: 0,
		TicketRotate: 24 * time.Hour,
		ReadyMin:     1, ReadyMaxWait: 5 * time.Second,
		WorkerProtocol: "auto", StartTimeout: 30 * time.Second, ReadyAfter: time.Second,
		UnhealthyAfter: 10 * time.Second,
		DrainTimeout:   30 * time.Second, StopTimeout: 5 * time.Second, StopSignal: syscall.SIGTERM,
		RespawnMin: time.Second, RespawnMax: 30 * time.Second, Restart: "always", Surge: 1, CanaryTime: 5 * time.Second,
		LameDuck: off, DrainSpread: off, MaxAge: off, Hooks: hookCommands{Timeout: 30 * time.Second},
		WorkerOutput: "auto", Control: "auto", Metrics: endpoint{"tcp4", "127.0.0.1:9746"},
		LogLevel: zerolog.InfoLevel, LogFormat: "auto",
		Warnings: []string{rootWarning},
	}
	if diff := cmp.Diff(want, c, cmp.FilterPath(unexported, cmp.Ignore())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, s := range settings {
		if s.name != "config" && (c.origin(s.name) != fromDefault || c.explicit(s.name)) {
			t.Errorf("origin of %s is %q", s.name, c.origin(s.name))
		}
	}
	if !c.builtIn() {
		t.Error("no command is not the built-in worker")
	}
}

func unexported(p cmp.Path) bool {
	f, ok := p.Last().(cmp.StructField)
	return ok && f.Name() != "" && f.Name()[0] >= 'a'
}

// Every flag that takes a value, given once in each way, sets the same field to
// the same value.
func TestEverySettingFromEverySource(t *testing.T) {
	mode := os.FileMode(0o660)
	for _, s := range []struct {
		name, value string
		get         func(*config) any
		want        any
	}{
		{"listen", "a=unix:/s,mode=0660,backlog=9,owner=web,group=www", func(c *config) any { return c.Listen[0] },
			dispatcher.ListenerConfig{Name: "a", Network: "unix", Address: "/s", Backlog: 9, Mode: &mode, UID: 33, GID: 80}},
		{"policy", "none", func(c *config) any { return c.Policy }, dispatcher.SchedNone},
		{"workers", "3", func(c *config) any { return c.Workers }, 3},
		{"worker-protocol", "rrd", func(c *config) any { return c.WorkerProtocol }, pool.ProtocolNative},
		{"queue-limit", "5", func(c *config) any { return c.QueueLimit }, 5},
		{"queue-timeout", "5s", func(c *config) any { return c.QueueTimeout }, 5 * time.Second},
		{"handoff-window", "1", func(c *config) any { return c.HandoffWindow }, 1},
		{"busy-after", "off", func(c *config) any { return c.BusyAfter }, time.Duration(off)},
		{"hang-timeout", "off", func(c *config) any { return c.HangTimeout }, time.Duration(off)},
		{"hang-signal", "sigabrt", func(c *config) any { return c.HangSignal }, syscall.SIGABRT},
		{"worker-max-connections-active", "1000000", func(c *config) any { return c.MaxConnectionsActive }, 1000000},
		{"tls-ticket-rotate", "1h", func(c *config) any { return c.TicketRotate }, time.Hour},
		{"unhealthy-after", "off", func(c *config) any { return c.UnhealthyAfter }, time.Duration(off)},
		{"rescue-limit", "0", func(c *config) any { return c.RescueLimit }, 0},
		{"start-timeout", "1m30s", func(c *config) any { return c.StartTimeout }, 90 * time.Second},
		{"ready-after", "off", func(c *config) any { return c.ReadyAfter }, time.Duration(off)},
		{"drain-timeout", "off", func(c *config) any { return c.DrainTimeout }, time.Duration(off)},
		{"lame-duck", "7s", func(c *config) any { return c.LameDuck }, 7 * time.Second},
		{"drain-spread", "8s", func(c *config) any { return c.DrainSpread }, 8 * time.Second},
		{"ready-min", "2", func(c *config) any { return c.readyRule() }, metrics.ReadyRule{Min: 2, MaxWait: 5 * time.Second}},
		{"ready-max-wait", "off", func(c *config) any { return c.readyRule() }, metrics.ReadyRule{Min: 1}},
		{"max-connections-per-worker", "1000", func(c *config) any { return c.MaxPerWorker }, 1000},
		{"max-age", "24h", func(c *config) any { return c.MaxAge }, 24 * time.Hour},
		{"max-rss", "2GiB", func(c *config) any { return c.MaxRSS }, uint64(2 << 30)},
		{"hook-before-start", "a b", func(c *config) any { return c.Hooks.BeforeStart }, "a b"},
		{"hook-before-spawn", "c", func(c *config) any { return c.Hooks.BeforeSpawn }, "c"},
		{"hook-worker-ready", "d $X", func(c *config) any { return c.Hooks.WorkerReady }, "d $X"},
		{"hook-worker-exit", "e", func(c *config) any { return c.Hooks.WorkerExit }, "e"},
		{"hook-timeout", "off", func(c *config) any { return c.Hooks.Timeout }, time.Duration(off)},
		{"stop-timeout", "1ms", func(c *config) any { return c.StopTimeout }, time.Millisecond},
		{"stop-signal", "sigquit", func(c *config) any { return c.StopSignal }, syscall.SIGQUIT},
		{"restart", "on-failure", func(c *config) any { return c.Restart }, pool.RestartOnFailure},
		{"respawn-min", "10ms", func(c *config) any { return c.RespawnMin }, 10 * time.Millisecond},
		{"respawn-max", "1h", func(c *config) any { return c.RespawnMax }, time.Hour},
		{"user", "web", func(c *config) any { return *c.Credential }, pool.Credential{UID: 33, GID: 34}},
		{"group", "www", func(c *config) any { return *c.Credential }, pool.Credential{UID: 0, GID: 80}},
		{"worker-nofile", "1024", func(c *config) any { return c.WorkerNoFile }, uint64(1024)},
		{"chdir", "/srv", func(c *config) any { return c.Chdir }, "/srv"},
		{"env", "A=b={slot}", func(c *config) any { return c.Env }, []string{"A=b={slot}"}},
		{"env-file", "/env", func(c *config) any { return c.Env }, []string{"X= y ", "Z="}},
		{"worker-output", "json", func(c *config) any { return c.WorkerOutput }, "json"},
		{"control", "/run/c.sock", func(c *config) any { return c.Control }, "/run/c.sock"},
		{"metrics", "unix:/run/m.sock", func(c *config) any { return c.Metrics }, endpoint{"unix", "/run/m.sock"}},
		{"log-level", "debug", func(c *config) any { return c.LogLevel }, zerolog.DebugLevel},
		{"log-format", "json", func(c *config) any { return c.LogFormat }, "json"},
	} {
		files := map[string]string{
			"/env":    "# comment\n\nX= y \r\nZ=\n",
			"/r.toml": "# first line\n" + s.name + ` = "` + s.value + "\"\n",
		}
		if s.name == "env" {
			files["/r.toml"] = "\nenv = [\"" + s.value + "\"]\n"
		}
		for _, way := range []struct {
			origin        string
			args, environ []string
		}{
			{"flag", []string{"--" + s.name, s.value}, nil},
			{"flag", []string{"--" + s.name + "=" + s.value}, []string{envName(s.name) + "=\x00nonsense"}},
			{envName(s.name), []string{"--config=/r.toml"}, []string{envName(s.name) + "=" + s.value}},
			{"/r.toml:2", []string{"--config=/r.toml"}, nil},
			{"/r.toml:2", nil, []string{"RRD_CONFIG=/r.toml", envName(s.name) + "="}},
		} {
			if s.name == "env" && strings.HasPrefix(way.origin, "RRD_") {
				continue
			}
			c, _, err := testHost(files).parseConfig(way.args, way.environ)
			if err != nil {
				t.Errorf("%s from %s: %v", s.name, way.origin, err)
				continue
			}
			if got := s.get(c); !reflect.DeepEqual(got, s.want) {
				t.Errorf("%s from %s: %#v, want %#v", s.name, way.origin, got, s.want)
			}
			if c.origin(s.name) != way.origin {
				t.Errorf("%s: origin %q, want %q", s.name, c.origin(s.name), way.origin)
			}
		}
	}
}

func TestPrecedence(t *testing.T) {
	files := map[string]string{"/r.toml": "workers = 2\nqueue-limit = 7\nlisten = ['127.0.0.1:1', '127.0.0.1:2']"}
	h := testHost(files)
	environ := []string{"RRD_CONFIG=/r.toml", "RRD_WORKERS=3", "RRD_HANDOFF_WINDOW=2", "RRD_LISTEN=:10\t:11  :12"}
	c, _, err := h.parseConfig(words("-w 4 -w 5 --log-level=warn"), environ)
	if err != nil {
		t.Fatal(err)
	}
	if c.Workers != 5 || c.QueueLimit != 7 || c.HandoffWindow != 2 || c.LogLevel != zerolog.WarnLevel || c.RescueLimit != 1024 {
		t.Errorf("%+v", c)
	}
	if len(c.Listen) != 3 || c.Listen[1].Name != ":11" || c.origin("listen") != "RRD_LISTEN" || c.origin("config") != "RRD_CONFIG" {
		t.Errorf("listen: %+v from %s", c.Listen, c.origin("listen"))
	}
	// The reload: the same arguments, another file.
	files["/r.toml"] = "queue-limit = 8"
	if c, _, err = h.parseConfig(words("-w 5"), environ); err != nil || c.QueueLimit != 8 || c.Workers != 5 {
		t.Errorf("second reading: %v %+v", err, c)
	}
}

func TestCommand(t *testing.T) {
	files := map[string]string{"/r.toml": `command = ["node", "app.js"]`}
	for _, x := range []struct {
		args string
		want string
	}{
		{"-- a --workers 4 -- b", "a --workers 4 -- b"},
		{"--policy=rr --listen :8080 --workers 4 -- ./myapp", "./myapp"},
		{"--config /r.toml", "node app.js"},
		{"--config /r.toml -- python3", "python3"},
		{"", ""},
	} {
		c, _, err := testHost(files).parseConfig(words(x.args), nil)
		if err != nil || strings.Join(c.Command, " ") != x.want {
			t.Errorf("%q: %v %v", x.args, c, err)
			continue
		}
		if x.want != "" && x.args[:2] != "--" && len(c.Listen) != 0 {
			t.Errorf("%q: a command gets %v without --listen", x.args, c.Listen)
		}
	}
}

func TestActions(t *testing.T) {
	for args, want := range map[string]action{
		"":                         actionRun,
		"--check":                  actionCheck,
		"--version":                actionVersion,
		"--help":                   actionHelp,
		"-h --version --check":     actionHelp,
		"--version --check":        actionVersion,
		"--check=false":            actionRun,
		"--help --workers=never":   actionHelp,
		"--version notacommand":    actionVersion,
		"--check --workers=2 -- a": actionCheck,
	} {
		if _, act, err := testHost(nil).parseConfig(words(args), []string{"RRD_POLICY="}); err != nil || act != want {
			t.Errorf("%q: %v %v", args, act, err)
		}
	}
}

func TestPolicyAuto(t *testing.T) {
	h := testHost(nil)
	h.passDescriptors = func() error { return errors.New("sandboxed") }
	c, _, err := h.parseConfig(nil, nil)
	if err != nil || c.Policy != dispatcher.SchedNone || !strings.Contains(c.PolicyReason, "sandboxed") {
		t.Errorf("%v %v %q", err, c.Policy, c.PolicyReason)
	}
	if c, _, err = h.parseConfig(words("-p rr"), nil); err != nil || c.Policy != dispatcher.SchedRR || c.PolicyReason != "" {
		t.Errorf("explicit: %v %v %q", err, c.Policy, c.PolicyReason)
	}
	if err := probePassing(); err != nil {
		t.Errorf("this system passes descriptors, but: %v", err)
	}
}

func TestUserAndGroup(t *testing.T) {
	root, user := testHost(nil), testHost(nil)
	user.euid = os.Getuid() + 1000
	accounts := map[string]*pool.Account{"web": {Name: "web", Home: "/srv/web"}, "4711": {}}
	for _, x := range []struct {
		h    *host
		args string
		want pool.Credential
		err  string
	}{
		{root, "--user web", pool.Credential{UID: 33, GID: 34}, ""},
		{root, "--user web --group www", pool.Credential{UID: 33, GID: 80}, ""},
		{root, "--user 4711 --group www", pool.Credential{UID: 4711, GID: 80}, ""},
		{root, "--group www", pool.Credential{UID: 0, GID: 80}, ""},
		{root, "--user 4711", pool.Credential{}, `--user: "4711" is in no user database, so its group is unknown: add --group (from flag)`},
		{root, "--user nobody-at-all", pool.Credential{}, `--user: "nobody-at-all" is no user of this system: name one, or give its number (from flag)`},
		{user, "--user web", pool.Credential{}, fmt.Sprintf(`--user: "web" needs rrd to be started as root, and it runs as uid %d (from flag)`, user.euid)},
		{user, "--group www", pool.Credential{}, fmt.Sprintf(`--group: "www" needs rrd to be started as root, and it runs as uid %d (from flag)`, user.euid)},
	} {
		c, _, err := x.h.parseConfig(words(x.args), nil)
		if x.err != "" {
			if err == nil || err.Error() != x.err {
				t.Errorf("%s: %v, want %s", x.args, err, x.err)
			}
		} else if err != nil || !reflect.DeepEqual(*c.Credential, x.want) {
			t.Errorf("%s: %+v %v", x.args, c, err)
		} else if want := accounts[words(x.args)[1]]; !reflect.DeepEqual(c.Account, want) {
			t.Errorf("%s: account %+v, want %+v", x.args, c.Account, want)
		}
	}
}

// Workers with rrd's own uid can signal and trace it; root's can do all else too.
func TestWarnsOfRootWorkers(t *testing.T) {
	for args, want := range map[string]bool{
		"": true, "-p none": true, "--group www": true, "--user web": false, "--user 0 --group www": false,
	} {
		h := testHost(nil)
		h.account = func(v string) (account, error) { return account{uid: len(v) - 1, gid: 34}, nil } // "0" is root
		c, _, err := h.parseConfig(words(args), nil)
		if err != nil || slices.Contains(c.Warnings, rootWarning) != want {
			t.Errorf("%q: %v, warnings %q", args, err, c.Warnings)
		}
		h.euid = 1000
		if c, _, err := h.parseConfig(nil, nil); err != nil || len(c.Warnings) > 0 {
			t.Errorf("not root: %v, warnings %q", err, c.Warnings)
		}
	}
}

func TestRespawnRange(t *testing.T) {
	c, _, err := testHost(nil).parseConfig(words("--respawn-min 1m"), nil)
	if err != nil || c.RespawnMax != time.Minute {
		t.Errorf("a longer minimum alone: %v %v", c, err)
	}
}

func TestWarnings(t *testing.T) {
	c, _, err := testHost(nil).parseConfig(nil, []string{
		"RRD_WORKER=4", "RRD_PORT=tcp://10.0.0.1:80", "RRD_CHECK=1", "RRD_VERSION=1", "RRD_HELP=1", "RRD_ENV=A=b", "RRD_EVIL\n=1",
		"RRD_SLOT=0", "RRD_CHANNEL_FD=3", "RRD_GENERATION=1", "RRD_PROTOCOL=1", "RRD_EMPTY=", "rrd_workers=9", "RRD", "HOME=/",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"RRD_WORKER: ignored, because there is no such setting (did you mean RRD_WORKERS?)",
		"RRD_PORT: ignored, because there is no such setting",
		"RRD_CHECK: ignored, because this is a flag only: use --check",
		"RRD_VERSION: ignored, because this is a flag only: use --version",
		"RRD_HELP: ignored, because this is a flag only: use --help",
		"RRD_ENV: ignored, because this is a flag only: use --env",
		`"RRD_EVIL\n": ignored, because there is no such setting`,
		rootWarning,
	}
	if diff := cmp.Diff(want, c.Warnings); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if c.Workers != 6 {
		t.Error("a lower-case name was taken")
	}
}

func TestReadConfigFile(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	write(t, big, strings.Repeat("#", maxFile+1), 0o600)
	for _, path := range []string{dir, big, "/dev/zero", filepath.Join(dir, "none")} {
		if _, err := readConfigFile(path); err == nil {
			t.Errorf("%s was read", path)
		}
	}
	c, _, err := parseConfig([]string{"--config", dir}, nil)
	if err == nil || strings.Contains(err.Error(), "read "+dir) {
		t.Errorf("directory: %v %v", c, err)
	}
}

// Lookups of this machine itself: root is there everywhere.
func TestLookups(t *testing.T) {
	if a, err := lookupAccount("root"); err != nil || a != (account{0, 0, "root", a.home}) || a.home == "" {
		t.Errorf("root: %+v %v", a, err)
	}
	if a, err := lookupAccount("0"); err != nil || a.uid != 0 || a.gid != 0 {
		t.Errorf("0: %+v %v", a, err)
	}
	if a, err := lookupAccount("1999999999"); err != nil || a != (account{uid: 1999999999, gid: -1}) {
		t.Errorf("unknown number: %+v %v", a, err)
	}
	if g, err := lookupGroup("12345678"); err != nil || g != 12345678 {
		t.Errorf("unknown group number: %v %v", g, err)
	}
	for _, v := range []string{"", "no such user", "-1", "4294967295", "99999999999"} {
		if a, err := lookupAccount(v); err == nil {
			t.Errorf("user %q: %+v", v, a)
		}
		if g, err := lookupGroup(v); err == nil {
			t.Errorf("group %q: %v", v, g)
		}
	}
}
