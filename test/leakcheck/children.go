package leakcheck

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// NoChildren makes t fail if this process still has a child after Patience,
// running or a zombie. It is for the middle of a test, after a stop: at the end
// Check and Main look by themselves.
func NoChildren(t testing.TB) {
	t.Helper()
	noChildren(t, Patience)
}

func noChildren(t testing.TB, patience time.Duration) {
	t.Helper()
	left := poll(patience, func() []string { return sorted("child process", children()) })
	if len(left) > 0 {
		t.Errorf("leakcheck: %d children left:\n%s", len(left), list(left))
	}
}

// NoProcess makes t fail if after Patience any process that this user may look
// at, child or not, has the variable env, written NAME=value, in the environment
// it was started with. A test that gives each run a value of its own finds with
// it also the grandchildren, which belong to no one here once their parent is
// dead. Only Linux can tell; elsewhere it finds nothing.
func NoProcess(t testing.TB, env string) {
	t.Helper()
	noProcess(t, env, Patience)
}

func noProcess(t testing.TB, env string, patience time.Duration) {
	t.Helper()
	if name, _, ok := strings.Cut(env, "="); !ok || name == "" {
		t.Errorf("leakcheck: variable %q: write it as NAME=value", env)
		return
	}
	left := poll(patience, func() []string { return sorted("process", carriers(env)) })
	if len(left) > 0 {
		t.Errorf("leakcheck: %d processes with %s left:\n%s", len(left), env, list(left))
	}
}

func sorted(what string, found map[int]string) []string {
	left := make([]string, 0, len(found))
	for _, pid := range slices.Sorted(maps.Keys(found)) {
		left = append(left, fmt.Sprintf("%s %d: %s", what, pid, found[pid]))
	}
	return left
}
