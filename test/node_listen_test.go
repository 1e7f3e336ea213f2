//go:build linux

package test

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// What a program may ask a cluster primary for: one master, whose workers open and
// close servers at request.
func TestNodeListen(t *testing.T) {
	t.Parallel()
	m := lab(t, 3, "--policy", "rr")
	l := &listening{m: m, workers: remotes(t, m)}
	for name, f := range map[string]func(*testing.T){
		"twice in one worker":    l.twice,
		"in use by others":       l.inUse,
		"of another machine":     l.elsewhere,
		"two ports chosen":       l.chosen,
		"no host":                l.noHost,
		"IPv6 only":              l.onlyIPv6,
		"relative path":          l.relative,
		"long path":              l.long,
		"abstract path":          l.abstract,
		"stale socket":           l.stale,
		"mode of a socket":       l.mode,
		"somebody's descriptor":  l.descriptor,
		"exclusive":              l.exclusive,
		"close and listen again": l.again,
	} {
		t.Run(name, func(t *testing.T) {
			l.t = t
			for _, w := range l.workers {
				w.t = t
			}
			f(t)
		})
	}
	for _, w := range l.workers {
		w.t = t
	}
}

// listening has workers listen.
type listening struct {
	t       *testing.T
	m       *harness.Master
	workers []*remote
}

// all has each worker listen, and returns the port, which is the same for all.
func (l *listening) all(name string, query ...string) (port int) {
	l.t.Helper()
	for i, w := range l.workers {
		a := w.get("/listen", append([]string{"name", name}, query...)...)
		if a.Error != "" {
			l.t.Fatalf("worker %d: %s", i, a.Error)
		}
		if i > 0 && a.port() != port {
			l.t.Errorf("worker %d got port %d, the one before %d", i, a.port(), port)
		}
		port = a.port()
	}
	return port
}

// refused has a worker listen, which must fail.
func (l *listening) refused(w *remote, code string, errno int, query ...string) {
	l.t.Helper()
	if a := w.get("/listen", append([]string{"name", "refused"}, query...)...); a.Error != code || a.Errno != errno {
		l.t.Errorf("listen %q: error %q %d, address %s; want %s %d", query, a.Error, a.Errno, a.Address, code, errno)
	}
}

func (l *listening) close(name string) {
	l.t.Helper()
	for _, w := range l.workers {
		w.get("/close", "name", name)
	}
}

// gone waits until nobody listens any more.
func (l *listening) gone(network, address string) {
	l.t.Helper()
	harness.Poll(l.t, "the listener to be closed", func() error {
		c, err := net.DialTimeout(network, address, time.Second)
		if err == nil {
			_ = c.Close()
			return fmt.Errorf("%s is still served", address)
		}
		return nil
	})
}

// turns checks that three connections are served by all three workers.
func (l *listening) turns(network, address string) {
	l.t.Helper()
	by := make(map[int]int)
	for range 2 * len(l.workers) {
		by[whose(l.t, network, address)]++
	}
	exactly(l.t, by, len(l.workers), 2)
}

// whose connects and returns the pid that it is told.
func whose(t *testing.T, network, address string) int {
	t.Helper()
	c, err := net.DialTimeout(network, address, harness.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(harness.Patience))
	text, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// hostPort splits what freePort returns.
func hostPort(t *testing.T, at string) (host, port string) {
	t.Helper()
	host, port, err := net.SplitHostPort(at)
	if err != nil {
		t.Fatal(err)
	}
	return host, port
}

func (l *listening) twice(t *testing.T) {
	at := freePort(t)
	host, port := hostPort(t, at)
	if got := strconv.Itoa(l.all("a", "host", host, "port", port)); got != port {
		t.Errorf("it says port %s, want %s", got, port)
	}
	for _, w := range l.workers {
		l.refused(w, "EADDRINUSE", -98, "host", host, "port", port)
	}
	l.turns("tcp", at)
	l.close("a")
	l.gone("tcp", at)
}

func (l *listening) inUse(t *testing.T) {
	ln, err := net.Listen("tcp", harness.Host()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	at := ln.Addr().String()
	host, port := hostPort(t, at)
	for _, w := range l.workers {
		l.refused(w, "EADDRINUSE", -98, "host", host, "port", port)
	}
	_ = ln.Close() // the next try is a new one
	l.all("a", "host", host, "port", port)
	l.turns("tcp", at)
	l.close("a")
}

func (l *listening) elsewhere(*testing.T) {
	// TEST-NET-3 of RFC 5737 is nobody's.
	l.refused(l.workers[0], "EADDRNOTAVAIL", -99, "host", "203.0.113.7", "port", "0")
}

// The first listen(0) of every worker shares one port, the second another.
func (l *listening) chosen(t *testing.T) {
	host := harness.Host()
	a, b := l.all("a", "host", host, "port", "0"), l.all("b", "host", host, "port", "0")
	if a == b || a <= 0 || b <= 0 {
		t.Errorf("ports %d and %d", a, b)
	}
	for _, port := range []int{a, b} {
		l.turns("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	}
	// With both closed a worker counts from the first again, and joins the others.
	w := l.workers[1]
	w.get("/close", "name", "b")
	w.get("/close", "name", "a")
	if got := w.get("/listen", "name", "a", "host", host, "port", "0").port(); got != a {
		t.Errorf("port %d after it was closed, want %d again", got, a)
	}
	if got := w.get("/listen", "name", "b", "host", host, "port", "0").port(); got != b {
		t.Errorf("port %d after it was closed, want %d again", got, b)
	}
	l.close("a")
	l.close("b")
}

func (l *listening) noHost(t *testing.T) {
	port := strconv.Itoa(l.all("a", "port", "0"))
	for _, host := range []string{"127.0.0.1", "::1"} {
		l.turns("tcp", net.JoinHostPort(host, port))
	}
	l.close("a")
	_ = t
}

func (l *listening) onlyIPv6(t *testing.T) {
	port := strconv.Itoa(l.all("six", "host", "::", "port", "0", "ipv6Only", "1"))
	l.turns("tcp6", net.JoinHostPort("::1", port))
	l.gone("tcp4", net.JoinHostPort("127.0.0.1", port))
	if got := l.all("four", "host", "0.0.0.0", "port", port); strconv.Itoa(got) != port {
		t.Errorf("port %d of IPv4 beside %s of IPv6", got, port)
	}
	l.turns("tcp4", net.JoinHostPort("127.0.0.1", port))
	l.turns("tcp6", net.JoinHostPort("::1", port))
	l.close("six")
	l.close("four")
}

func (l *listening) relative(t *testing.T) {
	path := filepath.Join(l.m.Dir(), "relative.sock")
	l.all("a", "path", "relative.sock")
	l.turns("unix", path)
	l.refused(l.workers[0], "EADDRINUSE", -98, "path", "relative.sock")
	l.close("a")
	l.removed(path)
	_ = t
}

// removed waits until the file of a closed listener is gone.
func (l *listening) removed(path string) {
	l.t.Helper()
	harness.Poll(l.t, "the socket to be removed", func() error {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			return fmt.Errorf("lstat %s: %w", path, err)
		}
		return nil
	})
}

// A path that does not fit into a socket address.
func (l *listening) long(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 100))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	l.all("a", "path", path)
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l.turns("unix", fmt.Sprintf("/proc/self/fd/%d/s", f.Fd()))
	l.close("a")
	l.removed(path)
}

func (l *listening) abstract(t *testing.T) {
	name := fmt.Sprintf("rrd-test-%d-%s", os.Getpid(), filepath.Base(t.TempDir()))
	l.all("a", "path", "\x00"+name)
	l.turns("unix", "@"+name)
	l.close("a")
	l.gone("unix", "@"+name)
}

// Node's primary leaves stale sockets alone.
func (l *listening) stale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	l.refused(l.workers[0], "EADDRINUSE", -98, "path", path)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	l.all("a", "path", path)
	l.turns("unix", path)
	l.close("a")
	l.removed(path)
}

func (l *listening) mode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l.all("a", "path", path, "readableAll", "1", "writableAll", "1")
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Perm()&0o666 != 0o666 {
		t.Errorf("%v, %v", info, err)
	}
	l.close("a")
	l.removed(path)
}

// A number means nothing in the master, which must not listen on what it has there.
func (l *listening) descriptor(*testing.T) {
	for fd := 3; fd < 12; fd++ {
		l.refused(l.workers[0], "EINVAL", -22, "fd", strconv.Itoa(fd))
	}
}

// The master sees nothing of it: each worker has a port of its own.
func (l *listening) exclusive(t *testing.T) {
	before := len(l.m.Events(harness.Named("listener.open")))
	ports := make(map[int]bool)
	for _, w := range l.workers {
		ports[w.get("/listen", "name", "a", "host", harness.Host(), "port", "0", "exclusive", "1").port()] = true
		w.get("/close", "name", "a")
	}
	if n := len(l.m.Events(harness.Named("listener.open"))); n != before {
		t.Errorf("%d listeners were opened", n-before)
	}
	_ = ports
}

// Workers come and go as their programs like; the last one closes the door.
func (l *listening) again(t *testing.T) {
	at := freePort(t)
	host, port := hostPort(t, at)
	ask := []string{"name", "a", "host", host, "port", port}
	l.all("a", ask[2:]...)
	for i, w := range l.workers[:2] {
		w.get("/close", "name", "a")
		for range 6 {
			if pid := whose(t, "tcp", at); pid == w.pid {
				t.Errorf("worker %d has closed it and served it", i)
			}
		}
	}
	for _, w := range l.workers[:2] {
		if a := w.get("/listen", ask...); a.Error != "" {
			t.Errorf("listen again: %s", a.Error)
		}
	}
	by := make(map[int]int)
	for range 6 {
		by[whose(t, "tcp", at)]++
	}
	exactly(t, by, 3, 2)
	l.close("a")
	l.gone("tcp", at)
	l.all("a", ask[2:]...) // from the beginning
	l.turns("tcp", at)
	l.close("a")
}

// One bound socket for all, datagrams to whoever reads first.
func TestNodeUDP(t *testing.T) {
	t.Parallel()
	m := node(t, 2, "udp.js", harness.Options{})
	e := m.Wait(harness.Named("listener.open"))
	if !strings.HasPrefix(e.Str("network"), "udp") || !e.Bool("shared") {
		t.Error(e.Line)
	}
	if n := len(m.Events(harness.Named("listener.open"))); n != 1 {
		t.Errorf("%d sockets were bound", n)
	}
	for i := range 50 {
		datagram(t, e.Str("address"), i)
	}
	// Both read it: with one of them dead the other answers.
	for slot := range 2 {
		mark := m.Mark()
		pid := m.PID(1 - slot)
		m.Kill(m.PID(slot), 9)
		if got := datagram(t, e.Str("address"), 100+slot); got != pid {
			harness.Poll(t, "the living one to answer", func() error {
				if got := datagram(t, e.Str("address"), 200); got != pid && got != m.PID(slot) {
					return fmt.Errorf("process %d answers", got)
				}
				return nil
			})
		}
		m.WaitFrom(mark, 1, harness.OfSlot("worker.ready", slot))
	}
	for i := range 10 {
		datagram(t, e.Str("address"), 300+i)
	}
}

// datagram asks until it is answered: one that a process has read when it is
// killed is lost, as datagrams may be.
func datagram(t *testing.T, address string, n int) (pid int) {
	t.Helper()
	c, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 2048)
	harness.Poll(t, "an answer to a datagram", func() error {
		_ = c.SetDeadline(time.Now().Add(time.Second))
		said := fmt.Sprintf("this is %d", n)
		if _, err := io.WriteString(c, said); err != nil {
			return err
		}
		k, err := c.Read(buf)
		if err != nil {
			return err
		}
		if !strings.Contains(string(buf[:k]), fmt.Sprintf(`"said":%q`, said)) {
			return fmt.Errorf("it is %q", buf[:k])
		}
		_, err = fmt.Sscanf(string(buf[:k]), `{"pid":%d,`, &pid)
		return err
	})
	return pid
}

// A program that tries ports out, in any notation, gets what it gets alone.
func TestNodePorts(t *testing.T) {
	t.Parallel()
	port := portOfAll(t)
	m := node(t, 1, "ports.js", harness.Options{Env: []string{"FREE=" + port, "HOST=127.0.0.1"}})
	nodeServes(t, m, load.Config{Address: "127.0.0.1:" + port, Total: 5})
	if n := len(m.Events(harness.Named("listener.refused"))) + len(m.Events(harness.Named("worker.exit"))); n > 0 {
		t.Errorf("%d requests were refused, or workers ended", n)
	}
}

// An IPv4 address that is written as an IPv6 one is reported as it was written, as Node does.
func TestNodeReportsAMappedAddress(t *testing.T) {
	t.Parallel()
	needsTool(t, "node")
	program := filepath.Join(t.TempDir(), "mapped.js")
	const text = `require("net").createServer().listen(0, "::ffff:127.0.0.1", function() { console.log(JSON.stringify(this.address())) })`
	if err := os.WriteFile(program, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	m := harness.Start(t, harness.Options{
		Args: []string{"--policy", "rr", "--workers", "1", "--worker-output", "raw"}, Listen: []string{}, Command: []string{"node", program},
	})
	m.WaitStdout(`{"address":"::ffff:127.0.0.1","family":"IPv6","port":`)
}
