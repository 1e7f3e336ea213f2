package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestProcessFacts(t *testing.T) {
	cpu, rss, fds := processFacts(os.Getpid())
	if cpu == nil || rss == nil || *rss < 1<<20 {
		t.Errorf("%v %v", cpu, rss)
	}
	if fds != nil && (*fds < 3 || *fds > 10000) {
		t.Errorf("%d descriptors", *fds)
	}
	if cpu, rss, fds := processFacts(1 << 30); cpu != nil || rss != nil || fds != nil {
		t.Error("of a process that is not there")
	}
}

func TestOpenDescriptors(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	path := filepath.Join(t.TempDir(), "s")
	un, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer un.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	fds, err := openDescriptors()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for i, fd := range fds {
		if i > 0 && fds[i-1].FD >= fd.FD {
			t.Error("they are in no order")
		}
		found[fd.Kind+" "+fd.Target] = ""
		if strings.HasPrefix(fd.Kind, "tcp connection") {
			found["connection"] = ""
		}
		found[fd.Kind] = ""
	}
	for _, want := range []string{"tcp listener " + ln.Addr().String(), "unix listener " + path, "connection", "pipe", "epoll"} {
		if _, ok := found[want]; !ok {
			t.Errorf("no %s in %v", want, fds)
		}
	}
}
