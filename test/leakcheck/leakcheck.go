// Package leakcheck makes a test fail that leaves something behind: a file
// descriptor, a goroutine, or a child process that is still running or was
// never waited for.
//
// A package that opens any of these checks itself once, at its end:
//
//	func TestMain(m *testing.M) { leakcheck.Main(m) }
//
// and a single test, to learn which one it was, starts with
//
//	leakcheck.Check(t)
//
// # What counts
//
// Only what is new: the state at the beginning is taken as given, so whatever
// the caller's shell or an earlier test left open is not blamed on this one. A
// descriptor is the same if its number and what it refers to are both the same.
//
// # What does not
//
// The runtime opens its poller (epoll and an eventfd, or kqueue) with the first
// pollable file and keeps it; both entry points make it do so before they look.
// The goroutine that os/signal starts with the first Notify never ends and is
// known by name. Nothing else is excused: idle connections of http.DefaultClient
// and unclosed response bodies are leaks, close them.
//
// Children are looked for in /proc, so only on Linux; descriptors and goroutines
// everywhere.
//
// # Waiting
//
// A goroutine that was told to end, or a socket being closed by one, needs a
// moment. The check looks again until nothing is left or Patience is over, so a
// clean test pays nothing and only a leaking one waits.
package leakcheck

import (
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// Patience is how long a check waits for what is about to go away by itself.
// Long, because a race build on a busy machine is slow and because only a
// failing check waits for all of it.
const Patience = 10 * time.Second

// Main runs the tests of a package and ends the process: with their exit code,
// or with 1 and a description on stderr if they passed but left something
// behind. After failed tests it does not look: a test that stopped halfway
// leaves things open, and its own message is the one to read.
//
// A test binary that plays other parts as well (a worker, a helper) decides that
// before it calls Main. The cleanups run after the tests, however they ended.
func Main(m *testing.M, cleanups ...func()) {
	os.Exit(run(func() int {
		code := m.Run()
		for _, clean := range cleanups {
			clean()
		}
		return code
	}, os.Stderr, Patience))
}

func run(tests func() int, stderr io.Writer, patience time.Duration) int {
	before := take()
	if code := tests(); code != 0 {
		return code
	}
	if left := before.wait(patience); len(left) > 0 {
		fmt.Fprintf(stderr, "leakcheck: the package's tests left %d behind:\n%s", len(left), list(left))
		return 1
	}
	return 0
}

// Check makes t fail if at its end, after every later t.Cleanup, something is
// there that was not there at this call. Call it first, outside of any synctest
// bubble, and not in a parallel test: what the others have open just then would
// be taken for this test's.
func Check(t testing.TB) {
	t.Helper()
	check(t, Patience)
}

func check(t testing.TB, patience time.Duration) {
	t.Helper()
	before := take()
	t.Cleanup(func() {
		t.Helper()
		if t.Failed() || t.Skipped() {
			return
		}
		if left := before.wait(patience); len(left) > 0 {
			t.Errorf("leakcheck: the test left %d behind:\n%s", len(left), list(left))
		}
	})
}

// snapshot is what a process has at one moment, each thing under a key that does
// not return: what two snapshots both hold is the same thing.
type snapshot struct {
	fds        map[fdKey]string
	goroutines map[string]string
	children   map[int]string
}

// fdKey names one descriptor. Numbers are used again at once, so what the
// number refers to belongs to the key.
type fdKey struct {
	fd     int
	target string
}

func take() snapshot {
	primeRuntime()
	return look()
}

func look() snapshot {
	return snapshot{fds: openFDs(), goroutines: goroutines(), children: children()}
}

// primeRuntime makes the runtime open the descriptors of its poller now. It does
// so with the first file that can be polled, a pipe for one, and never closes
// them.
func primeRuntime() {
	r, w, err := os.Pipe()
	if err != nil {
		return // Nothing can be opened now; the tests will say so better.
	}
	_ = r.Close()
	_ = w.Close()
}

// wait looks until nothing new is left or patience is over, and describes what
// was there at the last look.
func (before snapshot) wait(patience time.Duration) []string {
	return poll(patience, func() []string { return before.missingFrom(look()) })
}

// poll calls find until it finds nothing or patience is over, ever more rarely,
// and returns the last finding.
func poll(patience time.Duration, find func() []string) []string {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		left := find()
		if len(left) == 0 {
			return nil
		}
		select {
		case <-deadline.C:
			return left
		case <-time.After(pause):
		}
	}
}

// missingFrom describes what after has and before had not: descriptors, then
// children, then goroutines.
func (before snapshot) missingFrom(after snapshot) []string {
	var left []string
	for _, k := range slices.SortedFunc(maps.Keys(after.fds), func(a, b fdKey) int { return a.fd - b.fd }) {
		if _, ok := before.fds[k]; !ok {
			left = append(left, fmt.Sprintf("descriptor %d: %s", k.fd, after.fds[k]))
		}
	}
	for _, pid := range slices.Sorted(maps.Keys(after.children)) {
		if _, ok := before.children[pid]; !ok {
			left = append(left, fmt.Sprintf("child process %d: %s", pid, after.children[pid]))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(after.goroutines)) {
		if _, ok := before.goroutines[id]; !ok {
			left = append(left, after.goroutines[id])
		}
	}
	return left
}

func list(left []string) string {
	var b strings.Builder
	for _, l := range left {
		b.WriteString("  " + strings.ReplaceAll(l, "\n", "\n  ") + "\n")
	}
	return b.String()
}
