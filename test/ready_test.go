//go:build linux

package test

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"rrd/test/harness"
)

// waitReadiness waits until /-/ready, /status.json and rrdctl status agree that rrd is
// ready (reason ""), or that it is not for this reason.
func waitReadiness(t *testing.T, m *harness.Master, reason string) {
	t.Helper()
	harness.Poll(t, fmt.Sprintf("readiness %q", reason), func() error {
		code, page, err := m.Get("/-/ready")
		if err != nil {
			return err
		}
		_, document, err := m.Get("/status.json")
		if err != nil {
			return err
		}
		status := m.Ctl("status").Out
		ok := code == http.StatusOK && strings.Contains(document, `"ready": true`) && !strings.Contains(status, "NOT READY")
		if reason != "" {
			ok = code == http.StatusServiceUnavailable && strings.Contains(page, reason) && strings.Contains(document, `"ready": false`) &&
				strings.Contains(document, reason) && strings.Contains(status, "NOT READY: "+reason)
		}
		if !ok {
			return fmt.Errorf("%d %s%.80s", code, page, status)
		}
		return nil
	})
}

// Workers that owe an answer for long are not ready, though they say nothing else.
func TestReadyTakesWorkersThatAnswer(t *testing.T) {
	t.Parallel()
	m := harness.Start(t, harness.Options{Control: true, Args: []string{"--workers", "2"}})
	waitReadiness(t, m, "")
	pids := []int{m.PID(0), m.PID(1)}
	for _, pid := range pids {
		m.Kill(pid, syscall.SIGSTOP)
	}
	for range 2 { // one for each worker
		dialed(t, m.Addr())
	}
	waitReadiness(t, m, "not enough workers are ready and answer: --ready-min is 1, and late for 500ms or longer: 2")
	for _, pid := range pids {
		m.Kill(pid, syscall.SIGCONT)
	}
	waitReadiness(t, m, "")
}

// A connection that waits for long is a reason, whatever the workers say. What the file
// says of readiness is in force after a reload.
func TestReadyTakesAShortQueue(t *testing.T) {
	t.Parallel()
	m := startConfigured(t, harness.Options{Control: true, Args: []string{"--worker-max-connections-active", "1", "--canary-time", "off", "--drain-timeout", "1s"}},
		"workers = 2\nready-min = 2\nready-max-wait = \"300ms\"\n")
	held := []net.Conn{dialed(t, m.Addr()), dialed(t, m.Addr())}
	m.WaitStatus("both workers to be full", func(s *harness.Status) bool { return s.Acked() == 2 })
	waitReadiness(t, m.Master, "")
	waits := dialed(t, m.Addr())
	waitReadiness(t, m.Master, "a connection has waited for a worker for ")
	_ = held[0].Close()
	waitReadiness(t, m.Master, "")
	_, _ = held[1].Close(), waits.Close()

	if c := m.Ctl("workers", "set", "1"); c.Code != 0 {
		t.Fatal(c)
	}
	waitReadiness(t, m.Master, "not enough workers are ready: --ready-min is 2")
	m.write("workers = 2\nready-min = 1\n")
	if why := m.reload(); why != "" {
		t.Fatal(why)
	}
	waitReadiness(t, m.Master, "")
	m.write("workers = 2\nready-min = 3\n")
	if why := m.reload(); !strings.Contains(why, `--ready-min: "3" is more than --workers 2`) {
		t.Errorf("reload says %q", why)
	}
	waitReadiness(t, m.Master, "")
	m.Rebase() // with one worker
}

// dialed is a client that says nothing; it leaves with the test.
func dialed(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}
