//go:build linux

package test

import (
	"os"
	"path/filepath"
	"testing"

	"rrd/test/harness"
	"rrd/test/load"
)

// The file of a unix socket is removed: rrd makes it again, and under none gives the workers the
// new socket. The control socket is looked at with it.
func TestRemovedSocketFile(t *testing.T) {
	for _, policy := range []string{"rr", "none"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "s")
			m := harness.Start(t, harness.Options{Args: []string{"--policy", policy, "--workers", "1", "--canary-time", "10ms"},
				Listen: []string{"web=unix:" + path}, Control: true})
			for _, p := range []string{path, m.Control()} {
				if err := os.Remove(p); err != nil {
					t.Fatal(err)
				}
			}
			m.Wait(harness.Named("listener.rearmed"))
			m.Wait(harness.Named("control.rearmed"))
			if policy == "none" {
				m.Wait(harness.Named("listener.rolled"))
			}
			serves(t, m, load.Config{Network: "unix", Address: path, Total: 10})
			if c := m.Ctl("status"); c.Code != 0 {
				t.Error(c)
			}
		})
	}
}
