package dispatcher

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

func TestAddresses(t *testing.T) {
	for _, tt := range []struct {
		network, address string
		bound            string   // PORT stands for the port
		dial             []string // all are served
		refused          string
	}{
		{"tcp4", "127.0.0.1:0", "127.0.0.1:PORT", []string{"127.0.0.1"}, ""},
		{"tcp", "127.0.0.1:0", "127.0.0.1:PORT", []string{"127.0.0.1"}, ""},
		{"tcp", "localhost:0", "127.0.0.1:PORT", []string{"127.0.0.1"}, ""},
		{"tcp", ":0", "[::]:PORT", []string{"127.0.0.1", "::1"}, ""},
		{"tcp4", ":0", "0.0.0.0:PORT", []string{"127.0.0.1"}, "::1"},
		{"tcp", "0.0.0.0:0", "0.0.0.0:PORT", []string{"127.0.0.1"}, "::1"},
		{"tcp6", ":0", "[::]:PORT", []string{"::1"}, "127.0.0.1"},
		{"tcp", "[::1]:0", "[::1]:PORT", []string{"::1"}, ""},
		{"tcp", "[::ffff:127.0.0.1]:0", "127.0.0.1:PORT", []string{"127.0.0.1"}, ""},
	} {
		t.Run(tt.network+"_"+tt.address, func(t *testing.T) {
			s := newStepped(t, Config{Configured: true})
			ln := s.open(ListenerConfig{Name: "web", Network: tt.network, Address: tt.address, UID: -1, GID: -1})
			host, port, _ := net.SplitHostPort(ln.addr)
			if got := strings.Replace(ln.addr, ":"+port, ":PORT", 1); got != tt.bound || port == "0" {
				t.Errorf("bound to %s, want %s (%s)", ln.addr, tt.bound, host)
			}
			p := s.serving(ln)
			for i, host := range tt.dial {
				c, err := net.DialTimeout("tcp", net.JoinHostPort(host, port), patience)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				_, _ = c.Write([]byte{byte(i + 1)})
				s.settle()
				p.mustGet(i + 1)
			}
			if tt.refused != "" {
				if c, err := net.DialTimeout("tcp", net.JoinHostPort(tt.refused, port), patience); err == nil {
					_ = c.Close()
					t.Errorf("%s is served", tt.refused)
				}
			}
		})
	}
}

func TestAddressesThatAreRefused(t *testing.T) {
	for _, tt := range []struct{ network, address, says string }{
		{"tcp", "nohost", "missing port"},
		{"tcp", "example.com:80", "not an IP address"},
		{"tcp", "127.0.0.1:http", "port is not a number"},
		{"tcp", "127.0.0.1:70000", "port is not a number"},
		{"tcp4", "[::1]:0", "not an IPv4 address"},
		{"unix", "/nowhere/at/all/s", "no such file"},
		{"unix", "@abstract\x00name", "NUL byte"},
		{"tcp", "[fe80::1%nosuchzone]:0", "zone"},
	} {
		s, err := bindSocket(tt.network, tt.address, bindOptions{uid: -1, gid: -1})
		if err == nil {
			_ = s.close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s %s: %v, want %q", tt.network, tt.address, err, tt.says)
		}
	}
}

func TestUnixSocketFiles(t *testing.T) {
	mode := func(m os.FileMode) *os.FileMode { return &m }
	listen := func(t *testing.T, c ListenerConfig) (*running, error) {
		r := run(t, Config{Configured: true})
		c.Name, c.Network, c.UID, c.GID = "web", "unix", -1, -1
		_, err := r.Listen(c)
		return r, err
	}
	path := func(t *testing.T) string { return filepath.Join(t.TempDir(), "s") }

	t.Run("exact-modes-whatever-the-umask", func(t *testing.T) {
		was := unix.Umask(0o027)
		defer unix.Umask(was)
		for want, m := range map[os.FileMode]*os.FileMode{0o750: nil, 0o666: mode(0o666), 0o600: mode(0o600), 0o777: mode(0o777)} {
			p := path(t)
			if _, err := listen(t, ListenerConfig{Address: p, Mode: m}); err != nil {
				t.Fatal(err)
			}
			if fi, err := os.Stat(p); err != nil || fi.Mode().Perm() != want {
				t.Errorf("%v: mode %v, want %v", err, fi.Mode().Perm(), want)
			}
		}
	})
	t.Run("a-stale-one-is-replaced", func(t *testing.T) {
		p := path(t)
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: p}); err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fd)
		if _, err := listen(t, ListenerConfig{Address: p}); err != nil {
			t.Error(err)
		}
	})
	t.Run("a-live-one-is-not", func(t *testing.T) {
		p := path(t)
		ln, err := net.Listen("unix", p)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		if _, err := listen(t, ListenerConfig{Address: p}); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "another process") {
			t.Errorf("%v", err)
		}
		if c, err := net.Dial("unix", p); err != nil {
			t.Errorf("the live one was harmed: %v", err)
		} else {
			_ = c.Close()
		}
	})
	t.Run("what-is-no-socket-is-not", func(t *testing.T) {
		p := path(t)
		if err := os.WriteFile(p, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		link := p + ".link"
		if err := os.Symlink(p, link); err != nil {
			t.Fatal(err)
		}
		for _, at := range []string{p, link} {
			if _, err := listen(t, ListenerConfig{Address: at}); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("%v", err)
			}
		}
		if b, err := os.ReadFile(p); err != nil || string(b) != "precious" {
			t.Errorf("%q %v", b, err)
		}
	})
	t.Run("a-nul-leaves-nothing-behind", func(t *testing.T) {
		p := path(t)
		if _, err := listen(t, ListenerConfig{Address: p + "\x00tail"}); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "NUL byte") {
			t.Errorf("%v", err)
		}
		if _, err := os.Lstat(p); !os.IsNotExist(err) {
			t.Errorf("a file was left behind: %v", err)
		}
	})
	t.Run("removed-at-close", func(t *testing.T) {
		p := path(t)
		r, err := listen(t, ListenerConfig{Address: p})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(p); !os.IsNotExist(err) {
			t.Errorf("still there: %v", err)
		}
	})
	t.Run("not-removed-when-replaced", func(t *testing.T) {
		p := path(t)
		r, err := listen(t, ListenerConfig{Address: p})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(p, p+".old"); err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("unix", p)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		_ = r.Close()
		if _, err := os.Lstat(p); err != nil {
			t.Error("another's file was removed")
		}
	})
}

// inheritedFrom is a listener's socket as a supervisor passes it: blocking.
func inheritedFrom(t *testing.T, ln net.Listener) *os.File {
	t.Helper()
	f, err := ln.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	_ = f.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), "inherited")
}

// The supervisor has the socket too: it neither makes the loop wait in accept,
// nor does closing it take it from the supervisor.
func TestAnInheritedListenerIsLeftAsItWas(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		address := "127.0.0.1:0"
		if network == "unix" {
			address = filepath.Join(t.TempDir(), "s")
		}
		owner, err := net.Listen(network, address)
		if err != nil {
			t.Fatal(err)
		}
		s := newStepped(t, Config{Configured: true})
		sock, err := inherited(inheritedFrom(t, owner))
		if err != nil {
			t.Fatal(err)
		}
		ln, err := s.l.open(ListenerConfig{Name: "web", Network: "fd", Address: "3", UID: -1, GID: -1}, sock, nil)
		if err != nil {
			t.Fatal(err)
		}
		p := s.serving(ln)
		s.connect(ln, 1)
		s.settle()
		p.mustGet(1)
		idle := make(chan struct{})
		s.l.shutdown(idle)
		p.ack(1)
		s.until("it is shut down", func() bool { return isClosed(idle) })
		c, err := net.DialTimeout(network, ln.addr, patience)
		if err != nil {
			t.Fatalf("%s: the next master's clients: %v", network, err)
		}
		got, err := owner.Accept()
		if err != nil {
			t.Fatal(err)
		}
		_, _, _ = c.Close(), got.Close(), owner.Close()
	}
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestInheritedOfTheWrongKind(t *testing.T) {
	pipeR, pipeW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipeW.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	gram, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for says, f := range map[string]*os.File{
		"not a socket":                 pipeR,
		"does not listen":              os.NewFile(uintptr(fds[0]), "pair"),
		"of a kind that is not served": os.NewFile(uintptr(gram), "gram"),
	} {
		if s, err := inherited(f); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%v, want %q", err, says)
			if err == nil {
				_ = s.close()
			}
		}
	}
}

func TestUDPIsShared(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.open(ListenerConfig{Name: "dns", Network: "udp4", Address: "127.0.0.1:0", UID: -1, GID: -1})
	for range 2 {
		p := s.peer()
		p.say(handoff.Frame{Type: handoff.Listen, Seq: 1, Payload: []byte("udp\x00dns")})
		s.settle()
		fd := p.shared()
		if f := p.last(handoff.Listening); f == nil || f.Flags != handoff.ListeningShared|handoff.ListeningPacket {
			t.Fatalf("%+v", f)
		}
		c, err := net.Dial("udp", ln.addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte("ask"))
		_ = c.Close()
		var b [8]byte
		if n, _, err := unix.Recvfrom(fd.Num(), b[:], 0); err != nil || string(b[:n]) != "ask" {
			t.Errorf("%q %v", b[:n], err)
		}
		_ = fd.Close()
	}
}

// shared receives one message with a listening descriptor.
func (p *peer) shared() handoff.FD {
	p.Helper()
	var m handoff.Message
	for range 3 {
		if err := p.port.TryReceive(&m); err != nil {
			p.Fatal(err)
		}
		p.heard = append(p.heard, m.Frames[0])
		if m.NumFDs == 1 {
			return handoff.Own(m.FDs[0].Release())
		}
	}
	p.Fatal("no descriptor")
	return handoff.FD{}
}
