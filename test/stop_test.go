//go:build linux

package test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// TERM with open requests, and with clients that still come: every request that
// was taken is answered, whoever comes later is refused and never cut, and all is
// gone after.
func TestStopUnderLoad(t *testing.T) {
	each(t, func(t *testing.T, policy string) {
		path := filepath.Join(t.TempDir(), "s")
		m := harness.Start(t, harness.Options{
			Args:   []string{"--policy", policy, "--workers", "4"},
			Listen: []string{"web=" + harness.Host() + ":0", "unix:" + path},
		})
		const n = 100
		idle := sockets(t, m)
		sleep := func(int) string { return "/sleep?ms=1500" }
		tcp := waitingContext(t.Context(), m, load.Config{Clients: n, Total: n, URI: sleep})
		unix := waitingContext(t.Context(), m, load.Config{Network: "unix", Address: path, Clients: n, Total: n, URI: sleep})
		if policy == "rr" {
			m.WaitStatus("all to be taken", func(s *harness.Status) bool { return s.Acked() == 2*n })
		} else {
			m.WaitStatus("all to be taken", func(*harness.Status) bool { return sockets(t, m) >= idle+2*n })
		}
		ctx, cancel := context.WithCancel(t.Context())
		late := waitingContext(ctx, m, load.Config{Rate: 300, Duration: time.Minute})
		m.Signal(syscall.SIGTERM)
		m.Wait(harness.Named("drain.start"))
		if code := m.WaitExit(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		cancel()
		for name, r := range map[string]*load.Report{"tcp": tcp(), "unix": unix()} {
			if r.Count(load.OK) != n {
				t.Errorf("%s: %v", name, r)
			}
		}
		r := late()
		if r.Count(load.OK)+r.Count(load.Refused) != len(r.Results) {
			t.Errorf("of those who came while it stopped: %v", r)
		}
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("the socket: %v", err)
		}
	})
}

// sockets counts the sockets that the workers have open.
func sockets(t *testing.T, m *harness.Master) (n int) {
	t.Helper()
	for _, w := range m.Status().Workers {
		fds, err := harness.FDs(w.PID)
		if err != nil {
			t.Fatal(err)
		}
		for _, target := range fds {
			if strings.HasPrefix(target, "socket:") {
				n++
			}
		}
	}
	return n
}

// What has been accepted and waits for a worker is served before the end.
func TestStopServesTheQueue(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	m := faulty(t, 2, nil, "-gate", g.path, "reject")
	finish := waiting(t, m, load.Config{Clients: 50, Total: 50})
	m.WaitStatus("all to wait", func(s *harness.Status) bool { return s.Accepted() == 50 })
	m.Signal(syscall.SIGTERM)
	m.Wait(harness.Named("drain.start"))
	g.open()
	if r := finish(); r.Count(load.OK) != 50 {
		t.Error(r)
	}
	m.WaitExit()
}

// A second TERM or INT stops at once, from a second after the first signal on. Earlier it is
// the same request, as coreutils timeout and npm send it.
func TestStopTwice(t *testing.T) {
	t.Parallel()
	m := rr(t, 2)
	finish := waiting(t, m, load.Config{Clients: 10, Total: 10, URI: func(int) string { return "/sleep?ms=30000" }})
	m.WaitStatus("all to be taken", func(s *harness.Status) bool { return s.Acked() == 10 })
	m.Signal(syscall.SIGTERM)
	began := timeOf(t, m.Wait(harness.Named("drain.start")))
	m.Signal(syscall.SIGINT)
	m.Wait(harness.Named("signal.ignored"))
	m.Signal(syscall.SIGQUIT)
	start := time.Now()
	m.TermUntilExit()
	if took := time.Since(start); took > soon {
		t.Errorf("it took %v", took)
	}
	if r := finish(); r.Count(load.OK) != 0 || r.Count(load.Timeout) != 0 {
		t.Error(r)
	}
	now := timeOf(t, m.Wait(harness.Named("stop.now")))
	if after := now.Sub(began); after < 900*time.Millisecond { // drain.start is a little later than the signal
		t.Errorf("stopped at once %v after the first signal", after)
	}
	if n := len(m.Events(harness.Named("signal.ignored"))); n != 1 {
		t.Errorf("%d records of repeats, want 1", n)
	}
}

// The drain time-out cuts what is left, says how many, and is no failure.
func TestDrainTimeout(t *testing.T) {
	t.Parallel()
	m := rr(t, 2, "--drain-timeout", "300ms", "--stop-timeout", "300ms")
	finish := waiting(t, m, load.Config{Clients: 10, Total: 10, URI: func(int) string { return "/sleep?ms=30000" }})
	m.WaitStatus("all to be taken", func(s *harness.Status) bool { return s.Acked() == 10 })
	if took := m.Stop(); took > soon {
		t.Errorf("it took %v", took)
	}
	if r := finish(); r.Count(load.OK) != 0 || r.Count(load.Timeout) != 0 {
		t.Error(r)
	}
	if e := m.Wait(harness.Named("stop")); e.Int("connections_cut") != 10 || e.Int("exit_code") != 0 {
		t.Error(e.Line)
	}
}

// What is cut while it waits is told before the last record.
func TestStopIsTheLastRecord(t *testing.T) {
	t.Parallel()
	m := rr(t, 1, "--drain-timeout", "300ms", "--stop-timeout", "300ms")
	m.Kill(m.PID(0), syscall.SIGSTOP)
	finish := waiting(t, m, load.Config{Clients: 3, Total: 3})
	m.WaitStatus("all to wait", func(s *harness.Status) bool { return s.Open() == 3 })
	m.Stop()
	if r := finish(); r.Count(load.OK) != 0 {
		t.Error(r)
	}
	if e := m.Wait(harness.Named("connection.dropped")); e.Str("reason") != "shutdown" || e.Int("connections") != 3 {
		t.Error(e.Line)
	}
	lines := strings.Split(strings.TrimSpace(m.Log()), "\n")
	if last := lines[len(lines)-1]; !strings.Contains(last, `"event":"stop"`) || !strings.Contains(last, `"connections_cut":3`) {
		t.Error(last)
	}
}

// Each of the signals that stop.
func TestStopSignals(t *testing.T) {
	t.Parallel()
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT} {
		m := rr(t, 1)
		accounts(t, m, serves(t, m, load.Config{Total: 3}))
		m.Signal(sig)
		if code := m.WaitExit(); code != 0 {
			t.Errorf("%v: exit code %d", sig, code)
		}
	}
}

// One worker more, one less. The master has no controlling terminal here.
func TestResize(t *testing.T) {
	each(t, func(t *testing.T, policy string) {
		m := harness.Start(t, harness.Options{Args: []string{"--policy", policy, "--workers", "2"}})
		load4 := func(want int) {
			t.Helper()
			r := serves(t, m, load.Config{Clients: 8, Total: 200})
			if policy == "rr" && len(r.BySlot()) != want {
				t.Errorf("these slots served: %v", r.BySlot())
			}
		}
		m.Signal(syscall.SIGTTIN)
		m.WaitStatus("three workers", func(s *harness.Status) bool { return s.Desired == 3 })
		m.AllReady()
		load4(3)
		for want := 2; want >= 1; want-- {
			mark := m.Mark()
			m.Signal(syscall.SIGTTOU)
			m.WaitFrom(mark, 1, harness.OfSlot("worker.exit", want))
			m.WaitStatus("one less", func(s *harness.Status) bool { return s.Desired == want })
			load4(want)
		}
		mark := m.Mark()
		m.Signal(syscall.SIGTTOU) // the last one stays
		m.WaitFrom(mark, 1, harness.Named("workers.resize"))
		if s := m.Status(); s.Desired != 1 {
			t.Errorf("%d workers", s.Desired)
		}
		m.Rebase()
	})
}

// A worker that is taken away under load loses nobody.
func TestResizeUnderLoad(t *testing.T) {
	t.Parallel()
	m := rr(t, 3)
	ctx, cancel := context.WithCancel(t.Context())
	finish := waitingContext(ctx, m, load.Config{Rate: 500, Duration: time.Minute, URI: func(int) string { return "/sleep?ms=20" }})
	for range 4 {
		mark := m.Mark()
		m.Signal(syscall.SIGTTOU)
		m.WaitFrom(mark, 1, harness.OfSlot("worker.exit", 2))
		mark = m.Mark()
		m.Signal(syscall.SIGTTIN)
		m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", 2))
	}
	cancel()
	r := finish()
	if len(r.Failed()) > 0 {
		t.Error(r)
	}
	accounts(t, m, r)
}

// Signals that mean something later, or something else.
func TestOtherSignals(t *testing.T) {
	t.Parallel()
	m := rr(t, 2)
	m.Signal(syscall.SIGUSR1)
	m.WaitFrom(0, 2, harness.Named("dump.worker"))
	e := m.Wait(harness.Named("dump.listener"))
	if !e.Bool("law_holds") {
		t.Error(e.Line)
	}
	m.Wait(harness.Named("dump.goroutine"))
	accounts(t, m, serves(t, m, load.Config{Total: 10}))
}

// The master dies without a word: its workers finish what they have acked, and end.
func TestMasterKilled(t *testing.T) {
	t.Parallel()
	m := harness.Start(t, harness.Options{Args: []string{"--policy", "rr", "--workers", "3"}, ExitCode: -1})
	finish := waiting(t, m, load.Config{Clients: 30, Total: 30, URI: func(int) string { return "/sleep?ms=1000" }})
	m.WaitStatus("all to be taken", func(s *harness.Status) bool { return s.Acked() == 30 })
	m.Signal(syscall.SIGKILL)
	m.WaitExit()
	if r := finish(); r.Count(load.OK) != 30 {
		t.Error(r)
	}
}

// The master dies without a word while clients are connected: its workers leave the address to the
// next master at once, and finish what those clients asked for.
func TestMasterKilledThenTheNext(t *testing.T) {
	for _, policy := range []string{"none", "reuseport"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			args := []string{"--policy", policy, "--workers", "1"}
			m := harness.Start(t, harness.Options{Args: args, ExitCode: -1})
			read := download(t, m.Addr())
			m.Signal(syscall.SIGKILL)
			m.WaitExit()
			next := harness.Start(t, harness.Options{Args: args, Listen: []string{freed(t, m.Addr())}})
			serves(t, next, load.Config{Total: 20})
			read()
		})
	}
}

// freed waits until an address can be bound.
func freed(t *testing.T, addr string) string {
	t.Helper()
	harness.Poll(t, "the address to be free", func() error {
		ln, err := net.Listen("tcp", addr)
		if err == nil {
			err = ln.Close()
		}
		return err
	})
	return addr
}

// download asks a worker for more than the buffers hold. The returned function reads it all.
func download(t *testing.T, addr string) (read func()) {
	t.Helper()
	const size = 16 << 20
	r, err := http.Get("http://" + addr + "/bytes?n=" + strconv.Itoa(size)) //nolint:bodyclose // read closes it
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		n, err := io.Copy(io.Discard, r.Body)
		_ = r.Body.Close()
		if n != size || err != nil {
			t.Errorf("%d bytes of %d: %v", n, size, err)
		}
	}
}

// A process that has left its worker's process group keeps the port: rrd names it, and
// fails.
func TestStopWithAPortThatIsKept(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"none", "reuseport"} {
		m := harness.Start(t, harness.Options{
			Args:    []string{"--policy", policy, "--worker-protocol", "listen-fds", "--ready-after", "50ms", "--workers", "1", "--worker-output", "raw"},
			Command: []string{"/bin/sh", "-c", `setsid sleep 1000 >/dev/null 2>&1 & echo "left $!"; exec sleep 1000`}, ExitCode: 1,
		})
		m.WaitStdout("left ")
		_, number, _ := strings.Cut(strings.TrimSpace(m.Stdout()), "left ")
		pid, err := strconv.Atoi(number)
		if err != nil {
			t.Fatal(err)
		}
		m.Signal(syscall.SIGTERM)
		m.WaitExit()
		if want := fmt.Sprintf("process %d (sleep) keeps %s open", pid, m.Addr()); !strings.Contains(m.Log(), want) {
			t.Errorf("%s: no %q in\n%s", policy, want, m.Log())
		}
		m.Kill(pid, syscall.SIGKILL)
	}
}
