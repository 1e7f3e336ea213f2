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

// brokenListener serves by LISTEN_FDS. Slot 0 of the first generation harms the shared socket.
const brokenListener = `
import ctypes, os, socket, struct, sys, time
s = socket.socket(fileno=3)
if (os.environ["RRD_SLOT"], os.environ["RRD_GENERATION"]) == ("0", "1"):
    time.sleep(0.5)  # rrd has called it ready
    if sys.argv[1] == "shutdown":
        s.shutdown(socket.SHUT_RDWR)
    else:
        drop = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
        s.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HxxxxxxQ", 1, ctypes.addressof(drop)))
    if sys.argv[1] == "locked filter":
        s.setsockopt(socket.SOL_SOCKET, 44, 1)
    time.sleep(1000)
while True:
    try:
        c, _ = s.accept()
    except OSError:
        time.sleep(0.02)
        continue
    try:
        c.recv(4096)
        c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    except OSError:
        pass
    c.close()
`

// One worker breaks the listener that all share: the others serve on.
func TestBrokenSharedListener(t *testing.T) {
	for harm, event := range map[string]string{"shutdown": "listener.rearmed", "filter": "listener.filtered", "locked filter": "listener.rolled"} {
		t.Run(harm, func(t *testing.T) {
			t.Parallel()
			// A port of its own: one that the kernel chose would be given up.
			m := harness.Start(t, harness.Options{
				Args:    []string{"--policy", "none", "--workers", "2", "--worker-protocol", "listen-fds", "--ready-after", "300ms", "--canary-time", "10ms", "--stop-timeout", "100ms", "--drain-timeout", "100ms"},
				Listen:  []string{harness.Host() + ":8080"},
				Command: []string{"python3", "-c", brokenListener, harm}, Unready: true,
			})
			m.WaitReady()
			m.Wait(harness.Named(event))
			serves(t, m, load.Config{Total: 20, Judge: load.AnyOK})
		})
	}
}
