//go:build linux

package test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/test/harness"
	"rrd/test/load"
)

// What rrd tells a service manager, and what it gets back from one. The tests are the
// service manager: they have the socket of NOTIFY_SOCKET, hold what is stored with
// FDSTORE, and start the next master with it.

func init() {
	matrix = append(matrix, []struct {
		id  string
		run func(*testing.T, form)
	}{
		{"F31", killedUnderASupervisor},
		{"F41", wedged},
	}...)
}

// manager is the service manager.
type manager struct {
	t    *testing.T
	path string
	conn *net.UnixConn
	done sync.WaitGroup

	mu       sync.Mutex
	messages []string
	store    map[string]*os.File
}

func newManager(t *testing.T) *manager {
	t.Helper()
	g := &manager{t: t, path: filepath.Join(t.TempDir(), "notify"), store: make(map[string]*os.File)}
	var err error
	if g.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: g.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	g.done.Go(g.read)
	t.Cleanup(func() {
		_ = g.conn.Close()
		g.done.Wait()
		for name, f := range g.store {
			t.Errorf("%s is still in the store", name)
			_ = f.Close()
		}
	})
	return g
}

// read ends with the socket.
func (g *manager) read() {
	buf, oob := make([]byte, 4096), make([]byte, 256)
	for {
		n, oobn, _, _, err := g.conn.ReadMsgUnix(buf, oob)
		if err != nil {
			return
		}
		g.take(string(buf[:n]), oob[:oobn])
	}
}

func (g *manager) take(text string, oob []byte) {
	var files []*os.File
	if list, err := unix.ParseSocketControlMessage(oob); err == nil {
		for i := range list {
			fds, _ := unix.ParseUnixRights(&list[i])
			for _, fd := range fds {
				files = append(files, os.NewFile(uintptr(fd), "stored"))
			}
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.messages = append(g.messages, text)
	name := value(text, "FDNAME")
	switch {
	case value(text, "FDSTORE") == "1" && len(files) == 1:
		if g.store[name] == nil { // systemd knows it by its inode; here its name does
			g.store[name] = files[0]
			return
		}
	case value(text, "FDSTOREREMOVE") == "1" && g.store[name] != nil:
		_ = g.store[name].Close()
		delete(g.store, name)
	}
	for _, f := range files {
		_ = f.Close()
	}
}

// value returns NAME=VALUE's value.
func value(text, name string) string {
	for line := range strings.SplitSeq(text, "\n") {
		if v, ok := strings.CutPrefix(line, name+"="); ok {
			return v
		}
	}
	return ""
}

func (g *manager) all() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.messages)
}

func (g *manager) count() int { return len(g.all()) }

// wait waits for a message that came after the first from ones, and returns it and the
// number of messages up to it.
func (g *manager) wait(from int, what string, match func(string) bool) (text string, at int) {
	g.t.Helper()
	harness.Poll(g.t, what, func() error {
		all := g.all()
		for i := from; i < len(all); i++ {
			if match(all[i]) {
				text, at = all[i], i+1
				return nil
			}
		}
		return fmt.Errorf("only %q", all[min(from, len(all)):])
	})
	return text, at
}

func has(parts ...string) func(string) bool {
	return func(text string) bool {
		return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(text, p) })
	}
}

func (g *manager) stored() (names []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for name := range g.store {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// asMain starts a program as its service manager does: it is told its own pid.
var asMain = []string{"sh", "-c", `WATCHDOG_PID=$$ LISTEN_PID=$$; export WATCHDOG_PID LISTEN_PID; exec "$@"`, "sh"}

// start starts a master with what is in the store.
func (g *manager) start(o harness.Options) *harness.Master {
	g.t.Helper()
	g.mu.Lock()
	var names []string
	for name, f := range g.store {
		names, o.Files = append(names, name), append(o.Files, f)
	}
	g.mu.Unlock()
	o.Wrap = asMain
	o.Env = append(o.Env, "NOTIFY_SOCKET="+g.path)
	if len(names) > 0 {
		o.Env = append(o.Env, "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	return harness.Start(g.t, o)
}

func TestSystemdReadyAndStatus(t *testing.T) {
	t.Parallel()
	g := newManager(t)
	m := g.start(harness.Options{Args: append([]string{"--workers", "2", "--policy", "rr"}, quick...)})
	first, _ := g.wait(0, "READY=1", has("READY=1"))
	if want := regexp.MustCompile(`^READY=1\nSTATUS=[12]/2 workers ready, policy rr, queue 0$`); !want.MatchString(first) {
		t.Errorf("%q", first)
	}
	_, at := g.wait(0, "the status of both", has("STATUS=2/2 workers ready, policy rr, queue 0"))
	stopped := m.PID(0)
	m.Kill(stopped, syscall.SIGSTOP)
	finish := waiting(t, m, load.Config{Clients: 1, Total: 1}) // the other worker serves
	if r := finish(); r.Count(load.OK) != 1 {
		t.Error(r)
	}
	m.Kill(m.PID(1), syscall.SIGSTOP)
	held := waiting(t, m, load.Config{Clients: 40, Total: 40})
	_, at = g.wait(at, "the reason", func(s string) bool {
		return has("STATUS=not ready: not enough workers are ready and answer", "2/2 workers ready, policy rr, queue ")(s) && !has("queue 0")(s)
	})
	m.Kill(stopped, syscall.SIGCONT)
	m.Kill(m.PID(1), syscall.SIGCONT)
	if r := held(); r.Count(load.OK) != 40 {
		t.Error(r)
	}
	_, at = g.wait(at, "no queue", has("STATUS=2/2 workers ready, policy rr, queue 0"))
	m.Signal(syscall.SIGTTIN)
	_, at = g.wait(at, "three", has("STATUS=3/3 workers ready"))
	if n := strings.Count(strings.Join(g.all(), "\n"), "READY=1"); n != 1 {
		t.Errorf("READY=1 was said %d times", n)
	}
	for pid := range harness.Children(m.MasterPID()) {
		if env, err := harness.Environ(pid); err == nil && (env["NOTIFY_SOCKET"] != "" || env["WATCHDOG_PID"] != "") {
			t.Errorf("worker %d speaks to the service manager: %q", pid, env)
		}
	}
	m.Stop()
	_, at = g.wait(at, "STOPPING=1", has("STOPPING=1"))
	g.wait(at, "more time", has("EXTEND_TIMEOUT_USEC="))
	if left := g.stored(); len(left) > 0 {
		t.Errorf("left in the store: %q", left)
	}
}

func TestSystemdReload(t *testing.T) {
	t.Parallel()
	g := newManager(t)
	web, other := harness.Host()+":0", harness.Host()+":0"
	path := filepath.Join(t.TempDir(), "rrd.toml")
	write := func(format string, args ...any) {
		t.Helper()
		text := "workers = 2\ncanary-time = \"off\"\n" + fmt.Sprintf(format, args...)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("listen = [\"web=%s\", \"unix:%s\"]\n", web, filepath.Join(t.TempDir(), "s"))
	m := g.start(harness.Options{Args: []string{"--config", path}, Listen: []string{}})
	harness.Poll(t, "both to be stored", func() error {
		if names := g.stored(); len(names) != 2 || names[1] != "web" {
			return fmt.Errorf("%q", names)
		}
		return nil
	})
	_, at := g.wait(0, "both", has("STATUS=2/2"))

	write("listen = [\"other=%s\"]\n", other)
	m.Signal(syscall.SIGHUP)
	text, at := g.wait(at, "RELOADING=1", has("RELOADING=1\n", "MONOTONIC_USEC="))
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	usec, err := strconv.ParseInt(value(text, "MONOTONIC_USEC"), 10, 64)
	if age := now.Nano()/1000 - usec; err != nil || age < 0 || age > harness.Patience.Microseconds() {
		t.Errorf("%q was %d us ago: %v", text, age, err)
	}
	_, at = g.wait(at, "READY=1", has("READY=1\nSTATUS=2/2 workers ready"))
	if names := g.stored(); !slices.Equal(names, []string{"other"}) {
		t.Errorf("stored are %q", names)
	}

	write("listen = [\"other=%s\"]\npolicy = \"none\"\n", other)
	m.Signal(syscall.SIGHUP)
	_, at = g.wait(at, "RELOADING=1", has("RELOADING=1"))
	_, at = g.wait(at, "the failure", has("READY=1\nSTATUS=reload failed: --policy", "2/2 workers ready"))
	if names := g.stored(); !slices.Equal(names, []string{"other"}) {
		t.Errorf("stored are %q", names)
	}
	m.Signal(syscall.SIGTTIN)
	_, at = g.wait(at, "it to be still told", has("STATUS=reload failed: --policy", "3/3 workers ready"))

	write("listen = [\"other=%s\"]\n", other)
	m.Signal(syscall.SIGHUP)
	_, at = g.wait(at, "RELOADING=1", has("RELOADING=1"))
	if text, _ = g.wait(at, "READY=1", has("READY=1")); strings.Contains(text, "failed") {
		t.Errorf("%q", text)
	}
	m.Rebase()
}

func TestF31KilledUnderASupervisor(t *testing.T) { t.Parallel(); killedUnderASupervisor(t, form{}) }

// The master is killed while clients come. The service manager holds the listener, and
// the next master serves who has queued up: nobody is refused, and only what the dead
// one held is lost.
func killedUnderASupervisor(t *testing.T, f form) {
	g := newManager(t)
	address := harness.Host() + ":0"
	o := harness.Options{Args: []string{"--workers", "4", "--policy", "rr"}, Listen: []string{"web=" + address}}
	dying := o
	dying.ExitCode = -1
	m := g.start(dying)
	to := m.AddrOf("web")
	inode := listenInode(t, to)

	ctx, cancel := context.WithCancel(t.Context())
	reports := make(chan *load.Report, 1)
	go runLoad(ctx, load.Config{Address: to, Rate: 300, Duration: time.Hour}, reports) // waited for below
	var worst time.Duration
	kills := f.of(3, 20)
	for i := range kills {
		from := g.count()
		m.WaitStatus("a load", func(s *harness.Status) bool { return s.Acked() > 100 })
		m.Signal(syscall.SIGKILL)
		m.WaitExit()
		began := time.Now()
		next := dying
		if i == kills-1 {
			next = o
		}
		m = g.start(next)
		served := m.WaitFrom(0, 1, harness.Named("worker.ready"))[0]
		at, err := time.Parse(time.RFC3339Nano, served.Str("time"))
		if err != nil {
			t.Fatal(err)
		}
		worst = max(worst, at.Sub(began))
		if e := m.Wait(harness.Named("listener.kept")); e.Str("reason") != "" {
			t.Errorf("not used: %s", e.Line)
		}
		if now := listenInode(t, to); now != inode {
			t.Errorf("the socket is another: %s, was %s", now, inode)
		}
		g.wait(from, "READY=1", has("READY=1"))
	}
	m.WaitStatus("a load", func(s *harness.Status) bool { return s.Acked() > 100 })
	cancel()
	r := <-reports
	t.Log(r)
	m.Rebase() // it was started under load
	// What the dead ones had accepted and not handed on, or had no answer for.
	lost := len(r.Failed())
	if bound := kills * 4 * 4; r.Count(load.Refused) > 0 || lost > bound {
		t.Errorf("%d refused, %d lost, at most %d expected: %v", r.Count(load.Refused), lost, bound, r)
	}
	// The aim is 300 ms; the machine has other work.
	if worst > 2*time.Second {
		t.Errorf("it took %v until a worker was ready again", worst)
	}
	f.note(t, "%d kills, %d connections: %d refused, %d lost; a worker ready again after %v at most", kills, len(r.Results), r.Count(load.Refused), lost, worst)
}

func runLoad(ctx context.Context, c load.Config, reports chan<- *load.Report) {
	reports <- load.Run(ctx, c)
}

// A socket that was kept for an address which is no longer asked for is let go, and so
// is one whose listener is gone.
func TestSystemdKeptSocketsThatAreNotUsed(t *testing.T) {
	t.Parallel()
	g := newManager(t)
	path := filepath.Join(t.TempDir(), "s")
	first := g.start(harness.Options{Args: []string{"--workers", "1"}, ExitCode: -1,
		Listen: []string{"web=" + harness.Host() + ":0", "old=" + harness.Host() + ":0", "s=unix:" + path}})
	harness.Poll(t, "all to be stored", func() error {
		if names := g.stored(); len(names) != 3 {
			return fmt.Errorf("%q", names)
		}
		return nil
	})
	gone := first.AddrOf("old")
	first.Signal(syscall.SIGKILL)
	first.WaitExit()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second := g.start(harness.Options{Args: []string{"--workers", "1"}, Listen: []string{"web=" + harness.Host() + ":0", "s=unix:" + path}})
	for _, e := range second.WaitFrom(0, 2, harness.Named("listener.kept")) {
		if e.Str("reason") == "" {
			t.Errorf("used: %s", e.Line)
		}
	}
	serves(t, second, load.Config{Address: second.AddrOf("web"), Total: 5})
	harness.Poll(t, "the old one to be let go", func() error {
		if names := g.stored(); !slices.Equal(names, []string{"s", "web"}) {
			return fmt.Errorf("%q", names)
		}
		return nil
	})
	if c, err := net.Dial("tcp", gone); err == nil {
		_ = c.Close()
		t.Error("clients are let wait at a listener that nobody has")
	}
}

// An upgrade in place is nothing to the service manager: what it holds stays, the
// watchdog is fed on, and rrd can be killed afterwards as before.
func TestSystemdUpgrade(t *testing.T) {
	t.Parallel()
	g := newManager(t)
	address := harness.Host() + ":0"
	o := withWatchdog()
	o.Listen = []string{"web=" + address}
	o.ExitCode = -1
	m := g.start(o)
	inode := listenInode(t, m.AddrOf("web"))
	for range 2 {
		mark, from := m.Mark(), g.count()
		m.Signal(syscall.SIGUSR2)
		e := m.WaitFrom(mark, 1, func(e harness.Event) bool { return e.Name == "upgrade.done" || e.Name == "upgrade.failed" })[0]
		if e.Name != "upgrade.done" {
			t.Fatal(e.Line)
		}
		_, from = g.wait(from, "READY=1", has("READY=1\nSTATUS=2/2 workers ready"))
		g.wait(from, "a sign of life", has("WATCHDOG=1"))
		if names := g.stored(); !slices.Equal(names, []string{"web"}) {
			t.Errorf("stored are %q", names)
		}
	}
	m.Signal(syscall.SIGKILL)
	m.WaitExit()
	o.ExitCode = 0
	next := g.start(o)
	if now := listenInode(t, next.AddrOf("web")); now != inode {
		t.Errorf("the socket is another: %s, was %s", now, inode)
	}
	serves(t, next, load.Config{Total: 10})
}

// Listeners that the workers share are kept as well; only what each slot has for itself
// is not.
func TestSystemdKeepsSharedSockets(t *testing.T) {
	t.Parallel()
	for policy, kept := range map[string][]string{"none": {"dns", "local", "web"}, "reuseport": {"dns", "local"}} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			g := newManager(t)
			path := filepath.Join(t.TempDir(), "s")
			o := harness.Options{Args: []string{"--policy", policy, "--workers", "2"}, ExitCode: -1,
				Listen: []string{"web=" + harness.Host() + ":0", "local=unix:" + path, "dns=udp://" + harness.Host() + ":0"}}
			first := g.start(o)
			harness.Poll(t, "the sockets to be stored", func() error {
				if names := g.stored(); !slices.Equal(names, kept) {
					return fmt.Errorf("%q", names)
				}
				return nil
			})
			first.Signal(syscall.SIGKILL)
			first.WaitExit()
			o.ExitCode = 0
			next := g.start(o)
			for _, e := range next.WaitFrom(0, len(kept), harness.Named("listener.kept")) {
				if e.Str("reason") != "" {
					t.Error(e.Line)
				}
			}
			for _, c := range []load.Config{{Address: next.AddrOf("web")}, {Network: "unix", Address: path}} {
				c.Total = 10
				if r := load.Run(t.Context(), c); len(r.Failed()) > 0 {
					t.Error(r)
				}
			}
		})
	}
}

// A service manager that is not there, or does not read, holds nobody up.
func TestSystemdManagerThatDoesNotRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	absent := harness.Start(t, harness.Options{Args: []string{"--workers", "1"}, Env: []string{"NOTIFY_SOCKET=" + filepath.Join(dir, "nobody")}})
	absent.Wait(harness.Named("systemd.failed"))
	serves(t, absent, load.Config{Total: 5})

	path := filepath.Join(dir, "deaf")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	filler, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	_ = filler.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	for err == nil {
		_, err = filler.Write(bytes.Repeat([]byte("x"), 1000))
	}
	deaf := harness.Start(t, harness.Options{Args: []string{"--workers", "1"}, Env: []string{"NOTIFY_SOCKET=" + path}})
	serves(t, deaf, load.Config{Total: 5})
	deaf.Wait(harness.Named("systemd.failed"))
	if took := deaf.Stop(); took > 5*time.Second {
		t.Errorf("it took %v to stop", took)
	}
}
