//go:build linux

package test

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"rrd/test/harness"
	"rrd/test/load"
)

// Messages of 3 MB on the same channel as the answers to handoffs, eight of which
// are under way: none of either is lost.
func TestNodeMessages(t *testing.T) {
	const n, every = 5000, 100
	m := lab(t, 4, "--policy", "rr", "--handoff-window", "8")
	r := nodeServes(t, m, load.Config{Clients: 32, Total: n, URI: func(i int) string {
		if i%every == 0 {
			return "/send?bytes=3000000"
		}
		return "/"
	}})
	s := nodeAccounts(t, m, r)
	for _, w := range s.Workers {
		if w.Starts["respawn"] > 0 || len(w.Failures) > 0 && w.Failures["protocol"] > 0 {
			t.Errorf("slot %d: %+v", w.Slot, w)
		}
	}
	if e := m.Events(harness.Named("worker.exit")); len(e) > 0 {
		t.Error(e[0].Line)
	}
}

// A worker that was busy finds hundreds of handoffs at once, messages of its own
// between the answers: none is lost or mixed up with another.
func TestNodeWideWindow(t *testing.T) {
	t.Parallel()
	const n = 600
	m := lab(t, 1, "--policy", "rr", "--handoff-window", "1024", "--busy-after", "off")
	w := remotes(t, m)[0]
	if err := w.ask("/busy", "ms", "1000"); err != nil {
		t.Fatal(err)
	}
	running(t, w.pid)
	finish := waitingContext(t.Context(), m, load.Config{Clients: n, Total: n, Judge: nodeSays, URI: func(i int) string {
		if i%50 == 0 {
			return "/send?bytes=100000"
		}
		return "/"
	}})
	s := m.WaitStatus("all to have come", func(s *harness.Status) bool { return s.Accepted() == n+1 })
	t.Logf("%d in flight to the busy worker", s.Workers[0].InFlight)
	r := finish()
	t.Log(r)
	if r.Count(load.OK) != n {
		t.Errorf("%d of %d failed", n-r.Count(load.OK), n)
	}
	if s := m.Idle(); s.Acked() != n+1 || s.Dropped() != 0 || s.Workers[0].Handoffs != n+1 {
		t.Errorf("acked %d, dropped %d, handed off %d times", s.Acked(), s.Dropped(), s.Workers[0].Handoffs)
	}
}

// A worker that sends connections away is answered, so that it goes on; what it
// sent is closed.
func TestNodeSendsSockets(t *testing.T) {
	t.Parallel()
	m := lab(t, 2, "--policy", "rr")
	workers := remotes(t, m)
	for range 5 {
		for slot, w := range workers {
			given, _ := reach(t, m, slot)
			if err := given.ask("/sendsocket"); err != nil {
				t.Fatal(err)
			}
			if err := given.ended(); err != nil {
				t.Errorf("the connection that was sent away is still open: %v", err)
			}
			// It waits for an answer of the master about what it sent away.
			w.get("/count")
		}
	}
	r := nodeServes(t, m, load.Config{Total: 20})
	exactly(t, r.ByPID(), 2, 10)
}

// Sessions of one worker are resumed by all others and their successors, and what
// they are sealed with is in no log.
func TestNodeTLSResumption(t *testing.T) {
	t.Parallel()
	cert, roots := certificate(t)
	for name, version := range map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const workers = 3
			m := node(t, workers, "lab.js", harness.Options{
				Args: []string{"--policy", "rr", "--log-level", "debug", "--respawn-max", "50ms"}, Env: []string{"CERT=" + cert},
			})
			config := &tls.Config{
				RootCAs: roots, ServerName: "rrd.test", MinVersion: version, MaxVersion: version,
				ClientSessionCache: tls.NewLRUClientSessionCache(1),
			}
			keys := make(map[string]bool)
			pids := make(map[int]bool)
			session := func(resumed bool) {
				t.Helper()
				r := connect(t, m.Addr(), config)
				defer r.close()
				pids[r.pid] = true
				keys[r.get("/keys").Keys] = true
				if did := r.c.(*tls.Conn).ConnectionState().DidResume; did != resumed {
					t.Errorf("process %d has resumed a session: %v, want %v", r.pid, did, resumed)
				}
			}
			session(false)
			for range 2*workers - 1 {
				session(true)
			}
			for slot := range workers { // nobody of the first is left at the end
				mark := m.Mark()
				m.Kill(m.PID(slot), syscall.SIGKILL)
				m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", slot))
			}
			for range workers {
				session(true)
			}
			if len(keys) != 1 || len(pids) != 2*workers {
				t.Errorf("%d processes with %d different keys", len(pids), len(keys))
			}
			m.Stop()
			for key := range keys {
				if len(key) != 96 {
					t.Errorf("the keys are %d digits long", len(key))
				}
				for what, text := range map[string]string{"stderr": m.Log(), "stdout": m.Stdout()} {
					if strings.Contains(text, key) || strings.Contains(text, "ticketKeys") {
						t.Errorf("the ticket keys are in %s", what)
					}
				}
			}
		})
	}
}

// --ready-on-message: listening is not enough.
func TestNodeReadyOnMessage(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	m := node(t, 2, "ready.js", harness.Options{
		Args: []string{"--policy", "rr", "--ready-on-message", "--log-level", "debug"}, Env: []string{"GATE=" + g.path}, Unready: true,
	})
	// Said after listening, on the same channel.
	said := m.WaitFrom(0, 2, harness.Named("worker.message"))
	for _, e := range said {
		if !strings.Contains(e.Line, "not yet") {
			t.Error(e.Line)
		}
	}
	if e := m.Events(harness.Named("worker.ready")); len(e) > 0 {
		t.Errorf("too early: %s", e[0].Line)
	}
	g.open()
	m.WaitFrom(0, 2, harness.Named("worker.ready"))
	m.WaitReady()
	exactly(t, nodeServes(t, m, load.Config{Total: 20}).ByPID(), 2, 10)
}

// Without it the message is one like others.
func TestNodeReadyByListening(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	m := node(t, 1, "ready.js", harness.Options{Env: []string{"GATE=" + g.path}})
	nodeServes(t, m, load.Config{Total: 3})
	g.open()
}

// What a worker's environment holds, and that nothing of it reaches its children.
func TestNodeEnvironment(t *testing.T) {
	t.Parallel()
	m := node(t, 2, "lab.js", harness.Options{
		// As npm run gives to what it starts: not the workers' channel.
		Env: []string{"NODE_CHANNEL_FD=7", "NODE_UNIQUE_ID=99", "NODE_CHANNEL_SERIALIZATION_MODE=advanced"},
	})
	for slot, w := range remotes(t, m) {
		a := w.get("/env")
		if a.ID != slot+1 || !a.Connected {
			t.Errorf("slot %d: worker %d, connected %v", slot, a.ID, a.Connected)
		}
		if a.Env["RRD_SLOT"] != fmt.Sprint(slot) || a.Env["RRD_GENERATION"] != "1" {
			t.Errorf("slot %d: RRD_SLOT=%s RRD_GENERATION=%s", slot, a.Env["RRD_SLOT"], a.Env["RRD_GENERATION"])
		}
		initial, err := harness.Environ(w.pid)
		if err != nil {
			t.Fatal(err)
		}
		if initial["NODE_UNIQUE_ID"] != fmt.Sprint(slot+1) || initial["NODE_CHANNEL_FD"] == "7" || initial["NODE_CHANNEL_SERIALIZATION_MODE"] != "json" {
			t.Errorf("slot %d was started with %v", slot, initial)
		}
		for _, name := range []string{"RRD_CHANNEL_FD", "RRD_PROTOCOL", "LISTEN_FDS", "NOTIFY_SOCKET"} {
			if v, ok := initial[name]; ok {
				t.Errorf("slot %d was started with %s=%s", slot, name, v)
			}
		}
		child := w.get("/spawn")
		if child.Error != "" {
			t.Fatal(child.Error)
		}
		for _, name := range []string{"NODE_CHANNEL_FD", "NODE_CHANNEL_SERIALIZATION_MODE", "NODE_UNIQUE_ID"} {
			if v, ok := child.Env[name]; ok {
				t.Errorf("a child of slot %d has %s=%s", slot, name, v)
			}
		}
		for _, fd := range child.FDs {
			// Its outputs are pipes or sockets of its parent, 0 to 2.
			if n, target, _ := strings.Cut(fd, " "); len(n) > 0 && n > "2" && strings.HasPrefix(target, "socket:") {
				t.Errorf("a child of slot %d has inherited %s", slot, fd)
			}
		}
		if forked := w.get("/fork"); child.Worker || forked.Worker || forked.Env["NODE_UNIQUE_ID"] != "" {
			t.Errorf("a child of slot %d takes itself for a worker of the cluster", slot)
		}
	}
}

// User messages are logged at debug, bounded.
func TestNodeMessageLogged(t *testing.T) {
	t.Parallel()
	m := lab(t, 1, "--log-level", "debug")
	w := remotes(t, m)[0]
	w.get("/send", "bytes", "10")
	e := m.Wait(harness.Named("worker.message"))
	if e.Str("level") != "debug" || e.Int("worker") != 0 || !strings.Contains(e.Line, "xxxxxxxxxx") {
		t.Error(e.Line)
	}
	mark := m.Mark()
	w.get("/send", "bytes", "100000")
	e = m.WaitFrom(mark, 1, harness.Named("worker.message"))[0]
	if len(e.Line) > 4096 || !json.Valid([]byte(e.Line)) {
		t.Errorf("a record of %d bytes", len(e.Line))
	}
}
