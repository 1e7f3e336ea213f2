//go:build linux

package test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// policies are all that there are.
var policies = []string{"rr", "none", "reuseport"}

// each runs a subtest for each policy.
func each(t *testing.T, f func(t *testing.T, policy string)) {
	t.Helper()
	t.Parallel()
	for _, name := range policies {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f(t, name)
		})
	}
}

func TestUnixSocket(t *testing.T) {
	each(t, func(t *testing.T, policy string) {
		path := filepath.Join(t.TempDir(), "rrd.sock")
		if dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path}); err != nil { // a stale one
			t.Fatal(err)
		} else {
			dead.SetUnlinkOnClose(false)
			_ = dead.Close()
		}
		m := harness.Start(t, harness.Options{
			Args: []string{"--policy", policy, "--workers", "2"}, Listen: []string{"unix:" + path + ",mode=0640"},
		})
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != 0o640 || info.Mode()&os.ModeSocket == 0 {
			t.Errorf("%v, %v", info, err)
		}
		r := serves(t, m, load.Config{Network: "unix", Address: path, Clients: 8, Total: 400})
		if policy == "rr" {
			accounts(t, m, r)
		}
		m.Stop()
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("after the end: %v", err)
		}
	})
}

// A socket that somebody listens on is not taken away.
func TestUnixSocketInUse(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "rrd.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	m := harness.Run(t, harness.Options{Listen: []string{"unix:" + path}, ExitCode: 1})
	if !strings.Contains(m.Log(), "address already in use") || !strings.Contains(m.Log(), path) {
		t.Error(m.Log())
	}
	if _, err := os.Lstat(path); err != nil {
		t.Error(err)
	}
}

func TestAddressInUse(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", harness.Host()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	m := harness.Run(t, harness.Options{Listen: []string{ln.Addr().String()}, ExitCode: 1})
	if !regexp.MustCompile(`(?m)^rrd: --listen: .*` + regexp.QuoteMeta(ln.Addr().String()) + `.*address already in use: .*\(from flag\)$`).MatchString(m.Log()) {
		t.Error(m.Log())
	}
}

func TestIPv6(t *testing.T) {
	each(t, func(t *testing.T, policy string) {
		m := harness.Start(t, harness.Options{
			Args: []string{"--policy", policy, "--workers", "2"}, Listen: []string{"[::1]:0"},
		})
		if !strings.HasPrefix(m.Addr(), "[::1]:") {
			t.Errorf("address %s", m.Addr())
		}
		r := serves(t, m, load.Config{Clients: 4, Total: 200})
		if !strings.HasPrefix(r.Results[0].Remote, "[::1]:") {
			t.Errorf("the worker sees %s", r.Results[0].Remote)
		}
	})
}

// One port for both families, and the client's real address in both.
func TestDualStack(t *testing.T) {
	t.Parallel()
	m := harness.Start(t, harness.Options{Args: []string{"--policy", "rr", "--workers", "2"}, Listen: []string{":0"}})
	_, port, err := net.SplitHostPort(m.Addr())
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		r := serves(t, m, load.Config{Address: net.JoinHostPort(host, port), Total: 10})
		if !strings.Contains(r.Results[0].Remote, host) {
			t.Errorf("the worker sees %s, not %s", r.Results[0].Remote, host)
		}
	}
}

// Two listeners at once, each with its own label, queue and books.
func TestTwoListeners(t *testing.T) {
	each(t, func(t *testing.T, policy string) {
		path := filepath.Join(t.TempDir(), "s")
		m := harness.Start(t, harness.Options{
			Args:   []string{"--policy", policy, "--workers", "3"},
			Listen: []string{"web=" + harness.Host() + ":0", "unix:" + path},
		})
		web := serves(t, m, load.Config{Address: m.AddrOf("web"), Total: 90, Clients: 3})
		local := serves(t, m, load.Config{Network: "unix", Address: path, Total: 60, Clients: 3})
		s := m.Idle()
		if len(s.Listeners) != 2 || s.Listeners[0].Name != "web" || s.Listeners[1].Name != "unix:"+path {
			t.Fatalf("%+v", s.Listeners)
		}
		if policy == "rr" {
			accounts(t, m, web, local)
			if s.Listeners[0].Accepted != 90 || s.Listeners[1].Acked != 60 {
				t.Errorf("%+v", s.Listeners)
			}
		}
	})
}

// activated starts a master as systemd does for a socket unit: the listeners from
// descriptor 3 on, and LISTEN_PID its own. Only the process itself can know its
// pid before exec, so a shell sets it.
func activated(t *testing.T, o harness.Options, names string, lns ...*os.File) *harness.Master {
	t.Helper()
	o.Files = lns
	o.Wrap = []string{"/bin/sh", "-c", fmt.Sprintf(`LISTEN_PID=$$ LISTEN_FDS=%d LISTEN_FDNAMES=%s exec "$@"`, len(lns), names), "sh"}
	return harness.Start(t, o)
}

func listenFile(t *testing.T, network, address string) (*os.File, string) {
	t.Helper()
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	f, err := ln.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	t.Cleanup(func() { _ = f.Close() })
	return f, ln.Addr().String()
}

func TestSocketActivation(t *testing.T) {
	each(t, func(t *testing.T, policy string) {
		web, at := listenFile(t, "tcp4", harness.Host()+":0")
		path := filepath.Join(t.TempDir(), "s")
		local, _ := listenFile(t, "unix", path)
		m := activated(t, harness.Options{
			Args: []string{"--policy", policy, "--workers", "2"}, Listen: []string{"fd:3", "local=fd:two"},
		}, "one:two", web, local)
		if m.AddrOf("fd:3") != at {
			t.Errorf("fd:3 is %s, want %s", m.AddrOf("fd:3"), at)
		}
		a := serves(t, m, load.Config{Address: at, Clients: 4, Total: 100})
		b := serves(t, m, load.Config{Network: "unix", Address: path, Clients: 4, Total: 100})
		if policy == "rr" {
			accounts(t, m, a, b)
		}
		m.Stop()
		// They are not rrd's: the path stays, and who holds it goes on listening.
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Errorf("the supervisor's listener is closed: %v", err)
		} else {
			_ = c.Close()
		}
	})
}

// Datagrams are shared under every policy.
func TestUDP(t *testing.T) {
	t.Parallel()
	m := harness.Start(t, harness.Options{
		Args: []string{"--policy", "rr", "--workers", "2"}, Listen: []string{"web=" + harness.Host() + ":0", "dns=udp://" + harness.Host() + ":0"},
	})
	c, err := net.Dial("udp", m.AddrOf("dns"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(harness.Patience))
	buf := make([]byte, 2048)
	for range 10 {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		if err != nil || !strings.Contains(string(buf[:n]), c.LocalAddr().String()) {
			t.Fatalf("%q, %v", buf[:n], err)
		}
	}
	accounts(t, m, serves(t, m, load.Config{Address: m.AddrOf("web"), Total: 20}))
}

// curl over every kind of address that README and the banner name.
func TestCurlUnix(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	harness.Start(t, harness.Options{Args: []string{"--workers", "1"}, Listen: []string{"unix:" + path}})
	out, err := exec.Command("curl", "-sS", "--unix-socket", path, "http://localhost/").CombinedOutput()
	if err != nil || !strings.Contains(string(out), `"uri":"/"`) {
		t.Errorf("%v: %s", err, out)
	}
}
