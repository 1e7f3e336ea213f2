//go:build unix

package main

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/rs/zerolog"

	"rrd/dispatcher"
	"rrd/metrics"
	"rrd/worker/pool"
)

// "ready" is said once, when of each slot its first start is over and one worker
// is ready: a slot that is broken must not keep back who waits for it.
func TestReadyIsSaidOnce(t *testing.T) {
	ready := func(slot int) func(*master) { return func(m *master) { m.settled(slot, true) } }
	failed := func(slot int) func(*master) { return func(m *master) { m.settled(slot, false) } }
	drains := func(m *master) { m.draining.Store(true) }
	for _, x := range []struct {
		name  string
		steps []func(*master)
		want  int // the number of ready workers that it tells; 0: not said
	}{
		{"all", []func(*master){ready(0), ready(1), ready(2), ready(1)}, 3},
		{"one is missing", []func(*master){ready(0), ready(1), ready(1)}, 0},
		{"one is broken", []func(*master){ready(0), failed(1), ready(2), failed(1)}, 2},
		{"one was ready and died", []func(*master){ready(0), failed(0), ready(1), ready(2)}, 3},
		{"none is ready", []func(*master){failed(0), failed(1), failed(2)}, 0},
		{"the last one is", []func(*master){failed(0), failed(1), ready(2)}, 1},
		{"stopped meanwhile", []func(*master){ready(0), drains, failed(1), failed(2)}, 0},
	} {
		var log bytes.Buffer
		m := &master{cfg: &config{Workers: 3, Policy: dispatcher.SchedRR}, log: zerolog.New(&log), wasReady: map[int]bool{}}
		for _, step := range x.steps {
			step(m)
		}
		var want string
		if x.want > 0 {
			want = fmt.Sprintf(`"event":"ready","workers":%d,`, x.want)
		}
		if got := log.String(); strings.Count(got, "\n") != min(x.want, 1) || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", x.name, got, want)
		}
	}
}

func TestWaysOut(t *testing.T) {
	listen := []dispatcher.ListenerConfig{{Name: "web"}}
	for _, x := range []struct {
		c    config
		want []string
	}{
		{config{Policy: dispatcher.SchedRR}, []string{"library", "--policy none", "Node"}},
		{config{Policy: dispatcher.SchedNone}, []string{"without --listen"}},
		{config{Policy: dispatcher.SchedReuseport, Listen: listen, WorkerProtocol: pool.ProtocolNative}, []string{"--worker-protocol rrd"}},
	} {
		got := (&master{cfg: &x.c}).waysOut()
		for _, word := range x.want {
			if !strings.Contains(got, word) {
				t.Errorf("%+v: %q does not say %q", x.c, got, word)
			}
		}
	}
}

func TestBindAdvice(t *testing.T) {
	for _, x := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("bind: %w", syscall.EADDRINUSE), ": stop whoever is there"},
		{syscall.EADDRNOTAVAIL, ": this machine has no such address"},
		{syscall.EACCES, ": ports below 1024"},
		{errors.New("odd"), ""},
	} {
		if got := bindAdvice(x.err); !strings.HasPrefix(got, x.want) || x.want == "" && got != "" {
			t.Errorf("%v: %q, want %q", x.err, got, x.want)
		}
	}
}

// Every limit is told with where it came from.
func TestBudgetErrorHasOrigins(t *testing.T) {
	c, _, err := testHost(nil).parseConfig(words("--queue-limit 5000 --listen :0"), []string{"RRD_WORKERS=3"})
	if err != nil {
		t.Fatal(err)
	}
	err = c.fit(1000)
	if err == nil {
		t.Fatal("5000 fit into 1000")
	}
	for _, part := range []string{"--queue-limit 5000 (from flag)", "--workers 3 (from RRD_WORKERS)", "--handoff-window 4 (from default)", "the limit is 1000"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not say %q", err, part)
		}
	}
}

// What the budget leaves is for the listeners that workers ask for, and a few always are.
func TestMaxAsked(t *testing.T) {
	c, _, err := testHost(nil).parseConfig(words("--queue-limit 100 --rescue-limit 0 --workers 2 --policy rr"), nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Listen = nil
	need := 100 + 2*2*(4+6) + 64
	for limit, want := range map[int]int{need: leastAsked, need + 100: 100, 1 << 30: mostAsked} {
		if n := c.maxAsked(limit); n != want {
			t.Errorf("limit %d: %d, want %d", limit, n, want)
		}
	}
}

// Two paths that differ in bytes that are not UTF-8 are two listeners in metrics and status.
func TestNamesStayDifferent(t *testing.T) {
	of := func(path string) metrics.Listener {
		return listenerCounts(&dispatcher.ListenerStats{ListenerInfo: dispatcher.ListenerInfo{Name: path, Address: path}})
	}
	a, b := of("/run/\xff.sock"), of("/run/\xfe.sock")
	if a.Name == b.Name || a.Address != `/run/\xff.sock` || !utf8.ValidString(a.Name+b.Name) {
		t.Errorf("%q and %q", a.Name, b.Name)
	}
}

func TestClaimErrorHasItsOrigin(t *testing.T) {
	c, _, err := testHost(nil).parseConfig(nil, []string{"RRD_LISTEN=fd:web"})
	if err != nil {
		t.Fatal(err)
	}
	err = c.claim(takeActivationFrom(nil, 1, 3))
	if got := fmt.Sprint(err); !strings.HasSuffix(got, "(from RRD_LISTEN)") {
		t.Error(got)
	}
}

// Who reads /status.json finds every reason, also before it has happened.
func TestCountsNameTheZeroes(t *testing.T) {
	got := counts([]uint64{0, 2, 0, 0, 0, 0}, dispatcher.DropReason.String)
	for _, reason := range metrics.DropReasons {
		if _, ok := got[reason]; !ok {
			t.Errorf("%s is missing: %v", reason, got)
		}
	}
	if got.Total() != 2 {
		t.Error(got)
	}
}
