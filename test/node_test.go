//go:build linux

package test

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// The programs of node/ know nothing of rrd. What these tests expect of them is
// what Node's own cluster primary would get, and more where rrd promises more.

// oldestNode is the oldest major version that rrd is tested with.
const oldestNode = 18

// nodeFound is the major version of the node in PATH, looked up once.
var nodeFound = sync.OnceValues(func() (int, error) {
	out, err := exec.Command("node", "--version").Output()
	if err != nil {
		return 0, fmt.Errorf("node --version: %w: install Node, or run make setup", err)
	}
	major, _, _ := strings.Cut(strings.TrimPrefix(string(out), "v"), ".")
	n, err := strconv.Atoi(major)
	if err == nil && n < oldestNode {
		err = fmt.Errorf("node is %s, want %d or newer: run make setup", strings.TrimSpace(string(out)), oldestNode)
	}
	return n, err
})

// nodeProgram returns the path of a program of node/. That it cannot run is a
// failure, never a reason to skip.
func nodeProgram(t *testing.T, name string) string {
	t.Helper()
	if _, err := nodeFound(); err != nil {
		t.Fatal(err)
	}
	path, err := filepath.Abs(filepath.Join("node", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(path), "node_modules", "express")); err != nil {
		t.Fatalf("%v: run make setup, which installs the programs' packages", err)
	}
	return path
}

// node starts a master with n workers that run a program of node/, on an address
// that they ask for, with port 0 unless o says otherwise.
func node(t *testing.T, n int, program string, o harness.Options) *harness.Master {
	t.Helper()
	if len(o.Command) == 0 {
		o.Command = []string{"node", nodeProgram(t, program)}
	}
	if o.Listen == nil {
		o.Listen = []string{}
	}
	o.Args = append([]string{"--workers", strconv.Itoa(n), "--respawn-min", "50ms"}, o.Args...)
	o.Env = append([]string{"HOST=" + harness.Host(), "PORT=0"}, o.Env...)
	return harness.Start(t, o)
}

// lab starts n workers with lab.js, which does what its URL says.
func lab(t *testing.T, n int, args ...string) *harness.Master {
	t.Helper()
	return node(t, n, "lab.js", harness.Options{Args: args})
}

// nodeSays judges what the programs answer, and notes the process.
func nodeSays(a load.Answer, res *load.Result) error {
	if a.Status != http.StatusOK {
		return fmt.Errorf("status %d: %.100q", a.Status, a.Body)
	}
	var b nodeAnswer
	if err := json.Unmarshal(a.Body, &b); err != nil {
		return fmt.Errorf("%w in %.100q", err, a.Body)
	}
	if b.URI != res.URI || b.PID <= 0 {
		return fmt.Errorf("asked for %s, got %.100q", res.URI, a.Body)
	}
	res.PID, res.Born, res.Connection = b.PID, b.Born, b.Connection
	return nil
}

// nodeAnswer is what every program answers, and what lab.js adds to it.
type nodeAnswer struct {
	PID        int
	Born       int64
	Connection uint64
	URI        string

	Error     string
	Errno     int
	Address   json.RawMessage
	ID        int
	Connected bool
	Env       map[string]string
	Worker    bool
	FDs       []string
	URL       string
	Keys      string
	Count     int
}

// port returns the port of a server that /listen opened.
func (a *nodeAnswer) port() int {
	var address struct{ Port int }
	_ = json.Unmarshal(a.Address, &address) // a text for unix sockets: no port
	return address.Port
}

// nodeServes is serves, and checks that what the clients got is what was acked.
func nodeServes(t *testing.T, m *harness.Master, cfg load.Config) *load.Report {
	t.Helper()
	cfg.Judge = nodeSays
	return serves(t, m, cfg)
}

// nodeAccounts checks the idle master's books against the ledger: all that came
// was accepted and acked once, and by the process whose answer the client got.
func nodeAccounts(t *testing.T, m *harness.Master, reports ...*load.Report) *harness.Status {
	t.Helper()
	s := m.Idle()
	answered := make(map[int]int)
	total := 0
	for _, r := range reports {
		total += len(r.Results)
		for pid, n := range r.ByPID() {
			answered[pid] += n
		}
	}
	if s.Accepted() != total || s.Acked() != total || s.Dropped() != 0 {
		t.Errorf("accepted %d, acked %d, dropped %d; the clients made %d connections", s.Accepted(), s.Acked(), s.Dropped(), total)
	}
	for _, w := range s.Workers {
		if w.Acks != answered[w.PID] {
			t.Errorf("slot %d has acked %d connections and answered %d", w.Slot, w.Acks, answered[w.PID])
		}
	}
	return s
}

// remote is a connection that is kept to one worker, to have it do things.
type remote struct {
	t   *testing.T
	c   net.Conn
	in  *bufio.Reader
	pid int
}

// connect opens one and learns who serves it.
func connect(t *testing.T, address string, config *tls.Config) *remote {
	t.Helper()
	network := "tcp"
	if strings.HasPrefix(address, "/") || strings.HasPrefix(address, "@") {
		network = "unix"
	}
	c, err := net.DialTimeout(network, address, harness.Patience)
	if err != nil {
		t.Fatal(err)
	}
	if config != nil {
		c = tls.Client(c, config)
	}
	r := &remote{t: t, c: c, in: bufio.NewReader(c)}
	t.Cleanup(r.close)
	r.pid = r.get("/").PID
	return r
}

func (r *remote) close() { _ = r.c.Close() }

// get has the worker do something and returns its answer.
func (r *remote) get(path string, query ...string) *nodeAnswer {
	r.t.Helper()
	a, err := r.try(path, query...)
	if err != nil {
		r.t.Fatalf("GET %s of process %d: %v", path, r.pid, err)
	}
	return a
}

// try is get where an error is no surprise. query is names and values in turn.
func (r *remote) try(path string, query ...string) (*nodeAnswer, error) {
	if err := r.ask(path, query...); err != nil {
		return nil, err
	}
	res, err := http.ReadResponse(r.in, nil)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	a := new(nodeAnswer)
	if err := json.Unmarshal(text, a); err != nil || res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d, %w: %.200q", res.StatusCode, err, text)
	}
	return a, nil
}

// ask sends a request and does not wait for the answer.
func (r *remote) ask(path string, query ...string) error {
	values := make(url.Values)
	for i := 0; i+1 < len(query); i += 2 {
		values.Set(query[i], query[i+1])
	}
	if err := r.c.SetDeadline(time.Now().Add(harness.Patience)); err != nil {
		return err
	}
	_, err := fmt.Fprintf(r.c, "GET %s?%s HTTP/1.1\r\nHost: lab\r\n\r\n", path, values.Encode())
	return err
}

// ended waits until the other side has ended the connection.
func (r *remote) ended() error {
	if err := r.c.SetReadDeadline(time.Now().Add(harness.Patience)); err != nil {
		return err
	}
	var timeout net.Error
	_, err := io.Copy(io.Discard, r.in)
	if errors.As(err, &timeout) && timeout.Timeout() {
		return err
	}
	return nil // an end, or a reset
}

// remotes connects to each worker of the master, in order of their slots. With
// idle workers that takes one connection each.
func remotes(t *testing.T, m *harness.Master) []*remote {
	t.Helper()
	workers := m.AllReady().Workers
	byPID := make(map[int]*remote)
	for range 4 * len(workers) {
		r := connect(t, m.Addr(), nil)
		if byPID[r.pid] != nil {
			r.close()
			continue
		}
		if byPID[r.pid] = r; len(byPID) == len(workers) {
			break
		}
	}
	var list []*remote
	for _, w := range workers {
		r := byPID[w.PID]
		if r == nil {
			t.Fatalf("slot %d, process %d, serves nobody: %v", w.Slot, w.PID, byPID)
		}
		list = append(list, r)
	}
	return list
}

// Real programs: in turn while idle, nobody lost under load, and a clean end.
func TestNodePrograms(t *testing.T) {
	const workers = 4
	for _, tt := range []struct {
		program string
		total   int
	}{
		{"http.js", 20_000},
		{"http.mjs", 2000},   // the same as an ES module
		{"cluster.js", 2000}, // and with a primary's half, which is not run
		{"express.js", 20_000},
		{"fastify.mjs", 20_000},
	} {
		t.Run(tt.program, func(t *testing.T) {
			m := node(t, workers, tt.program, harness.Options{Args: []string{"--policy", "rr"}})
			idle := nodeServes(t, m, load.Config{Total: 100 * workers})
			exactly(t, idle.ByPID(), workers, 100)
			busy := nodeServes(t, m, load.Config{Clients: 32, Total: tt.total})
			nodeAccounts(t, m, idle, busy)
			if took := m.Stop(); took > soon {
				t.Errorf("it took %v to stop", took)
			}
			cleanEnd(t, m, workers)
		})
	}
}

// exactly checks that each of the workers served n.
func exactly(t *testing.T, by map[int]int, workers, n int) {
	t.Helper()
	if len(by) != workers {
		t.Errorf("%d processes served, want %d", len(by), workers)
	}
	for pid, got := range by {
		if got != n {
			t.Errorf("process %d served %d, want exactly %d", pid, got, n)
		}
	}
}

// cleanEnd checks that the workers of an ended master ended because it asked them
// to, and none by KILL.
func cleanEnd(t *testing.T, m *harness.Master, workers int) {
	t.Helper()
	exits := m.Events(harness.Named("worker.exit"))
	if len(exits) != workers {
		t.Errorf("%d workers have ended, want %d", len(exits), workers)
	}
	for _, e := range exits {
		if !e.Bool("requested") || e.Str("cause") != "requested" || e.Int("signal_number") == 9 {
			t.Error(e.Line)
		}
	}
}
