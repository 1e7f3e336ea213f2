//go:build linux

package test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// The control socket: F42 to F46 of the matrix in docs/reliability.md. What takes
// thousands of tries is tried beside the code (cmd/internal/control); here is the
// whole program.

func TestF42ControlMode(t *testing.T)  { t.Parallel(); controlMode(t, form{}) }
func TestF43ControlPeer(t *testing.T)  { t.Parallel(); controlPeer(t, form{}) }
func TestF44ControlPath(t *testing.T)  { t.Parallel(); controlPath(t, form{}) }
func TestF45ControlTaken(t *testing.T) { t.Parallel(); controlTaken(t, form{}) }
func TestF46ControlAbuse(t *testing.T) { controlAbuse(t, form{}) }

// stranger is who has no right to anything here.
var stranger = &syscall.Credential{Uid: 54321, Gid: 54321, NoSetGroups: true}

// Never wider than 0600, under the widest umask, and nobody else can connect.
func controlMode(t *testing.T, f form) {
	needsRoot(t)
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(d, 0o755); err != nil { //nolint:gosec // others are to see the socket, and fail
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "c.sock")
	var over atomic.Bool
	var watchers sync.WaitGroup
	var seen atomic.Int64
	watchers.Go(func() {
		for !over.Load() {
			if info, err := os.Lstat(path); err == nil {
				seen.Add(1)
				if info.Mode() != os.ModeSocket|0o600 {
					t.Errorf("it was %v", info.Mode())
					return
				}
			}
		}
	})
	for range f.of(5, 1000) {
		m := harness.Start(t, harness.Options{
			Wrap: []string{"sh", "-c", `umask 0; exec "$@"`, "sh"}, NoMetrics: true,
			Args: []string{"--workers", "1", "--control", path},
		})
		if r := asStranger(t, path); r.Code != 1 || !strings.Contains(r.Err, "uid 54321 may not") {
			t.Errorf("a stranger connects: %+v", r)
		}
		m.Stop()
	}
	over.Store(true)
	watchers.Wait()
	if seen.Load() == 0 {
		t.Error("it was never looked at")
	}
}

// asStranger has another user try to connect to a socket: rrdctl does.
func asStranger(t *testing.T, path string) harness.Ctl {
	t.Helper()
	return harness.RunCtl(t, stranger, "--control", path, "status")
}

// Another user who gets as far as connecting is refused by what the kernel says of
// him, whatever he asks.
func controlPeer(t *testing.T, f form) {
	needsRoot(t)
	m := controlled(t, 1)
	for path, mode := range map[string]os.FileMode{m.Dir(): 0o711, filepath.Dir(m.Dir()): 0o711, m.Control(): 0o666} {
		if err := os.Chmod(path, mode); err != nil { // somebody has been careless
			t.Fatal(err)
		}
	}
	n := f.of(20, 1000)
	for range n {
		r := m.CtlAs(stranger, "stop", "--now")
		if r.Code != 1 || !strings.Contains(r.Err, "uid 54321 may not control this rrd") {
			t.Fatalf("%+v", r)
		}
	}
	if _, samples := m.Metrics(); samples[`rrd_control_requests_total{command="none",result="denied"}`] != float64(n) {
		t.Errorf("%v were counted", samples[`rrd_control_requests_total{command="none",result="denied"}`])
	}
	if e := m.Wait(harness.Named("control.denied")); e.Int("uid") != 54321 {
		t.Error(e.Line)
	}
	done(t, m, "status")
	m.Rebase()
	named := harness.Start(t, harness.Options{Control: true, Args: []string{"--workers", "1", "--control-uid", "54321"}})
	for _, path := range []string{named.Dir(), filepath.Dir(named.Dir())} {
		if err := os.Chmod(path, 0o711); err != nil { //nolint:gosec // he is to come through
			t.Fatal(err)
		}
	}
	if r := named.CtlAs(stranger, "log-level"); r.Code != 0 || r.Out != "info\n" {
		t.Errorf("%+v", r)
	}
	if r := named.CtlAs(stranger, "config", "check", "/etc/shadow"); r.Code != 1 || !strings.Contains(r.Err, "only root and the user of rrd") {
		t.Errorf("%+v", r)
	}
}

// What is planted at the path is refused with the reason, and left as it is.
func controlPath(t *testing.T, _ form) {
	for name, x := range map[string]struct {
		plant func(path string) error
		says  string
	}{
		"file":      {func(p string) error { return os.WriteFile(p, []byte("precious"), 0o600) }, "it exists and is a file"},
		"link":      {func(p string) error { return os.Symlink("/etc/passwd", p) }, "it exists and is a symbolic link"},
		"fifo":      {func(p string) error { return syscall.Mkfifo(p, 0o600) }, "it exists and is a fifo"},
		"directory": {func(p string) error { return os.Mkdir(p, 0o700) }, "it exists and is a directory"},
		"open":      {func(p string) error { return os.Chmod(filepath.Dir(p), 0o777|os.ModeSticky) }, "may be written to by others"},
	} {
		dir := t.TempDir()
		path := filepath.Join(dir, "c.sock")
		if err := x.plant(path); err != nil {
			t.Fatal(err)
		}
		before, _ := os.Lstat(path)
		m := harness.Run(t, harness.Options{NoMetrics: true, Args: []string{"--workers", "1", "--control", path}, ExitCode: 1})
		if !strings.Contains(m.Log(), "rrd: --control: make control socket "+path) || !strings.Contains(m.Log(), x.says) || !strings.Contains(m.Log(), "(from flag)") {
			t.Errorf("%s: %s", name, m.Log())
		}
		if after, err := os.Lstat(path); before != nil && (err != nil || after.Mode() != before.Mode() || after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime())) {
			t.Errorf("%s: it was %v and is %v, %v", name, before, after, err)
		}
	}
}

// A live one stays its master's; of those that start at once one wins; what a
// killed one has left is replaced.
func controlTaken(t *testing.T, f form) {
	path := filepath.Join(t.TempDir(), "c.sock")
	options := func(code int) harness.Options {
		return harness.Options{NoMetrics: true, Args: []string{"--workers", "1", "--control", path}, ExitCode: code}
	}
	first := harness.Start(t, options(-1))
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	second := harness.Run(t, options(1))
	if !strings.Contains(second.Log(), "somebody is listening there") {
		t.Error(second.Log())
	}
	if now, err := os.Lstat(path); err != nil || !os.SameFile(info, now) {
		t.Errorf("the live one is gone: %v", err)
	}
	first.Signal(syscall.SIGKILL)
	first.WaitExit()
	for range f.of(2, 20) {
		const n = 3
		var masters []*harness.Master
		for range n {
			o := options(harness.AnyExit) // it is judged below
			o.Unready = true
			masters = append(masters, harness.Start(t, o))
		}
		won := 0
		for _, m := range masters {
			harness.Poll(t, "it to win or to lose", func() error {
				if len(m.Events(harness.Named("ready"))) == 0 && !ended(m) {
					return errors.New("neither")
				}
				return nil
			})
			if !ended(m) {
				won++
			} else {
				m.WaitLog("somebody is listening there") // it may still be on its way to us
			}
		}
		if won != 1 {
			t.Errorf("%d of %d have won", won, n)
		}
		for _, m := range masters {
			if !ended(m) {
				m.Signal(syscall.SIGKILL) // and leaves a stale one
			}
			m.WaitExit()
		}
	}
	last := harness.Start(t, options(0))
	last.Stop()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func ended(m *harness.Master) bool {
	select {
	case <-m.Exited():
		return true
	default:
		return false
	}
}

// Lines that are no requests, lines that never end, a byte a second, and more
// clients than there is room for: the master stays as it is, and dispatching too.
func controlAbuse(t *testing.T, f form) {
	m := controlled(t, 2)
	// Under load, calm and then with the abuse.
	loaded := func() *load.Report {
		return serves(t, m, load.Config{Rate: 300, Duration: time.Duration(f.of(2, 20)) * time.Second})
	}
	calm := loaded()
	stop := make(chan struct{})
	var abusers sync.WaitGroup
	var lines, turnedAway atomic.Int64
	for i := range 8 {
		abusers.Go(func() { fuzzer(m.Control(), uint64(i), stop, &lines) })
	}
	for range 4 {
		abusers.Go(func() { endless(m.Control(), stop) })
	}
	for range 4 {
		abusers.Go(func() { trickler(m.Control(), stop) })
	}
	for range 2 {
		abusers.Go(func() { crowd(m.Control(), stop, &turnedAway) })
	}
	abused := loaded()
	close(stop)
	abusers.Wait()
	t.Logf("%d lines, %d turned away; p99 %v, with abuse %v", lines.Load(), turnedAway.Load(), calm.Percentile(.99), abused.Percentile(.99))
	if lines.Load() == 0 || turnedAway.Load() == 0 {
		t.Error("there was no abuse")
	}
	// On a machine that is shared by tests the tail is theirs; what is meant is that
	// nobody waits for the control socket.
	if limit := 10*calm.Percentile(.99) + 50*time.Millisecond; abused.Percentile(.99) > limit {
		t.Errorf("p99 %v, above %v", abused.Percentile(.99), limit)
	}
	harness.Poll(t, "room for a client", func() error {
		if r := m.Ctl("status"); r.Code != 0 {
			return errors.New(r.Err)
		}
		return nil
	})
	m.Rebase()
}

// each calls use with a connection again and again.
func eachConnection(path string, stop <-chan struct{}, use func(net.Conn)) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		c, err := net.DialTimeout("unix", path, time.Second)
		if err != nil {
			continue
		}
		_ = c.SetDeadline(time.Now().Add(2 * time.Second))
		use(c)
		_ = c.Close()
	}
}

func fuzzer(path string, seed uint64, stop <-chan struct{}, lines *atomic.Int64) {
	random := rand.New(rand.NewPCG(seed, 46))
	eachConnection(path, stop, func(c net.Conn) {
		line := []byte(`{"v":1,"id":1,"cmd":"workers.set","args":{"workers":"x"}}`)
		for range 1 + random.IntN(4) {
			line[random.IntN(len(line))] = byte(random.Uint32())
		}
		if _, err := c.Write(append(bytes.ReplaceAll(line, []byte("\n"), nil), '\n')); err != nil {
			return
		}
		if text, err := bufio.NewReader(c).ReadString('\n'); err == nil && strings.Contains(text, `"ok":false`) {
			lines.Add(1)
		}
	})
}

func endless(path string, stop <-chan struct{}) {
	eachConnection(path, stop, func(c net.Conn) {
		_, _ = c.Write(bytes.Repeat([]byte("x"), 100<<10))
		_, _ = io.Copy(io.Discard, c)
	})
}

func trickler(path string, stop <-chan struct{}) {
	eachConnection(path, stop, func(c net.Conn) {
		for i := range 10 {
			if _, err := fmt.Fprint(c, i); err != nil {
				return
			}
			select {
			case <-stop:
				return
			case <-time.After(time.Second / 2):
			}
		}
	})
}

// crowd comes with more clients than there may be.
func crowd(path string, stop <-chan struct{}, turnedAway *atomic.Int64) {
	eachConnection(path, stop, func(first net.Conn) {
		for range 100 {
			c, err := net.DialTimeout("unix", path, time.Second)
			if err != nil {
				return
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(500 * time.Millisecond))
			if text, err := bufio.NewReader(c).ReadString('\n'); err == nil && strings.Contains(text, `"code":"busy"`) {
				turnedAway.Add(1)
			}
		}
	})
}
