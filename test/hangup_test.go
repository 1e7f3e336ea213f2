//go:build linux

package test

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/test/harness"
)

// terminal opens a pseudo terminal. Closing the master hangs it up.
func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = slave.Close() })
	return master, slave
}

// startedOrUpgraded runs test with an rrd that has just started, and with one that has also
// been upgraded in place.
func startedOrUpgraded(t *testing.T, options func(*testing.T) harness.Options, test func(*testing.T, *harness.Master)) {
	t.Parallel()
	t.Run("started", func(t *testing.T) { test(t, harness.Start(t, options(t))) })
	t.Run("upgraded", func(t *testing.T) { test(t, startUpgradable(t, options(t)).Master) })
}

// HUP reloads while the terminal that rrd was started on is there, and stops rrd when it has
// hung up.
func TestHangupOfTheTerminal(t *testing.T) {
	var pty, tty *os.File
	startedOrUpgraded(t, func(t *testing.T) harness.Options {
		pty, tty = terminal(t)
		return harness.Options{Args: []string{"--workers", "1"}, Terminal: tty}
	}, func(t *testing.T, m *harness.Master) {
		m.Signal(syscall.SIGHUP)
		m.Wait(harness.Named("reload.done"))
		_, _ = tty.Close(), pty.Close()
		if e := m.Wait(harness.Named("drain.start")); e.Str("signal") != "hangup" {
			t.Error(e.Line)
		}
		if code := m.WaitExit(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
}

// A HUP that was ignored at the start stays ignored.
func TestHangupIgnoredAtTheStart(t *testing.T) {
	startedOrUpgraded(t, func(*testing.T) harness.Options {
		return harness.Options{Args: []string{"--workers", "1"}, Wrap: []string{"/bin/sh", "-c", `trap "" HUP; exec "$@"`, "sh"}}
	}, func(t *testing.T, m *harness.Master) {
		m.Signal(syscall.SIGHUP)
		m.Wait(harness.Named("signal.ignored"))
		if e := m.Events(harness.Named("reload.start")); len(e) > 0 {
			t.Error(e[0].Line)
		}
	})
}
