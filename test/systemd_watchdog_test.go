//go:build linux

package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/test/harness"
	"rrd/test/load"
)

const watchdog = 600 * time.Millisecond

func withWatchdog() harness.Options {
	return harness.Options{Args: []string{"--workers", "2"}, Env: []string{"WATCHDOG_USEC=" + strconv.FormatInt(watchdog.Microseconds(), 10)}}
}

// A stopped master does not feed its watchdog, and one that goes on does.
func TestSystemdWatchdogLapsesWhenStopped(t *testing.T) {
	t.Parallel()
	g := newManager(t)
	m := g.start(withWatchdog())
	_, at := g.wait(0, "a first sign of life", has("WATCHDOG=1"))
	_, _ = g.wait(at, "a second sign of life", has("WATCHDOG=1"))
	m.Kill(m.MasterPID(), syscall.SIGSTOP)
	before := g.count()
	span(2 * watchdog)
	if after := g.all()[before:]; len(after) > 0 {
		t.Errorf("stopped, it said %q", after)
	}
	m.Kill(m.MasterPID(), syscall.SIGCONT)
	g.wait(before, "a sign of life", has("WATCHDOG=1"))
}

func TestF41WatchdogLapsesWhenTheLoopIsStuck(t *testing.T) { t.Parallel(); wedged(t, form{}) }

// One thread stands still, the one of the dispatch loop. Everything else goes on, and
// the watchdog is not fed.
func wedged(t *testing.T, f form) {
	g := newManager(t)
	m := g.start(withWatchdog())
	_, at := g.wait(0, "a sign of life", has("WATCHDOG=1"))
	release := freezeLoop(t, m)
	before := g.count()
	began := time.Now()
	span(2 * watchdog)
	signs := slices.DeleteFunc(g.all()[before:], func(s string) bool { return s != "WATCHDOG=1" })
	if len(signs) > 1 { // one may have been on its way
		t.Errorf("with a loop that is stuck it said %q", g.all()[at:])
	}
	harness.Poll(t, "/-/healthy to be 503", func() error {
		if code, text, err := m.Get("/-/healthy"); code != 503 {
			return fmt.Errorf("%d %q %v", code, text, err)
		}
		return nil
	})
	_, _ = g.wait(before, "the status to tell", has("the dispatch loop does not answer"))
	f.note(t, "stuck for %v: %d signs of life", time.Since(began).Round(time.Millisecond), len(signs))
	release()
	_, at = g.wait(g.count(), "a sign of life", has("WATCHDOG=1"))
	g.wait(at, "another", has("WATCHDOG=1"))
	serves(t, m, load.Config{Clients: 4, Total: 20})
}

// freezeLoop stops the thread of the dispatch loop, by ptrace, until release.
func freezeLoop(t *testing.T, m *harness.Master) (release func()) {
	t.Helper()
	tid := loopThread(t, m)
	frozen, thaw, thawed := make(chan error), make(chan struct{}), make(chan error)
	go ptraceThread(tid, frozen, thaw, thawed) // waited for by release
	if err := <-frozen; err != nil {
		if errors.Is(err, unix.EPERM) {
			lacks(t, "ptrace", err)
		}
		t.Fatal(err)
	}
	var once sync.Once
	release = func() {
		once.Do(func() {
			close(thaw)
			if err := <-thawed; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(release)
	return release
}

// loopThread finds the thread that waits for the epoll descriptor which the listener is
// in. The runtime's own poller, whose thread waits likewise, has it not.
func loopThread(t *testing.T, m *harness.Master) (tid int) {
	t.Helper()
	inode := listenInode(t, m.Addr())
	dir := fmt.Sprintf("/proc/%d/", m.MasterPID())
	fds, err := harness.FDs(m.MasterPID())
	if err != nil {
		t.Fatal(err)
	}
	listener, poll := -1, ""
	for fd, target := range fds {
		if target == "socket:["+inode+"]" {
			listener = fd
		}
	}
	for fd, target := range fds {
		if info, err := os.ReadFile(dir + "fdinfo/" + strconv.Itoa(fd)); err == nil && target == "anon_inode:[eventpoll]" &&
			regexp.MustCompile(fmt.Sprintf(`(?m)^tfd: +%d `, listener)).Match(info) {
			poll = fmt.Sprintf("%#x", fd)
		}
	}
	harness.Poll(t, "a thread that waits for "+poll, func() error {
		names, _ := filepath.Glob(dir + "task/[0-9]*/syscall")
		for _, name := range names {
			text, err := os.ReadFile(name)
			if f := strings.Fields(string(text)); err == nil && len(f) > 2 && f[1] == poll && slices.Contains(epollWaits, f[0]) {
				tid, err = strconv.Atoi(strings.Split(name, "/")[4])
				return err
			}
		}
		return errors.New("there is none")
	})
	return tid
}

var epollWaits = []string{strconv.Itoa(unix.SYS_EPOLL_PWAIT), strconv.Itoa(unix.SYS_EPOLL_PWAIT2)}
