package dispatcher

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// keep returns what a service manager would hold of a listener.
func (r *running) keep(c ListenerConfig) *os.File {
	r.Helper()
	files, err := r.Sockets(c.Name, c.Address)
	if err != nil || len(files) != 1 {
		r.Fatalf("%d sockets: %v", len(files), err)
	}
	return files[0]
}

func TestAKeptSocketServesItsQueue(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for _, c := range []ListenerConfig{
		{Name: "web", Network: "tcp", Address: "127.0.0.1:0", UID: -1, GID: -1},
		{Name: "web", Network: "unix", Address: path, UID: -1, GID: -1},
	} {
		first := run(t, Config{Configured: true})
		before := first.open(c)
		f := first.keep(c)
		if c.Network == "tcp" {
			// The worst case: it was ended while it closed its listeners.
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			if err := first.Shutdown(ctx); err != nil {
				t.Fatal(err)
			}
			cancel()
		} else if err := os.Link(path, path+"~"); err != nil {
			t.Fatal(err)
		}
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		if c.Network == "unix" { // a master that is killed leaves it
			if err := os.Rename(path+"~", path); err != nil {
				t.Fatal(err)
			}
		}

		second := run(t, Config{Configured: true})
		c.File = f
		info := second.open(c)
		if !info.Kept || info.Address != before.Address {
			t.Fatalf("%s: %+v, before %+v", c.Network, info, before)
		}
		client, err := net.DialTimeout(c.Network, info.Address, patience)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		w := second.start(c.Network, "web")
		_ = client.SetDeadline(time.Now().Add(patience))
		if _, err := client.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		var b [1]byte
		if _, err := client.Read(b[:]); err != nil {
			t.Errorf("%s: %v; the worker has served %d", c.Network, err, w.served.Load())
		}
		if err := second.CloseListener(t.Context(), c.Name, c.Address); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(path); c.Network == "unix" && !os.IsNotExist(err) {
			t.Errorf("the file is left: %v", err)
		}
	}
}

func TestAKeptSocketOfAnotherAddressIsNotUsed(t *testing.T) {
	open := func(network, address string) *os.File {
		t.Helper()
		s, err := bindSocket(network, address, bindOptions{uid: -1, gid: -1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.file.remove() })
		return os.NewFile(uintptr(s.fd.Release()), "kept")
	}
	path := filepath.Join(t.TempDir(), "s")
	for _, tt := range []struct {
		network, address string
		kept             *os.File
		used             bool
	}{
		{"tcp", "127.0.0.1:0", open("tcp", "127.0.0.1:0"), true},
		{"tcp", "127.0.0.1:1", open("tcp", "127.0.0.1:0"), false},
		{"tcp", "127.0.0.2:0", open("tcp", "127.0.0.1:0"), false},
		{"tcp", ":0", open("tcp", "127.0.0.1:0"), false},
		{"tcp", ":0", open("tcp", ":0"), true},
		{"tcp", "0.0.0.0:0", open("tcp", ":0"), false},
		{"tcp4", ":0", open("tcp", ":0"), false},
		{"tcp4", ":0", open("tcp4", ":0"), true},
		{"udp", "127.0.0.1:0", open("udp", "127.0.0.1:0"), true},
		{"udp", "127.0.0.1:0", open("tcp", "127.0.0.1:0"), false},
		{"unix", path, open("unix", path), true},
		{"unix", path + "2", open("unix", path+"1"), false},
	} {
		s, err := kept(ListenerConfig{Name: "web", Network: tt.network, Address: tt.address, UID: -1, GID: -1, File: tt.kept})
		if (err == nil) != tt.used {
			t.Errorf("%s %s: %v", tt.network, tt.address, err)
		}
		if err == nil {
			_ = s.close()
		}
	}
}
