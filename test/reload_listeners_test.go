//go:build linux

package test

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// A reload that puts another listener in the place of the only one. Both are open while
// the workers roll, but each generation is given one, which is all that these programs
// can deal with; and nobody holds the removed one any more.
func TestReloadOfTheOnlyListener(t *testing.T) {
	inherits := []string{"python3", "-c", listenFDsProgram}
	flags := []string{"--worker-protocol", "listen-fds", "--ready-after", "500ms"}
	for name, tt := range map[string]struct {
		policy  string
		flags   []string
		command []string
	}{
		"rr":             {"rr", nil, []string{userProgram(t), "-addr", ":80"}},
		"none, asks":     {"none", nil, []string{userProgram(t), "-addr", ":80"}},
		"none, inherits": {"none", flags, inherits},
		"reuseport":      {"reuseport", flags, inherits},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := func(name string) string {
				return fmt.Sprintf("workers = 2\ncanary-time = \"100ms\"\nlisten = [\"%s=%s:0\"]\n", name, harness.Host())
			}
			c := startConfigured(t, harness.Options{Listen: []string{}, Command: tt.command,
				Args: append([]string{"--policy", tt.policy}, tt.flags...)}, file("first"))
			for _, name := range []string{"second", "third"} {
				mark := c.Mark()
				c.write(file(name))
				if why := c.reload(); why != "" {
					t.Fatal(why)
				}
				c.WaitFrom(mark, 1, harness.Named("listener.close"))
				c.AllReady()
				r := load.Run(t.Context(), load.Config{Address: c.AddrOf(name), Clients: 4, Total: 40, Judge: load.AnyOK})
				if r.Count(load.OK) != 40 {
					t.Errorf("%s: %v", name, r)
				}
			}
			for _, name := range []string{"first", "second"} {
				if conn, err := net.DialTimeout("tcp", c.AddrOf(name), time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("listener %s: %v, %v", name, conn, err)
				}
			}
		})
	}
}
