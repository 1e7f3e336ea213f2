//go:build unix

package main

import (
	"net"
	"testing"
	"time"
)

// A draining worker ends clients that say nothing, not those that it has not read yet.
func TestHasSpoken(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	pair := func() (client, server net.Conn) {
		t.Helper()
		if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
			t.Fatal(err)
		}
		if server, err = ln.Accept(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = client.Close(), server.Close() })
		return client, server
	}
	_, silent := pair()
	if hasSpoken(silent) {
		t.Error("one that says nothing has spoken")
	}
	client, server := pair()
	if _, err := client.Write([]byte("G")); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); !hasSpoken(server); {
		if time.Now().After(deadline) {
			t.Fatal("one whose byte is not read yet has not spoken")
		}
	}
	client, server = pair()
	_ = client.Close()
	if n, err := server.Read(make([]byte, 1)); n != 0 || err == nil || hasSpoken(server) {
		t.Errorf("one that has left has spoken: %d, %v", n, err)
	}
}
