//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// runHooks returns a runner, and what it logs.
func runHooks(environ ...string) (*hookRunner, *lockedBuffer) {
	log := &lockedBuffer{}
	return newHookRunner(zerolog.New(log), environ), log
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// field returns a field of every record of an event.
func (l *lockedBuffer) field(t *testing.T, event, name string) (values []string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		var r map[string]any
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		if s, ok := r[name].(string); ok && r["event"] == event {
			values = append(values, s)
		}
	}
	return values
}

func TestHookEnvironment(t *testing.T) {
	r, log := runHooks("PATH="+os.Getenv("PATH"), "HOME=/h", "RRD_WORKERS=4", "LISTEN_FDS=1", "NOTIFY_SOCKET=/n", "WATCHDOG_USEC=1", "RRD_SLOT=9")
	h := hookRun{hook: "x", command: "env | grep -v -e ^PATH= -e ^PWD= -e ^_= -e ^SHLVL= -e ^OLDPWD= | sort", timeout: off, worker: 3, facts: []string{"RRD_SLOT=3"}}
	if err := r.run(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	want := []string{"HOME=/h", "RRD_HOOK=x", "RRD_PID=" + strconv.Itoa(os.Getpid()), "RRD_SLOT=3"}
	if got := log.field(t, "hook.output", "line"); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestHookOutputIsBounded(t *testing.T) {
	r, log := runHooks()
	h := hookRun{hook: "x", command: "head -c 10000 /dev/zero | tr '\\0' a; echo; i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); done; printf end", timeout: off, worker: -1}
	if err := r.run(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	got := log.field(t, "hook.output", "line")
	if len(got) != maxHookLines || len(got[0]) != maxHookLine || got[1] != "0" {
		t.Errorf("%d lines, the first of %d bytes: %.50q", len(got), len(got[0]), got)
	}
}

func TestHookFailures(t *testing.T) {
	for _, tt := range []struct{ command, says string }{
		{"exit 3", "hook x: exit status 3"},
		{"echo one; echo two words >&2; exit 3", "hook x: exit status 3: two words"},
		{"printf 'no newline'; false", "hook x: exit status 1: no newline"},
		{"kill -TERM $$", "hook x: signal: terminated"},
		{"sleep 1000", "hook x: it was killed after --hook-timeout 100ms"},
	} {
		r, log := runHooks("PATH=" + os.Getenv("PATH"))
		timeout := 100 * time.Millisecond
		if !strings.Contains(tt.says, "timeout") {
			timeout = off
		}
		err := r.run(t.Context(), hookRun{hook: "x", command: tt.command, timeout: timeout, worker: -1})
		said := log.field(t, "hook.failed", "error")
		if err == nil || err.Error() != tt.says || !slices.Equal(said, []string{tt.says}) {
			t.Errorf("%s: %v, logged %q, want %q", tt.command, err, said, tt.says)
		}
	}
}

// The end of the command is what counts: what it leaves behind lives on.
func TestHookThatLeavesAProcess(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	r, log := runHooks("PATH=" + os.Getenv("PATH"))
	err := r.run(t.Context(), hookRun{hook: "x", command: "read x < " + fifo + " & exit 0", timeout: off, worker: -1})
	if said := log.field(t, "hook.failed", "error"); err != nil || len(said) > 0 {
		t.Errorf("%v %q", err, said)
	}
	f, err := os.OpenFile(fifo, os.O_WRONLY, 0) // waits for whom it left to read
	if err != nil {
		t.Fatal(err)
	}
	f.Close() // which ends it
}

// The group is killed, not just the shell: whoever is in it holds a FIFO open.
func TestHookIsKilledWithItsGroup(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	r, _ := runHooks("PATH=" + os.Getenv("PATH"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	h := hookRun{hook: "x", command: "exec 3>" + fifo + "; sleep 1000 & wait", timeout: off, worker: -1}
	go func() { ended <- r.run(ctx, h) }() // waited for below
	f, err := os.Open(fifo)                // waits for the hook
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cancel()
	if _, err := io.ReadAll(f); err != nil { // to the end, when nobody has it any more
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Hooks that nobody waits for run in order, and those that are left at the end, too.
func TestHooksRunInOrder(t *testing.T) {
	r, log := runHooks("PATH=" + os.Getenv("PATH"))
	for i := range 5 {
		r.tell(hookRun{hook: "x", command: "echo " + strconv.Itoa(i), timeout: off, worker: i})
	}
	r.close()
	r.serve(t.Context())
	if got := log.field(t, "hook.output", "line"); !slices.Equal(got, []string{"0", "1", "2", "3", "4"}) {
		t.Errorf("%q", got)
	}
	r.tell(hookRun{hook: "x", command: "echo late", timeout: off, worker: -1})
	if got := log.field(t, "hook.failed", "error"); len(got) != 1 || !strings.Contains(got[0], "left out") {
		t.Errorf("%q", got)
	}
}

func TestHooksThatWaitAreBounded(t *testing.T) {
	r, log := runHooks()
	for range maxHooksWaiting + 3 {
		r.tell(hookRun{hook: "x", command: "true", timeout: off, worker: -1})
	}
	if got := log.field(t, "hook.failed", "error"); len(got) != 3 {
		t.Errorf("%q", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.serve(ctx) // ends at once
}
