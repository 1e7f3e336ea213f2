//go:build linux

package test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

func TestF53Hosts(t *testing.T) { t.Parallel(); hosts(t, form{}) }

// checkEvery is how often HAProxy asks each host whether it is ready.
const checkEvery = 100 * time.Millisecond

// Three hosts behind HAProxy, which asks their /-/ready: one leaves rotation and stops,
// and nobody notices; one is killed, and nobody fails who comes after the next check.
// HAProxy may not try a connection again, which would hide what is lost.
func hosts(t *testing.T, f form) {
	haproxy := findHAProxy(t)
	leaves := harness.Start(t, harness.Options{Control: true, Args: []string{"--policy", "rr", "--workers", "2", "--lame-duck", "3s"}})
	dies := harness.Start(t, harness.Options{Args: []string{"--policy", "rr", "--workers", "2"}, ExitCode: -1})
	stays := rr(t, 2)
	address := harness.Host() + ":8080"
	startHAProxy(t, haproxy, address, leaves, dies, stays)

	accepted := func(m *harness.Master, n int) {
		m.WaitStatus(fmt.Sprintf("%d connections", n), func(s *harness.Status) bool { return s.Accepted() >= n })
	}
	share := f.of(100, 10_000) // for each host, of those before it changes
	begun := time.Now()
	finish := underWith(t, stays, load.Config{Address: address, Rate: float64(f.of(300, 1500)), Duration: 24 * time.Hour})
	accepted(leaves, share)
	if c := leaves.Ctl("stop"); c.Code != 0 {
		t.Errorf("%+v", c)
	}
	leaves.WaitExit()
	left := time.Now()
	accepted(dies, max(3*share, dies.Status().Accepted()+share)) // what the stop loses is not to look like the kill's
	killed := time.Now()
	dies.Signal(syscall.SIGKILL)
	dies.WaitExit()
	accepted(stays, 5*share)
	r := finish()

	lost := r.Failed()
	for _, one := range lost {
		// A check that has begun takes a moment, and the machine has other work.
		if at := begun.Add(one.Started); at.Before(killed.Add(-checkEvery)) || at.After(killed.Add(checkEvery+time.Second)) {
			t.Errorf("%v after the stop, %v after the kill: %+v", at.Sub(left), at.Sub(killed), one)
		}
	}
	f.note(t, "%d connections, 0 lost by the stop is wanted, %d lost by the kill", len(r.Results), len(lost))
}

// findHAProxy finds it also where Debian puts servers and only root's PATH looks.
func findHAProxy(t *testing.T) string {
	t.Helper()
	const name = "haproxy"
	if path, err := exec.LookPath("/usr/sbin/" + name); err == nil {
		return path
	}
	needsTool(t, name)
	return name
}

func startHAProxy(t *testing.T, program, address string, hosts ...*harness.Master) {
	t.Helper()
	var config strings.Builder
	fmt.Fprintf(&config, `
defaults
	mode tcp
	retries 0
	timeout connect 5s
	timeout client 30s
	timeout server 30s
	timeout check 10s
frontend front
	bind %s
	default_backend hosts
backend hosts
	balance roundrobin
	option httpchk GET /-/ready
	default-server check inter %dms fall 1 rise 1
`, address, checkEvery.Milliseconds())
	for i, m := range hosts {
		status, err := net.ResolveTCPAddr("tcp", m.MetricsAddr())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&config, "\tserver host%d %s addr %s port %d\n", i, m.Addr(), status.IP, status.Port)
	}
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(file, []byte(config.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-db", "-f", file)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(said.String())
		}
	})
	harness.Poll(t, "HAProxy to listen", func() error {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	})
}
