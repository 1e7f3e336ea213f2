package harness

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"rrd/test/leakcheck"
)

// measure is what an idle master has.
type measure struct {
	fds        map[int]string
	goroutines int
	helpers    int // helper processes, which come with the first need
}

// For each helper a master has a socket, a handle of the process, and a goroutine that
// waits for its end.
const (
	fdsPerHelper        = 2
	goroutinesPerHelper = 1
)

func (m *measure) openFDs() int { return len(m.fds) - fdsPerHelper*m.helpers }

func (m *measure) running() int { return m.goroutines - goroutinesPerHelper*m.helpers }

func (m *Master) measure() (*measure, error) {
	_, samples, err := m.scrape()
	if err != nil {
		return nil, err
	}
	fds, err := FDs(m.MasterPID())
	if err != nil {
		return nil, err
	}
	return &measure{fds: fds, goroutines: int(samples["go_goroutines"]), helpers: len(Helpers(m.MasterPID()))}, nil
}

// Rebase takes the master's present descriptors and goroutines as those that it
// must have at the end. It waits until three looks in a row agree, not too near to each
// other: on a busy machine a part of the master may not have begun yet, and a number of
// goroutines may be one off now and then.
func (m *Master) Rebase() {
	m.t.Helper()
	var last *measure
	agreed := 0
	err := pollFrom(20*time.Millisecond, Patience, func() error {
		now, err := m.measure()
		if err != nil {
			return err
		}
		before := last
		last = now
		if before == nil || before.openFDs() != now.openFDs() || before.running() != now.running() {
			agreed = 0
		}
		if agreed++; agreed < 3 {
			return errors.New("still changing")
		}
		return nil
	})
	if err != nil {
		m.t.Fatalf("descriptors and goroutines do not settle: %v", err)
	}
	m.base = last
}

// end is the check that every test ends with.
func (m *Master) end() {
	m.t.Helper()
	defer m.report()
	if !m.gone() && !m.t.Failed() {
		m.checkRunning()
	}
	m.stop()
	m.client.CloseIdleConnections()
	if m.t.Failed() {
		m.killAll()
	}
	m.checkEnded()
}

// checkRunning looks at the master while it still runs and nobody uses it.
func (m *Master) checkRunning() {
	m.t.Helper()
	if !m.o.NoMetrics && m.metrics != "" {
		err := poll(Patience, func() error {
			s, err := m.status()
			if err == nil && s.Open() > 0 {
				err = fmt.Errorf("%d connections are queued or in flight", s.Open())
			}
			return err
		})
		if err != nil {
			m.t.Errorf("at the end: %v", err)
		}
	}
	if m.base != nil {
		start, first := time.Now(), m.checkMeasure()
		if err := poll(Patience/3, m.checkMeasure); err != nil {
			m.t.Errorf("at the end: %v", err)
			m.Signal(syscall.SIGUSR1) // its goroutines, into the log that is shown
			_ = poll(time.Second, func() error {
				if n := len(m.Events(Named("dump.goroutine"))); n < m.base.goroutines {
					return fmt.Errorf("%d goroutines so far", n)
				}
				return nil
			}) // there may be fewer, and the master is to be stopped in any case
		}
		if took := time.Since(start); took > time.Second {
			m.t.Logf("it took %v until the master was as before its load; at first %v", took, first)
		}
	}
	err := poll(Patience/3, func() error {
		for pid, state := range Children(m.MasterPID()) {
			if state == 'Z' {
				return fmt.Errorf("process %d is a zombie", pid)
			}
		}
		return nil
	})
	if err != nil {
		m.t.Errorf("at the end: %v", err)
	}
}

// Settle waits until the master has no more descriptors and goroutines than before its
// load: it goes on holding its copies until the workers tell, a little later, that they
// have begun.
func (m *Master) Settle() {
	m.t.Helper()
	Poll(m.t, "the master to be as before its load", m.checkMeasure)
}

func (m *Master) checkMeasure() error {
	now, err := m.measure()
	if err != nil {
		return err
	}
	if now.openFDs() != m.base.openFDs() {
		var b strings.Builder
		for _, d := range []struct {
			sign    string
			of, not map[int]string
		}{{"+", now.fds, m.base.fds}, {"-", m.base.fds, now.fds}} {
			for n, target := range d.of {
				if d.not[n] != target {
					fmt.Fprintf(&b, " %s%d %s", d.sign, n, target)
				}
			}
		}
		return fmt.Errorf("%d descriptors and %d helpers, before the load %d and %d:%s",
			len(now.fds), now.helpers, len(m.base.fds), m.base.helpers, b.String())
	}
	// Fewer: something of the start was still going on when it was measured.
	if now.running() > m.base.running() {
		return fmt.Errorf("%d goroutines, before the load %d", now.goroutines, m.base.goroutines)
	}
	return nil
}

// stop ends the master if it still runs and checks its exit code.
func (m *Master) stop() {
	m.t.Helper()
	if !m.gone() {
		sig := syscall.SIGTERM
		if m.t.Failed() {
			sig = syscall.SIGKILL // what failed may hang, and is known already
		}
		_ = m.cmd.Process.Signal(sig)
	}
	select {
	case <-m.exited:
	case <-time.After(Patience):
		m.t.Errorf("the master has not ended in %v", Patience)
		_ = m.cmd.Process.Kill()
		<-m.exited
	}
	if m.t.Failed() {
		return
	}
	if code := m.state.ExitCode(); code != m.o.ExitCode && m.o.ExitCode != AnyExit {
		m.t.Errorf("it ended with %v, want exit code %d", m.state, m.o.ExitCode)
	}
}

// killAll ends what a failed test has left, by its mark.
func (m *Master) killAll() {
	for _, pid := range marked(m.mark) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
}

func (m *Master) checkEnded() {
	m.t.Helper()
	leakcheck.NoProcess(m.t, m.mark)
	m.drained()
	if m.t.Failed() {
		return
	}
	left := slices.DeleteFunc(m.files(), func(name string) bool { return slices.Contains(m.o.LeavesFiles, filepath.Base(name)) })
	if len(left) > 0 {
		m.t.Errorf("files are left: %q", left)
	}
	for _, e := range m.Events(Named("listener.open")) {
		if err := m.closed(e); err != nil {
			m.t.Error(err)
		}
	}
}

// closed checks that a listener answers nobody any more.
func (m *Master) closed(e Event) error {
	network, address := e.Str("network"), e.Str("address")
	if strings.HasPrefix(network, "udp") || m.inherited(e.Str("listener")) {
		return nil
	}
	if network == "unix" {
		if _, err := os.Lstat(address); err == nil {
			return fmt.Errorf("the socket %s is still there", address)
		}
		return nil
	}
	c, err := net.DialTimeout("tcp", address, time.Second)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("%s is still listening", address)
	}
	return nil
}

// inherited listeners are not the master's to close.
func (m *Master) inherited(name string) bool {
	return slices.ContainsFunc(m.o.Listen, func(v string) bool {
		return strings.HasPrefix(v, "fd:") && v == name || strings.HasPrefix(v, name+"=fd:")
	})
}

func (m *Master) report() {
	if !m.t.Failed() {
		return
	}
	const mostLines, mostBytes = 60, 500
	var b strings.Builder
	lines := strings.Split(m.Log(), "\n")
	for i, line := range lines {
		if i < mostLines/3 || i > len(lines)-mostLines*2/3 {
			fmt.Fprintf(&b, "%.*s\n", mostBytes, line)
		} else if i == mostLines/3 {
			b.WriteString("[...]\n")
		}
	}
	text := b.String()
	m.t.Logf("%s: %v\nstderr:\n%s\nstdout:\n%.4000s", strings.Join(m.cmd.Args[1:], " "), m.state, text, m.Stdout())
}
