package metrics

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func get(h http.Handler, method, path string) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(method, path, nil))
	return rec
}

func TestEndpoints(t *testing.T) {
	boom := errors.New("no copy within 1s\nforged line")
	ok := fullSnapshot()
	draining := fullSnapshot()
	draining.Draining = true
	none := fullSnapshot()
	none.Workers[0].State = "starting"
	for _, c := range []struct {
		name, method, path string
		snap               *Snapshot
		err                error
		code               int
		body               string
	}{
		{"healthy", "GET", "/-/healthy", ok, nil, 200, "rrd is healthy\n"},
		{"healthy without workers", "GET", "/-/healthy", none, nil, 200, "rrd is healthy\n"},
		{"loop hangs", "GET", "/-/healthy", ok, boom, 503, "the dispatch loop does not answer: no copy within 1s forged line\n"},
		{"ready", "GET", "/-/ready", ok, nil, 200, "rrd is ready: 1 of 2 workers are ready\n"},
		{"draining", "GET", "/-/ready", draining, nil, 503, "not ready: draining (1 of 2 workers are ready)\n"},
		{"no worker", "GET", "/-/ready", none, nil, 503, "not ready: not enough workers are ready: --ready-min is 1 (0 of 2 workers are ready)\n"},
		{"ready, loop hangs", "GET", "/-/ready", ok, boom, 503, "not ready: the dispatch loop does not answer: no copy within 1s forged line\n"},
		{"head", "HEAD", "/-/healthy", ok, nil, 200, ""},
		{"landing", "GET", "/", ok, nil, 200, `<a href="/metrics">`},
		{"metrics", "GET", "/metrics", ok, nil, 200, `rrd_connections_accepted_total{listener=":80"} 100`},
		{"metrics of the last copy", "GET", "/metrics", ok, boom, 200, `rrd_connections_accepted_total{listener=":80"} 100`},
		{"metrics without a copy", "GET", "/metrics", nil, boom, 200, `promhttp_metric_handler_errors_total{cause="gathering"} 0`},
		{"no such page", "GET", "/status.html", ok, nil, 404, ""},
		{"no such page", "GET", "/debug/pprof/", ok, nil, 404, ""},
		{"not read-only", "POST", "/metrics", ok, nil, 405, ""},
		{"not read-only", "DELETE", "/", ok, nil, 405, ""},
	} {
		e := New(Config{Source: func(context.Context) (*Snapshot, error) { return c.snap, c.err }})
		rec := get(NewServer(e, ServerConfig{}).Handler(), c.method, c.path)
		if rec.Code != c.code || !strings.Contains(rec.Body.String(), c.body) {
			t.Errorf("%s: %s %s = %d %.300q, want %d with %q", c.name, c.method, c.path, rec.Code, rec.Body, c.code, c.body)
		}
	}
}

func TestStatusJSON(t *testing.T) {
	snap := fullSnapshot()
	snap.Listeners[0].Acked = 91 // 102 in, 103 out: the law is broken
	e := New(Config{Source: fixed(snap), Build: Build{Version: "1.2.3"}})
	rec := get(NewServer(e, ServerConfig{}).Handler(), "GET", "/status.json")
	if rec.Code != 200 || rec.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("%d %v", rec.Code, rec.Header())
	}
	if !strings.HasPrefix(rec.Body.String(), "{\n  \"version\": 1,\n") {
		t.Errorf("starts with %.40q", rec.Body)
	}
	var doc struct {
		Version int
		RRD     struct {
			Version string
			PID     int
		}
		Ready     bool
		Law       map[string]Law
		Policy    string
		Listeners []struct {
			Name    string
			Dropped map[string]int
		}
		Workers []struct {
			Slot, PID, Generation int
			State                 string
			Active                *int    `json:"connections_active"`
			Backoff               float64 `json:"respawn_backoff_seconds"`
		}
	}
	if err := json.Unmarshal(rec.Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	switch {
	case doc.Version != StatusVersion, doc.RRD.Version != "1.2.3", doc.RRD.PID != os.Getpid(), !doc.Ready, doc.Policy != "rr":
		t.Errorf("head: %+v", doc)
	case doc.Law[":80"] != Law{false, 102, 103}:
		t.Errorf("law: %+v", doc.Law)
	case len(doc.Listeners) != 2, doc.Listeners[0].Dropped["poison"] != 1:
		t.Errorf("listeners: %+v", doc.Listeners)
	case len(doc.Workers) != 2, doc.Workers[0].PID != os.Getpid(), *doc.Workers[0].Active != 7, doc.Workers[1].Backoff != 1.5:
		t.Errorf("workers: %+v", doc.Workers)
	}
}

func TestStatusJSONWhenTheLoopHangs(t *testing.T) {
	for _, snap := range []*Snapshot{nil, fullSnapshot()} {
		e := New(Config{Source: func(context.Context) (*Snapshot, error) { return snap, errors.New("stuck") }})
		rec := get(NewServer(e, ServerConfig{}).Handler(), "GET", "/status.json")
		var doc map[string]any
		if err := json.Unmarshal(rec.Body.Bytes(), &doc); err != nil {
			t.Fatal(err)
		}
		if rec.Code != 503 || doc["stale"] != "stuck" || doc["ready"] != false || (doc["listeners"] != nil) != (snap != nil) {
			t.Errorf("%d %s", rec.Code, rec.Body)
		}
	}
}

// Requests beyond the limit are refused at once, not queued.
func TestRequestsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		h := limitRequests(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { <-release }), 3)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { get(h, "GET", "/") })
		}
		synctest.Wait()
		if rec := get(h, "GET", "/"); rec.Code != 503 || rec.Header().Get("Retry-After") == "" {
			t.Errorf("the fourth of three: %d", rec.Code)
		}
		close(release)
		wg.Wait()
		if rec := get(h, "GET", "/"); rec.Code != 200 {
			t.Errorf("afterwards: %d", rec.Code)
		}
	})
}

// serve runs a server on a fresh listener until the test ends and then checks
// that neither a goroutine nor a descriptor is left.
func serve(t *testing.T, network, address string) net.Addr {
	t.Helper()
	goroutines, fds := runtime.NumGoroutine(), countFDs(t)
	ln, err := Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- NewServer(New(Config{Source: fixed(fullSnapshot())}), ServerConfig{}).Serve(ctx, ln) }() // waited for below
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		http.DefaultClient.CloseIdleConnections()
		eventually(t, func() error {
			if n := runtime.NumGoroutine(); n > goroutines {
				return fmt.Errorf("%d goroutines, were %d", n, goroutines)
			}
			if n := countFDs(t); n > fds {
				return fmt.Errorf("%d descriptors, were %d", n, fds)
			}
			return nil
		})
	})
	return ln.Addr()
}

// eventually tries f until it succeeds: ends of goroutines cannot be waited for
// in any other way.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); runtime.Gosched() {
		if err = f(); err == nil {
			return
		}
	}
	t.Error(err)
}

func countFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0 // no /proc: goroutines alone must do
	}
	return len(entries)
}

func TestServeTCP(t *testing.T) {
	addr := serve(t, "tcp", "127.0.0.1:0")
	res, err := http.Get("http://" + addr.String() + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if res.StatusCode != 200 || !strings.Contains(string(body), "process_cpu_seconds_total") || !strings.Contains(string(body), "go_goroutines") {
		t.Errorf("%d %.200s", res.StatusCode, body)
	}
	// The connection is idle now, which does not hold up the end of the server.
}

func TestServeUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.sock")
	addr := serve(t, "unix", path)
	c, err := net.Dial("unix", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprint(c, "GET /-/healthy HTTP/1.1\r\nHost: rrd\r\n\r\n")
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "HTTP/1.1 200 OK\r\n" {
		t.Errorf("%q %v", line, err)
	}
	if _, err := Listen("unix", path); err == nil {
		t.Error("a live socket was replaced")
	}
}

func TestListenReplacesStaleSocketsOnly(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	ln, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	if ln, err = Listen("unix", stale); err != nil {
		t.Errorf("stale socket: %v", err)
	} else {
		ln.Close()
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen("unix", file); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("on a file: %v", err)
	}
	if b, _ := os.ReadFile(file); string(b) != "precious" {
		t.Error("the file was replaced")
	}
}

// What a hostile client sends is refused or cut off; the server goes on.
func TestHostileRequests(t *testing.T) {
	addr := serve(t, "tcp", "127.0.0.1:0")
	for _, c := range []struct{ name, send, want string }{
		{"garbage", "\x00\x01\x02\r\n\r\n", "HTTP/1.1 400"},
		{"endless header", "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("a", 2*maxHeader) + "\r\n\r\n", "HTTP/1.1 431"},
		{"endless path", "GET /" + strings.Repeat("a", 2*maxHeader) + " HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 431"},
		{"no host", "GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 400"},
		{"many names", "GET /metrics?name[]=" + strings.Repeat("&name[]=x", 500) + " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "HTTP/1.1 200"},
	} {
		conn, err := net.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, c.send); err != nil {
			t.Fatal(err)
		}
		line, _ := bufio.NewReader(conn).ReadString('\n')
		if !strings.HasPrefix(line, c.want) {
			t.Errorf("%s: %q, want %s", c.name, line, c.want)
		}
		conn.Close()
	}
}

// Connections beyond the limit stay in the kernel's backlog and cost the master
// no descriptor; when one ends the next is served.
func TestConnectionsAreBounded(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln := newLimitListener(inner, 2)
	accepted := make(chan net.Conn)
	ended := make(chan error)
	go func() { // ends when ln is closed, waited for through ended
		for {
			c, err := ln.Accept()
			if err != nil {
				ended <- err
				return
			}
			accepted <- c
		}
	}()
	var served []net.Conn
	for range 3 {
		c, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	served = append(served, <-accepted, <-accepted)
	select {
	case <-accepted:
		t.Fatal("a third of two")
	case <-time.After(20 * time.Millisecond):
	}
	served[0].Close()
	served[0].Close() // gives back one place, not two
	third := <-accepted
	ln.Close()
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept after Close: %v", err)
	}
	third.Close()
	served[1].Close()
}
