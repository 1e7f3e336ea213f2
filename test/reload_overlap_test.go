//go:build linux

package test

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// A reload may change an address to one that overlaps it: no client is refused, under any
// policy, and other processes stay out of the port.
func TestReloadToAnOverlappingAddress(t *testing.T) {
	addresses := []string{"127.0.0.1:%s", ":%s", "0.0.0.0:%s", ":%s"}
	rate, soak := 100.0, harness.Soak(t, 0) > 0
	if soak {
		rate, addresses = 1000, append(addresses, "127.0.0.1:%s", ":%s")
	}
	for _, policy := range []string{"rr", "none", "reuseport"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			port := portOfAll(t)
			file := func(address string) string {
				return fmt.Sprintf("workers = 2\npolicy = %q\ncanary-time = \"off\"\nlisten = [\"%s\"]\n", policy, fmt.Sprintf(address, port))
			}
			c := startConfigured(t, harness.Options{Listen: []string{}, Control: true}, file(addresses[0]))
			finish := underWith(t, c.Master, load.Config{Address: "127.0.0.1:" + port, Rate: rate, Duration: 24 * time.Hour, Judge: load.AnyOK})
			for _, address := range addresses[1:] {
				c.write(file(address))
				if r := c.Ctl("config", "check", c.path); r.Code != 0 {
					t.Errorf("%s: config check: %+v", address, r)
				}
				if why := c.reload(); why != "" {
					t.Fatalf("%s: %s", address, why)
				}
				if soak {
					time.Sleep(2 * time.Second) // 2,000 clients for each
				}
			}
			if policy == "rr" { // else a client that has reached the new socket is cut: docs/operation.md
				// A reload that fails leaves the wider address as it was.
				c.write(strings.Replace(file("127.0.0.1:%s"), "workers", "hook-before-spawn = \"exit 1\"\nworkers", 1))
				if why := c.reload(); !strings.Contains(why, "hook") {
					t.Errorf("%q", why)
				}
			}
			if r := finish(); len(r.Failed()) > 0 {
				t.Error(r)
			}
			c.Rebase() // where workers hold the sockets there is a helper process now
		})
	}
}

// portOfAll returns a port that is free on every address.
func portOfAll(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}
