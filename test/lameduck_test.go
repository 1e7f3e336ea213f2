//go:build linux

package test

import (
	"fmt"

	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// waitReady waits until /-/ready says what is wanted.
func waitReady(t *testing.T, m *harness.Master, code int, says string) {
	t.Helper()
	harness.Poll(t, fmt.Sprintf("/-/ready to be %d", code), func() error {
		got, text, err := m.Get("/-/ready")
		if err != nil || got != code || !strings.Contains(text, says) {
			return fmt.Errorf("%d %q %w", got, text, err)
		}
		return nil
	})
}

// A lame duck is not ready, and serves everybody who comes; then it drains.
func TestLameDuck(t *testing.T) {
	t.Parallel()
	g := newManager(t)
	m := g.start(harness.Options{Args: []string{"--workers", "2", "--lame-duck", "1500ms"}})
	waitReady(t, m, 200, "")
	m.Signal(syscall.SIGTERM)
	e := m.Wait(harness.Named("lameduck.start"))
	waitReady(t, m, 503, "draining")
	serves(t, m, load.Config{Clients: 4, Total: 200})
	if drains := m.Events(harness.Named("drain.start")); len(drains) > 0 {
		t.Fatalf("it drains already: %v", drains)
	}
	_, at := g.wait(0, "more time for the stop", has("EXTEND_TIMEOUT_USEC="))
	g.wait(at, "STOPPING=1", has("STOPPING=1"))
	m.WaitExit()
	between := timeOf(t, m.Wait(harness.Named("drain.start"))).Sub(timeOf(t, e))
	if between < 1400*time.Millisecond {
		t.Errorf("it drained after %v", between)
	}
}

func timeOf(t *testing.T, e harness.Event) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, e.Str("time"))
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// A second TERM ends a lame duck at once.
func TestLameDuckCutShort(t *testing.T) {
	t.Parallel()
	m := rr(t, 2, "--lame-duck", "10m")
	m.Signal(syscall.SIGTERM)
	m.Wait(harness.Named("lameduck.start"))
	if code := m.TermUntilExit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	m.Wait(harness.Named("stop.now"))
}

// drain works under every policy. Readiness is red when it returns, --lame-duck is no
// matter, new connections are served, also through a reload, and undrain returns.
func TestDrainServesOn(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"rr", "none", "reuseport"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			m := harness.Start(t, harness.Options{Control: true,
				Args: []string{"--workers", "1", "--policy", policy, "--lame-duck", "200ms", "--canary-time", "200ms"}})
			waitReady(t, m, 200, "")
			for range 2 { // any number of times
				done(t, m, "drain")
				if code, text, err := m.Get("/-/ready"); err != nil || code != 503 || !strings.Contains(text, "draining") {
					t.Errorf("%d %q %v", code, text, err)
				}
			}
			if n := len(m.Events(harness.Named("lameduck.start"))); n != 1 {
				t.Errorf("it became a lame duck %d times", n)
			}
			serves(t, m, load.Config{Total: 5})
			if out := done(t, m, "status"); !strings.Contains(out, "lame duck") {
				t.Error(out)
			}
			done(t, m, "reload") // takes longer than --lame-duck
			waitReady(t, m, 503, "draining")
			serves(t, m, load.Config{Total: 5})
			if policy != "rr" {
				refused(t, m, 1, "drain without --close", "drain", "--close")
			}
			done(t, m, "undrain")
			waitReady(t, m, 200, "")
			refused(t, m, 1, "not draining", "undrain")
			serves(t, m, load.Config{Total: 5})
			if s := ctlStatus(t, m); s.Draining || !s.Ready {
				t.Errorf("%+v", s)
			}
		})
	}
}

// A drained rrd is upgraded in place and stays out of rotation.
func TestDrainCrossesAnUpgrade(t *testing.T) {
	t.Parallel()
	u := startUpgradable(t, harness.Options{Control: true, Args: []string{"--workers", "1", "--policy", "rr"}})
	done(t, u.Master, "drain")
	if why := u.upgrade(); why != "" {
		t.Fatal(why)
	}
	waitReady(t, u.Master, 503, "draining")
	serves(t, u.Master, load.Config{Total: 5})
	done(t, u.Master, "undrain")
	waitReady(t, u.Master, 200, "")
	if why := u.upgrade(); why != "" {
		t.Fatal(why)
	}
	waitReady(t, u.Master, 200, "")
}

// undrain takes a lame duck back, whatever made it one, and then it is like any other.
func TestUndrain(t *testing.T) {
	t.Parallel()
	m := harness.Start(t, harness.Options{Args: []string{"--workers", "2", "--policy", "rr", "--lame-duck", "10m"}, Control: true})
	pids := []int{m.PID(0), m.PID(1)}
	if c := m.Ctl("undrain"); c.Code != 1 || !strings.Contains(c.Err, "not draining") {
		t.Errorf("%+v", c)
	}
	type run struct {
		name  string
		leave func(done chan harness.Ctl)
		waits bool // rrdctl waits, and is told
	}
	for _, x := range []run{
		{"TERM", func(chan harness.Ctl) { m.Signal(syscall.SIGTERM) }, false},
		{"WINCH", func(chan harness.Ctl) { m.Signal(syscall.SIGWINCH) }, false},
		{"drain --close", func(done chan harness.Ctl) { done <- m.Ctl("drain", "--close") }, true},
		{"stop", func(done chan harness.Ctl) { done <- m.Ctl("stop") }, true},
	} {
		mark := m.Mark()
		done := make(chan harness.Ctl, 1)
		go x.leave(done) // the channel is waited for, or it only sends a signal
		m.WaitFrom(mark, 1, harness.Named("lameduck.start"))
		waitReady(t, m, 503, "draining")
		serves(t, m, load.Config{Total: 5})
		if c := m.Ctl("undrain"); c.Code != 0 {
			t.Errorf("%s: %+v", x.name, c)
		}
		m.WaitFrom(mark, 1, harness.Named("lameduck.end"))
		waitReady(t, m, 200, "")
		if x.waits {
			if c := <-done; c.Code != 1 || !strings.Contains(c.Err, "rotation") {
				t.Errorf("%s: %+v", x.name, c)
			}
		}
		serves(t, m, load.Config{Total: 5})
	}
	if now := []int{m.PID(0), m.PID(1)}; !slices.Equal(now, pids) {
		t.Errorf("workers %v, were %v", now, pids)
	}
	done(t, m, "stop", "--now")
	m.WaitExit()
}

// Once the listeners are closed there is no way back.
func TestUndrainTooLate(t *testing.T) {
	t.Parallel()
	m := harness.Start(t, harness.Options{Args: []string{"--workers", "1", "--policy", "rr"}, Control: true})
	if c := m.Ctl("drain", "--close"); c.Code != 0 {
		t.Fatalf("%+v", c)
	}
	if c := m.Ctl("undrain"); c.Code != 1 || !strings.Contains(c.Err, "only a restart") {
		t.Errorf("%+v", c)
	}
	waitReady(t, m, 503, "draining")
	m.Rebase() // without its listener
}

// Workers are told to drain in turns, so that not all long-lived clients come back at
// once; the drain timeout counts from the first.
func TestDrainSpread(t *testing.T) {
	t.Parallel()
	const workers = 4
	m := rr(t, workers, "--drain-spread", "1200ms", "--drain-timeout", "2s")
	finish := waiting(t, m, load.Config{Clients: workers, Total: workers, URI: func(int) string { return "/sleep?ms=30000" }})
	m.WaitStatus("each to have one", func(s *harness.Status) bool {
		for _, w := range s.Workers {
			if w.Acks != 1 {
				return false
			}
		}
		return true
	})
	m.Signal(syscall.SIGTERM)
	drains := m.WaitFrom(0, workers, harness.Named("worker.drain"))
	m.WaitExit()
	if r := finish(); r.Count(load.OK) != 0 {
		t.Error(r) // none of them ends in time
	}
	first := timeOf(t, drains[0])
	for i, e := range drains {
		want := time.Duration(i) * 300 * time.Millisecond
		if after := timeOf(t, e).Sub(first); after < want-50*time.Millisecond || after > want+time.Second {
			t.Errorf("drain %d came after %v, want about %v", i, after, want)
		}
	}
	for _, e := range m.Events(harness.Named("worker.exit")) {
		if after := timeOf(t, e).Sub(first); after < 1500*time.Millisecond || after > 4*time.Second {
			t.Errorf("a worker was cut after %v, want about 2s: %s", after, e.Line)
		}
	}
}
