//go:build unix

package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"rrd/dispatcher"
	"rrd/worker/pool"
)

// parsed is what args come to on this machine, with environ.
func parsed(t *testing.T, environ []string, args ...string) *config {
	t.Helper()
	c, _, err := parseConfig(args, environ)
	if err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return c
}

func TestNodeIsRecognised(t *testing.T) {
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(filepath.Join(dir, "in0"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"bin/tool":      "#!/usr/bin/env node\nlisten()\n",
		"bin/flags":     "#!/usr/bin/env -S FOO=1 node --no-warnings\n",
		"bin/direct":    "#! /opt/node/bin/node22\r\n",
		"bin/sh":        "#!/bin/sh\nexec node $0.js\n",
		"bin/python":    "#!/usr/bin/env python3\n# node\n",
		"bin/binary":    "\x7fELF#!node\n",
		"bin/endless":   "#!/usr/bin/env " + strings.Repeat(" ", 300) + "node\n",
		"bin/empty":     "",
		"in0/app":       "#!/usr/bin/node\n",
		"bin/node20":    "\x7fELF",
		"bin/forbidden": "#!/usr/bin/env node\n",
	} {
		write(t, filepath.Join(dir, name), text, 0o700)
	}
	if err := os.Chmod(filepath.Join(bin, "forbidden"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("node20", filepath.Join(bin, "js")); err != nil {
		t.Fatal(err)
	}
	environ := []string{"PATH=/nowhere:" + bin}
	for _, x := range []struct {
		args    string
		environ []string
		want    string // the reason; "" is no Node program
	}{
		{"-- node server.js", nil, "auto: node is Node"},
		{"-- /opt/none/node22 server.js", nil, "auto: /opt/none/node22 is Node"},
		{"-- nodejs", nil, "auto: nodejs is Node"},
		{"-- tool --port 80", environ, `auto: tool begins with #!/usr/bin/env node`},
		{"-- flags", environ, "auto: flags begins with #!/usr/bin/env -S FOO=1 node --no-warnings"},
		{"-- direct", environ, "auto: direct begins with #!/opt/node/bin/node22"},
		{"-- js x.js", environ, "auto: js is a link to " + bin + "/node20"},
		{"-- " + bin + "/tool", nil, "auto: " + bin + "/tool begins with #!/usr/bin/env node"},
		{"--env PATH=" + bin + " -- tool", nil, "auto: tool begins with #!/usr/bin/env node"},
		{"--chdir " + dir + " -- ./bin/tool", nil, "auto: ./bin/tool begins with #!/usr/bin/env node"},
		{"--chdir " + dir + " --env PATH=in{slot}:x -- app", nil, "auto: app begins with #!/usr/bin/node"},
		{"--chdir " + dir + "/in{slot} --env PATH= -- app", nil, "auto: app begins with #!/usr/bin/node"},
		{"--worker-protocol node -- sh -c tool", environ, ""},
		{"-- tool", nil, ""},
		{"-- sh -c node", environ, ""},
		{"-- python", environ, ""},
		{"-- binary", environ, ""},
		{"-- endless", environ, ""},
		{"-- empty", environ, ""},
		{"-- forbidden", environ, ""},
		{"-- " + dir, nil, ""},
		{"-- there-is-none", environ, ""},
		{"--worker-protocol rrd -- node x", nil, ""},
		{"--worker-protocol listen-fds --policy none -- node x", nil, ""},
		{"", nil, ""},
	} {
		c := parsed(t, x.environ, words(x.args)...)
		want := pool.ProtocolAuto
		if i := slices.Index(words(x.args), "--worker-protocol"); i >= 0 {
			want = pool.Protocol(words(x.args)[i+1])
		} else if x.want != "" {
			want = pool.ProtocolNode
		}
		if c.WorkerProtocol != want || c.ProtocolReason != x.want {
			t.Errorf("%s: %s (%s), want %s (%s)", x.args, c.WorkerProtocol, c.ProtocolReason, want, x.want)
		}
	}
}

func TestInterpretsNode(t *testing.T) {
	for line, want := range map[string]bool{
		"": false, "/usr/bin/node": true, "/usr/bin/node --flag": true, "node18": true, "/usr/bin/env": false,
		"/usr/bin/env node": true, "/usr/bin/env -S node --flag": true, "/usr/bin/env -Snode --flag": true,
		"/usr/bin/env --split-string=node -x": true, "/usr/bin/env -i A=b nodejs": true, "/usr/bin/env -u node bash": false,
		"/usr/bin/env -u X node": true, "/usr/bin/env bash node": false, "/bin/sh node": false, "/usr/bin/env -": false,
		"/usr/bin/env deno run": false, "/usr/bin/env bun": false,
	} {
		if interpretsNode(line) != want {
			t.Errorf("%q: %v", line, !want)
		}
	}
}

// Without descriptors that can be passed nothing of Node's own works.
func TestNodeNeedsPassing(t *testing.T) {
	h := testHost(nil)
	h.passDescriptors = func() error { return errors.New("sandboxed") }
	c, _, err := h.parseConfig(words("-- node x"), nil)
	if err != nil || c.WorkerProtocol != pool.ProtocolAuto || c.Policy != dispatcher.SchedNone {
		t.Errorf("auto: %v %+v", err, c)
	}
	_, _, err = h.parseConfig(words("--worker-protocol node -- node x"), nil)
	if want := `--worker-protocol: "node" needs a system that passes descriptors, and this one does not (sandboxed): run the program with --policy none --worker-protocol listen-fds (from flag)`; err == nil || err.Error() != want {
		t.Errorf("explicit: %v", err)
	}
}

func TestNodeSchedPolicy(t *testing.T) {
	files := map[string]string{"/r.toml": "policy = 'reuseport'"}
	for _, x := range []struct {
		args, value string
		policy      dispatcher.Policy
		origin      string
		warns       bool
	}{
		{"-- node x", "none", "none", envNodePolicy, false},
		{"-- node x", "rr", "rr", envNodePolicy, false},
		{"-- node x", "", "rr", fromDefault, false},
		{"-- node x", "NONE", "rr", fromDefault, true},
		{"-- node x", "1", "rr", fromDefault, true},
		{"--policy rr -- node x", "none", "rr", fromFlag, false},
		{"--policy auto -- node x", "none", "rr", fromFlag, false},
		{"--config /r.toml -- node x", "none", "reuseport", "/r.toml:1", false},
		{"--worker-protocol node -- ./x", "none", "none", envNodePolicy, false},
		{"-- ./x", "none", "rr", fromDefault, false},
		{"", "none", "rr", fromDefault, false},
	} {
		c, _, err := testHost(files).parseConfig(words(x.args), []string{envNodePolicy + "=" + x.value})
		if err != nil {
			t.Errorf("%s: %v", x.args, err)
			continue
		}
		warns := slices.ContainsFunc(c.Warnings, func(w string) bool { return strings.HasPrefix(w, envNodePolicy) })
		if c.Policy != x.policy || c.origin("policy") != x.origin || warns != x.warns {
			t.Errorf("%s with %q: %s from %s, warnings %q", x.args, x.value, c.Policy, c.origin("policy"), c.Warnings)
		}
		if x.origin == envNodePolicy && c.PolicyReason != envNodePolicy+" is "+x.value {
			t.Errorf("%s: reason %q", x.args, c.PolicyReason)
		}
	}
}

// --check shows what auto came to, and Node's own variable as an origin.
func TestCheckShowsNode(t *testing.T) {
	t.Setenv("PATH", os.Getenv("PATH"))
	dir := t.TempDir()
	write(t, filepath.Join(dir, "node"), "#!/bin/sh\n", 0o700)
	c := parsed(t, []string{envNodePolicy + "=none", "PATH=" + dir}, words("--metrics off --check -- node a.js")...)
	var out strings.Builder
	if err := c.check(&out, takeActivationFrom(nil, os.Getpid(), 3), noBudget); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"worker-protocol = \"auto\" # default; node (auto: node is Node)\n",
		"policy = \"none\" # NODE_CLUSTER_SCHED_POLICY\n",
		"ready-on-message = \"off\" # default\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in\n%s", want, out.String())
		}
	}
}

func TestReadyOnMessage(t *testing.T) {
	files := map[string]string{"/on": "ready-on-message = true", "/off": "ready-on-message = false", "/word": "ready-on-message = 'on'"}
	for _, x := range []struct {
		args    string
		environ string
		want    bool
		origin  string
	}{
		{"-- node x", "", false, fromDefault},
		{"--ready-on-message -- node x", "", true, fromFlag},
		{"--ready-on-message --workers 2 -- node x", "", true, fromFlag},
		{"--ready-on-message=on -- node x", "", true, fromFlag},
		{"--ready-on-message=off -- node x", "RRD_READY_ON_MESSAGE=on", false, fromFlag},
		{"-- node x", "RRD_READY_ON_MESSAGE=on", true, "RRD_READY_ON_MESSAGE"},
		{"--config /on -- node x", "", true, "/on:1"},
		{"--config /off -- node x", "", false, "/off:1"},
		{"--config /word -- node x", "", true, "/word:1"},
		{"--ready-on-message --worker-protocol node -- ./x", "", true, fromFlag},
		{"--ready-on-message=off -- ./x", "", false, fromFlag},
	} {
		c, _, err := testHost(files).parseConfig(words(x.args), []string{x.environ})
		if err != nil || c.ReadyOnMessage != x.want || c.origin("ready-on-message") != x.origin {
			t.Errorf("%s, %s: %v %+v", x.args, x.environ, err, c)
		}
	}
}

func TestNodeWarnsOfCodeInAFlag(t *testing.T) {
	for args, want := range map[string]string{
		"-- node -e x":                "command: with -e Node does not speak to rrd, and ends at once: put the program into a file",
		"-- node --title a --eval=x":  "command: with --eval Node does not speak to rrd, and ends at once: put the program into a file",
		"-- node server.js -e x":      "",
		"-- node -r ./e.js server.js": "",
		"-- ./app -e x":               "",
	} {
		c, _, err := testHost(nil).parseConfig(words(args), nil)
		if err != nil {
			t.Fatal(err)
		}
		if want != "" && !slices.Contains(c.Warnings, want) || want == "" && len(c.Warnings) > 1 { // one is about root
			t.Errorf("%s: %q", args, c.Warnings)
		}
	}
}

func TestNodeCure(t *testing.T) {
	for command, want := range map[string]string{
		"node server.js --watch":            "does it call listen()?",
		"node --inspect server.js":          "does it call listen()?",
		"./node_modules/.bin/tsx server.ts": "tsx keeps the channel for itself: run node --import tsx server.ts",
		"env nodemon server.js":             "nodemon keeps the channel for itself: run node server.js, and rrdctl reload after a change",
	} {
		got := (&config{Command: words(command)}).nodeCure()
		if !strings.Contains(got, want) || strings.ContainsRune(got, '\n') {
			t.Errorf("%s: %q, want %q", command, got, want)
		}
	}
}

// What a Node program that does not listen is told, it is told once.
func TestNodeSilentIsSaidOnce(t *testing.T) {
	var log bytes.Buffer
	m := &master{cfg: &config{Command: words("tsx server.ts"), WorkerProtocol: pool.ProtocolNode}, log: zerolog.New(&log)}
	m.workerSilent(pool.Worker{Slot: 1, PID: 5})
	m.workerSilent(pool.Worker{Slot: 2, PID: 6})
	if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `"level":"warn","event":"worker.silent","worker":1,`) ||
		!strings.Contains(got, "tsx keeps the channel") {
		t.Error(got)
	}
	m.cfg.WorkerProtocol = pool.ProtocolAuto
	log.Reset()
	m.workerSilent(pool.Worker{Slot: 1, PID: 5})
	m.workerSilent(pool.Worker{Slot: 2, PID: 6})
	if got := log.String(); strings.Count(got, `"level":"error","event":"worker.silent"`) != 2 {
		t.Errorf("not Node: %s", got)
	}
}

func TestNodeMessagesAreLoggedAtDebug(t *testing.T) {
	var log bytes.Buffer
	m := &master{log: zerolog.New(&log).Level(zerolog.DebugLevel)}
	one, other := m.nodeMessages(3), m.nodeMessages(4)
	for range 5 * messageBurst {
		one([]byte(`{"a":"b\n"}`))
	}
	other([]byte{0xff, '\n'})
	got := log.String()
	if n := strings.Count(got, `"worker":3,"text":"{\"a\":\"b\\n\"}"`); n < messageBurst || n > 2*messageBurst { // two periods at most
		t.Errorf("%d records of one worker:\n%s", n, got)
	}
	if n := strings.Count(got, `"worker":4,`); n != 1 || strings.Count(got, "\n") != strings.Count(got, `"event":"worker.message"`) {
		t.Errorf("%d records of the other:\n%s", n, got)
	}
	log.Reset()
	m.log = m.log.Level(zerolog.InfoLevel)
	m.nodeMessages(1)([]byte("1"))
	if log.Len() > 0 {
		t.Errorf("at info: %s", log.String())
	}
}

// What the rooms are told about Node: the listeners come by the channel under
// every policy, and sockets are left as Node needs them.
func TestNodeConfigOfTheRooms(t *testing.T) {
	for args, node := range map[string]bool{
		"--policy none --listen :0 -- node x":                              true,
		"--policy none --listen :0 -- ./x":                                 false,
		"--policy none --worker-protocol listen-fds --listen :0 -- node x": false,
	} {
		c, _, err := testHost(nil).parseConfig(words(args), nil)
		if err != nil {
			t.Fatal(err)
		}
		m := &master{cfg: c}
		p, d := m.poolConfig(nil), m.dispatcherConfig()
		if p.SharesListeners == node || d.NonblockingShared != node || (p.Pair != nil) != node || (p.Protocol == pool.ProtocolNode) != node {
			t.Errorf("%s: shares %v, nonblocking %v, protocol %s", args, p.SharesListeners, d.NonblockingShared, p.Protocol)
		}
	}
	ch, child, err := (&master{cfg: &config{}}).nodePair(0)
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close()
	defer child.Close()
	if !ch.Traits().HangsUp {
		t.Error("it is no channel of Node's")
	}
}

// A worker that left of its own accord is no error in the log.
func TestNodeExitIsToldByHowItLeft(t *testing.T) {
	for level, x := range map[string]pool.Exit{"info": {Left: true}, "error": {Code: 1}} {
		var log bytes.Buffer
		c, _, err := testHost(nil).parseConfig(words("-- node x"), nil)
		if err != nil {
			t.Fatal(err)
		}
		m := &master{cfg: c, log: zerolog.New(&log), wasReady: map[int]bool{}}
		if m.dispatcher, err = dispatcher.New(m.dispatcherConfig()); err != nil {
			t.Fatal(err)
		}
		if m.pool, err = pool.New(m.poolConfig([]string{})); err != nil {
			t.Fatal(err)
		}
		m.workerExited(pool.Worker{Slot: 1}, x)
		if err := m.dispatcher.Close(); err != nil {
			t.Error(err)
		}
		if !strings.Contains(log.String(), `"level":"`+level+`","event":"worker.exit"`) {
			t.Errorf("want %s: %s", level, log.String())
		}
	}
}
