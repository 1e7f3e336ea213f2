//go:build linux

package test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"rrd/test/harness"
	"rrd/test/load"
)

// Commands that keep the channel from the program are refused, and start nothing.
func TestNodeLaunchersAreRefused(t *testing.T) {
	t.Parallel()
	for _, command := range [][]string{{"npm", "start"}, {"node", "--watch", nodeProgram(t, "http.js")}} {
		for _, check := range [][]string{nil, {"--check"}} {
			m := harness.Run(t, harness.Options{Args: check, Command: command, Listen: []string{}, NoMetrics: true, ExitCode: 2})
			if log := m.Log(); strings.Contains(strings.TrimSpace(log), "\n") || !strings.Contains(log, "cannot be a Node worker") || !strings.Contains(log, "as in rrd -- node server.js") {
				t.Errorf("%q: %s", command, log)
			}
		}
	}
}

// A tool that listens on a socket of its own, and starts the program in a second process
// when it is served there.
const launching = `#!/usr/bin/env node
const net = require('node:net');
const path = require('node:path').join(require('node:os').tmpdir(), process.env.SOCKET_NAME.replace('PID', process.pid));
let started = false;
net.createServer((c) => {
  c.destroy();
  if (started) return;
  started = true;
  console.log('the tool is served');
  require('node:child_process').spawn(process.execPath, [process.env.PROGRAM], { stdio: 'inherit' });
}).listen(path, () => net.connect(path).on('error', () => {}));
`

// Programs that never ask rrd for a listener of the service: one warning, with the cure, and
// no worker is ready.
func TestNodeSilent(t *testing.T) {
	for name, tt := range map[string]struct{ program, text, socket, says string }{
		"no listen":            {"empty.js", "", "", "does it call listen()?"},
		"a tool":               {"tool.js", launching, "tool-PID.pipe", "does it call listen()?"},
		"a tool that is known": {"tsx", launching, "pipe", "tsx keeps the channel for itself: run node --import tsx server.ts"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), tt.program)
			if err := os.WriteFile(path, []byte(tt.text), 0o700); err != nil {
				t.Fatal(err)
			}
			command := []string{path}
			if strings.HasSuffix(path, ".js") {
				command = []string{"node", path}
			}
			// Each process binds a port of its own, with no word to the master.
			m := node(t, 2, "http.js", harness.Options{
				Args: []string{"--policy", "rr", "--start-timeout", "6s"}, Command: command, Unready: true, ExitCode: 3,
				Env: []string{"PROGRAM=" + nodeProgram(t, "http.js"), "SOCKET_NAME=" + tt.socket},
			})
			if tt.socket != "" {
				m.WaitStdout("the tool is served")
			}
			e := m.Wait(harness.Named("worker.silent"))
			if e.Str("level") != "warn" || !strings.Contains(e.Line, tt.says) {
				t.Errorf("it does not say %q: %s", tt.says, e.Line)
			}
			m.WaitExit()
			if n := len(m.Events(harness.Named("worker.silent"))); n != 1 {
				t.Errorf("said %d times", n)
			}
			if opened := len(m.Events(harness.Named("listener.open"))); (opened > 0) != (tt.socket != "") || len(m.Events(harness.Named("worker.ready"))) > 0 {
				t.Errorf("%d listeners, and workers that are ready: %d", opened, len(m.Events(harness.Named("worker.ready"))))
			}
		})
	}
}

// A worker that is not ready yet is told to disconnect, and ends by itself.
func TestNodeDrainsBeforeItIsReady(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "starting.js")
	const program = `const { worker } = require('node:cluster');
worker.on('disconnect', () => { console.log('disconnected', worker.exitedAfterDisconnect); setTimeout(() => process.exit(7), 50); });
console.log('starting');
setInterval(() => {}, 1000);
`
	if err := os.WriteFile(path, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	m := node(t, 1, "", harness.Options{Args: []string{"--worker-output", "json"}, Command: []string{"node", path}, Unready: true})
	m.WaitLog(`"line":"starting"`)
	m.Signal(syscall.SIGTERM)
	m.WaitExit()
	if e := m.Events(harness.Named("worker.exit")); len(e) != 1 || e[0].Int("exit_code") != 7 || !e[0].Bool("requested") {
		t.Errorf("%v", e)
	}
	m.WaitLog(`"line":"disconnected true"`)
}

// A program that ends in an exception before it listens: exit 3 with its words.
func TestNodeBootError(t *testing.T) {
	t.Parallel()
	m := node(t, 2, "", harness.Options{
		Args: []string{"--worker-output", "json"}, Command: []string{"node", filepath.Join(t.TempDir(), "missing.js")},
		Unready: true, ExitCode: 3,
	})
	m.WaitExit()
	m.WaitLog("missing.js")
}

// Each worker has an inspector of its own, wherever --inspect is said.
func TestNodeInspect(t *testing.T) {
	for _, where := range []string{"command", "NODE_OPTIONS"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			host := harness.Host()
			flag := "--inspect=" + host + ":9300"
			o := harness.Options{Command: []string{"node", flag, nodeProgram(t, "lab.js")}}
			if where == "NODE_OPTIONS" {
				o.Command = []string{"node", nodeProgram(t, "lab.js")}
				o.Env = []string{"NODE_OPTIONS=" + flag}
			}
			m := node(t, 3, "lab.js", o)
			check := func() {
				t.Helper()
				for slot, w := range remotes(t, m) {
					want := net.JoinHostPort(host, strconv.Itoa(9300+slot))
					if got := w.get("/inspect").URL; !strings.HasPrefix(got, "ws://"+want+"/") {
						t.Errorf("the inspector of slot %d is at %q, want %s", slot, got, want)
					}
					w.close()
				}
			}
			check()
			mark := m.Mark()
			m.Kill(m.PID(1), syscall.SIGKILL)
			m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", 1))
			check()
		})
	}
}

// --listen and the program's own address: equal, mapped, and not equal.
func TestNodeListenFlag(t *testing.T) {
	t.Parallel()
	t.Run("equal", func(t *testing.T) {
		t.Parallel()
		at := freePort(t)
		host, port := hostPort(t, at)
		m := node(t, 2, "http.js", harness.Options{Listen: []string{"web=" + at}, Env: []string{"HOST=" + host, "PORT=" + port}})
		exactly(t, nodeServes(t, m, load.Config{Address: at, Total: 40}).ByPID(), 2, 20)
		if n := len(m.Events(harness.Named("listener.open"))); n != 1 || m.AddrOf("web") != at {
			t.Errorf("%d listeners were opened", n)
		}
	})
	t.Run("as", func(t *testing.T) {
		t.Parallel()
		host := harness.Host()
		// The program asks for 3000, and is told that it has it.
		m := node(t, 2, "lab.js", harness.Options{
			Listen: []string{host + ":0,as=3000"}, Env: []string{"HOST=" + host, "PORT=3000"},
		})
		if strings.HasSuffix(m.Addr(), ":3000") {
			t.Errorf("it listens on %s", m.Addr())
		}
		exactly(t, nodeServes(t, m, load.Config{Total: 40}).ByPID(), 2, 20)
		if n := len(m.Events(harness.Named("listener.open"))); n != 1 {
			t.Errorf("%d listeners were opened", n)
		}
	})
	t.Run("unix", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "s")
		m := node(t, 2, "lab.js", harness.Options{Listen: []string{"unix:" + path}, Env: []string{"SOCKET=" + path}})
		exactly(t, nodeServes(t, m, load.Config{Network: "unix", Address: path, Total: 40}).ByPID(), 2, 20)
	})
	t.Run("not equal", func(t *testing.T) {
		t.Parallel()
		at := freePort(t)
		m := node(t, 2, "lab.js", harness.Options{
			Listen: []string{harness.Host() + ":0"}, Env: []string{"HOST=" + harness.Host(), "PORT=3000"}, Unready: true, ExitCode: 3,
		})
		e := m.Wait(harness.Named("listener.refused"))
		if e.Str("level") != "error" || !strings.Contains(e.Line, "--listen") {
			t.Error(e.Line)
		}
		m.WaitExit()
		m.WaitLog("lab: EADDRNOTAVAIL -99") // so the program was told
		_ = at
	})
}

// With shared listeners Node accepts by itself.
func TestNodeSharedPolicies(t *testing.T) {
	for _, policy := range []string{"none", "reuseport"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			m := node(t, 3, "http.js", harness.Options{Args: []string{"--policy", policy}})
			nodeServes(t, m, load.Config{Clients: 16, Total: 2000})
			if s := m.Idle(); s.Policy != policy || s.Accepted() != 0 {
				t.Errorf("policy %s, %d accepted by the master", s.Policy, s.Accepted())
			}
			// A worker's death costs what it had, and no more; its successor serves.
			mark := m.Mark()
			m.Kill(m.PID(0), syscall.SIGKILL)
			m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", 0))
			nodeServes(t, m, load.Config{Clients: 16, Total: 500})
			if n := len(m.Events(harness.Named("listener.open"))); n != 1 && policy == "none" {
				t.Errorf("%d listeners were opened", n)
			}
		})
	}
}

// The variable of Node's own primary counts where nothing else says the policy.
func TestNodeSchedPolicy(t *testing.T) {
	for i, tt := range []struct {
		env, flag, want string
		warns           bool
	}{
		{"none", "", "none", false},
		{"rr", "", "rr", false},
		{"none", "rr", "rr", false},
		{"fair", "", "rr", true},
	} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			o := harness.Options{Env: []string{"NODE_CLUSTER_SCHED_POLICY=" + tt.env}}
			if tt.flag != "" {
				o.Args = []string{"--policy", tt.flag}
			}
			m := node(t, 1, "http.js", o)
			e := m.Wait(harness.Named("start"))
			if e.Str("policy") != tt.want {
				t.Errorf("policy %s, want %s: %s", e.Str("policy"), tt.want, e.Line)
			}
			if tt.flag == "" && !tt.warns && !strings.Contains(e.Line, "NODE_CLUSTER_SCHED_POLICY") {
				t.Errorf("it does not say why: %s", e.Line)
			}
			warned := false
			for _, w := range m.Events(harness.Named("config.warning")) {
				warned = warned || strings.Contains(w.Line, "NODE_CLUSTER_SCHED_POLICY")
			}
			if warned != tt.warns {
				t.Errorf("a warning: %v, want %v", warned, tt.warns)
			}
			nodeServes(t, m, load.Config{Total: 5})
		})
	}
}
