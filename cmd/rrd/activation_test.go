//go:build unix

package main

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"rrd/dispatcher"
)

// inherit opens n listening sockets at consecutive descriptors, as systemd
// would leave them, and returns the first one's number. They belong to whoever
// takes them.
func inherit(t *testing.T, n int) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	raw, err := ln.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fds []int
	err = raw.Control(func(fd uintptr) {
		for len(fds) < n {
			d, err := syscall.Dup(int(fd))
			if err != nil {
				t.Fatal(err)
			}
			if len(fds) > 0 && d != fds[len(fds)-1]+1 { // a hole before: start over
				for _, old := range fds {
					defer syscall.Close(old)
				}
				fds = nil
			}
			fds = append(fds, d)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return fds[0]
}

func isOpen(fd int) bool {
	_, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE)
	return err == nil
}

func fdListener(address string) dispatcher.ListenerConfig {
	return dispatcher.ListenerConfig{Name: address, Network: "fd", Address: address}
}

func activationEnv(n int, names string) []string {
	return []string{fmt.Sprintf("LISTEN_FDS=%d", n), "LISTEN_PID=77", "LISTEN_FDNAMES=" + names}
}

func TestActivationByNameAndNumber(t *testing.T) {
	first := inherit(t, 3)
	a := takeActivationFrom(activationEnv(3, "web:admin:web2"), 77, first)
	listen := []dispatcher.ListenerConfig{fdListener("admin"), {Name: ":80", Network: "tcp"}, fdListener(fmt.Sprint(first))}
	if err := a.claim(listen); err != nil {
		t.Fatal(err)
	}
	for i, want := range map[int]int{0: first + 1, 2: first} {
		if got := int(listen[i].File.Fd()); got != want {
			t.Errorf("%s is descriptor %d, want %d", listen[i].Name, got, want)
		}
	}
	if names := a.claimKept(listen); !slices.Equal(names, []string{"web2"}) || isOpen(first+2) {
		t.Errorf("unclaimed are %q, and web2 is open: %v", names, isOpen(first+2))
	}
	if listen[1].File != nil {
		t.Error("a tcp listener got a descriptor")
	}
	ln, err := net.FileListener(listen[0].File)
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	listen[0].File.Close()
	listen[2].File.Close()
	if isOpen(first) || isOpen(first+1) {
		t.Error("a claimed descriptor does not belong to the listener alone")
	}
}

// Sockets that the service manager has kept go to the listeners of their names, and all
// others are closed.
func TestActivationOfKeptSockets(t *testing.T) {
	first := inherit(t, 4)
	a := takeActivationFrom(activationEnv(4, "[__1]_80:old:web:web"), 77, first)
	listen := []dispatcher.ListenerConfig{{Name: "web", Network: "tcp"}, {Name: "[::1]:80", Network: "tcp6"}, {Name: "new", Network: "unix"}}
	if err := a.claim(listen); err != nil {
		t.Fatal(err)
	}
	if names := a.claimKept(listen); !slices.Equal(names, []string{"old", "web"}) || isOpen(first+1) || isOpen(first+3) {
		t.Errorf("unclaimed are %q", names)
	}
	for i, want := range []int{first + 2, first} {
		if f := listen[i].File; f == nil || int(f.Fd()) != want {
			t.Errorf("%s got %v, want descriptor %d", listen[i].Name, f, want)
		} else {
			f.Close()
		}
	}
	if listen[2].File != nil {
		t.Error("a new listener got a socket")
	}
}

func TestActivationMistakes(t *testing.T) {
	for _, x := range []struct {
		name    string
		environ func(n int) []string
		address string // # is the first descriptor
		want    string
	}{
		{"not activated", func(int) []string { return nil }, "web",
			`--listen: "fd:web" cannot be had: LISTEN_FDS is not set: rrd was not started by a socket unit or the like`},
		{"odd number", func(int) []string { return []string{"LISTEN_FDS=x", "LISTEN_PID=77"} }, "web",
			`LISTEN_FDS is "x", which is not a number from 0 to 4096`},
		{"too many", func(int) []string { return []string{"LISTEN_FDS=99999", "LISTEN_PID=77"} }, "web",
			`LISTEN_FDS is "99999", which is not a number from 0 to 4096`},
		{"wrong process", func(n int) []string { return []string{"LISTEN_FDS=2", "LISTEN_PID=78"} }, "web",
			`LISTEN_PID is "78", but this is process 77: what stands between the socket unit and rrd must start it with exec`},
		{"no process", func(n int) []string { return []string{"LISTEN_FDS=2"} }, "web",
			`LISTEN_PID is "", but this is process 77`},
		{"unknown name", func(n int) []string { return activationEnv(n, "web:admin") }, "wbe",
			`--listen: "fd:wbe" is not among LISTEN_FDNAMES=`},
		{"suggestion", func(n int) []string { return activationEnv(n, "web:admin") }, "wbe", `(did you mean fd:web?)`},
		{"same names", func(n int) []string { return activationEnv(n, "web:web") }, "web",
			`names several descriptors: use their numbers, fd:# and fd:`},
		{"no names", func(n int) []string { return activationEnv(n, "") }, "web",
			`is not among LISTEN_FDNAMES="unknown:unknown"`},
		{"closed", func(n int) []string { return activationEnv(n, "web:admin") }, "9999",
			`--listen: "fd:9999" is not open: nobody passed descriptor 9999 to rrd`},
	} {
		first := inherit(t, 2)
		taken := x.environ(2)
		a := takeActivationFrom(taken, 77, first)
		ours := a.problem == ""
		listen := []dispatcher.ListenerConfig{fdListener(fmt.Sprint(first)), fdListener(x.address)}
		err := a.claim(listen)
		want := strings.Replace(x.want, "#", fmt.Sprint(first), 1)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", x.name, err, want)
		}
		if isOpen(first) || listen[0].File != nil {
			t.Errorf("%s: what was claimed before the mistake is left open", x.name)
		}
		if isOpen(first+1) == ours {
			t.Errorf("%s: the other one is open: %v, ours: %v", x.name, !ours, ours)
		}
		syscall.Close(first + 1)
	}
}

func TestActivationClaimedTwice(t *testing.T) {
	first := inherit(t, 1)
	a := takeActivationFrom(activationEnv(1, "web"), 77, first)
	err := a.claim([]dispatcher.ListenerConfig{fdListener(fmt.Sprint(first)), fdListener("web")})
	if err == nil || !strings.Contains(err.Error(), `"fd:web" is claimed by another listener`) {
		t.Error(err)
	}
	if isOpen(first) {
		t.Error("left open")
	}
}

func TestActivationKindsOfDescriptors(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(pair[0])
	defer syscall.Close(pair[1])
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	var udpFD int
	raw, err := udp.(*net.UDPConn).SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { udpFD = int(fd) })
	}
	if err != nil {
		t.Fatal(err)
	}
	for fd, want := range map[int]string{
		int(f.Fd()): "is no socket",
		pair[0]:     "does not listen: with a socket unit, Accept=no is needed",
		udpFD:       "is no stream socket: for datagrams use udp://ADDRESS",
	} {
		if err := checkListening(fd); err == nil || err.Error() != want {
			t.Errorf("%d: %v, want %s", fd, err, want)
		}
	}
}

func TestActivationUnsetsItsVariables(t *testing.T) {
	for _, name := range activationNames {
		t.Setenv(name, "0")
	}
	a := takeActivation([]string{"LISTEN_FDS=0", "LISTEN_PID=1"}, 1)
	a.close()
	for _, name := range activationNames {
		if v, ok := os.LookupEnv(name); ok {
			t.Errorf("%s=%s is still set", name, v)
		}
	}
	if a.problem != "" {
		t.Error(a.problem)
	}
}
