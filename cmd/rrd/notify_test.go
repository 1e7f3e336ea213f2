//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"
)

// manager is a service manager, and a master for it to hear of. It lives in a synctest
// bubble.
type manager struct {
	*notifier
	t     *testing.T
	began time.Time
	log   bytes.Buffer
	stop  func()

	mu    sync.Mutex
	heard []string
	err   error  // of sending
	line  string // of the master
	ready int
	stuck bool // its loop
}

func newManager(t *testing.T, watchdog time.Duration) *manager {
	t.Helper()
	m := &manager{t: t, began: time.Now()}
	m.notifier = newNotifier(zerolog.New(&m.log), m.hear, watchdog, func() string { return "MONOTONIC_USEC=1\n" })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go m.run(ctx, done) // waited for by stop
	m.stop = func() { cancel(); <-done }
	synctest.Wait()
	return m
}

func (m *manager) run(ctx context.Context, done chan<- struct{}) {
	m.watch(ctx, health{
		turns: func(ctx context.Context) error {
			m.mu.Lock()
			stuck := m.stuck
			m.mu.Unlock()
			if stuck {
				<-ctx.Done()
			}
			return ctx.Err()
		},
		line: func(context.Context) (string, int) {
			m.mu.Lock()
			defer m.mu.Unlock()
			return m.line, m.ready
		},
	})
	close(done)
}

func (m *manager) hear(x notice) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	text := strings.ReplaceAll(x.text, "\n", " ")
	if x.file != nil {
		text += " +fd"
	}
	if m.err == nil {
		m.heard = append(m.heard, fmt.Sprintf("%v %s", time.Since(m.began), text))
	}
	return m.err
}

func (m *manager) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

func (m *manager) text() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.line
}

// pass lets time pass, and everything that happens in it.
func (m *manager) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// want compares what was heard since the last call.
func (m *manager) want(lines ...string) {
	m.t.Helper()
	synctest.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	if diff := cmp.Diff(lines, m.heard); diff != "" {
		m.t.Errorf("(-want +got):\n%s", diff)
	}
	m.heard = nil
}

func TestNotifyStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, 0)
		defer m.stop()
		m.set(func() { m.line = "0/2" })
		m.pass(1500 * time.Millisecond)
		m.want("1s STATUS=0/2")
		// Before any worker is ready a reload is no news: it would end with READY=1.
		m.reloading(m.text)()
		m.want()
		m.set(func() { m.line, m.ready = "1/2", 1 })
		m.becameReady(m.text)
		m.becameReady(m.text)
		m.want("1.5s READY=1 STATUS=1/2")
		m.set(func() { m.line, m.ready = "2/2", 2 })
		m.pass(200 * time.Millisecond)
		m.want()
		m.pass(5 * time.Second)
		m.want("2s STATUS=2/2")

		done := m.reloading(m.text)
		m.want("6.7s RELOADING=1 MONOTONIC_USEC=1 STATUS=reloading")
		m.set(func() { m.line = "reload failed: no; 2/2" })
		done()
		m.want("6.7s READY=1 STATUS=reload failed: no; 2/2")
		m.pass(5 * time.Second)
		m.want()

		done = m.reloading(m.text)
		m.pass(11 * time.Second)
		m.want("11.7s RELOADING=1 MONOTONIC_USEC=1 STATUS=reloading", "12s STATUS=reload failed: no; 2/2", "17s EXTEND_TIMEOUT_USEC=15000000", "22s EXTEND_TIMEOUT_USEC=15000000")
		done()
		m.want("22.7s READY=1 STATUS=reload failed: no; 2/2")

		m.stops()
		m.stops()
		m.becameReady(m.text)
		m.reloading(m.text)()
		m.want("22.7s STOPPING=1 STATUS=draining", "22.7s EXTEND_TIMEOUT_USEC=15000000")
	})
}

// One that was made ready already, as after an upgrade, says so by itself.
func TestNotifyReadyWithoutAnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, 0)
		defer m.stop()
		m.set(func() { m.line, m.ready = "2/2", 2 })
		m.pass(3 * time.Second)
		m.want("1s READY=1 STATUS=2/2")
	})
}

func TestNotifyExtendsWhileItLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, 0)
		defer m.stop()
		m.leaving()
		m.pass(11 * time.Second)
		more := "EXTEND_TIMEOUT_USEC=15000000"
		m.want("0s "+more, "5s "+more, "10s "+more)
		m.staying()
		m.pass(time.Minute)
		m.want()
	})
}

func TestNotifyFeedsTheWatchdog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, 4*time.Second)
		defer m.stop()
		m.pass(5 * time.Second)
		m.want("2s WATCHDOG=1", "4s WATCHDOG=1")
		m.set(func() { m.stuck = true })
		m.pass(time.Minute)
		m.want()
		m.set(func() { m.stuck = false })
		m.pass(10 * time.Second)
		m.mu.Lock()
		n := len(m.heard)
		m.mu.Unlock()
		if n < 3 {
			t.Errorf("fed %d times in 10s", n)
		}
	})
}

func TestNotifyPassesDescriptorsOnAndClosesThem(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	late, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, 0)
		m.say(notice{"FDSTORE=1\nFDNAME=web", f})
		m.want("0s FDSTORE=1 FDNAME=web +fd")
		m.stop()
		m.say(notice{"FDSTORE=1\nFDNAME=late", late})
		m.want()
	})
	if f.Close() == nil || late.Close() == nil {
		t.Error("a duplicate is still open")
	}
}

// A service manager that cannot be told anything is spoken of once, holds nobody up, and
// not the end either.
func TestNotifyFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, 0)
		m.set(func() { m.err = errors.New("nobody there") })
		for i := range 3 {
			m.set(func() { m.line = fmt.Sprint(i) })
			m.pass(time.Second)
		}
		if n := strings.Count(m.log.String(), `"event":"systemd.failed","error":"nobody there"`); n != 1 {
			t.Errorf("told %d times:\n%s", n, m.log.String())
		}
		m.set(func() { m.err = nil })
		m.pass(time.Second)
		m.say(notice{text: "X=1"})
		m.want("4s X=1")
		m.set(func() { m.err = os.ErrDeadlineExceeded })
		for range 2 * maxNotices {
			m.say(notice{text: "X=2"})
		}
		m.stop()
	})
}

// Without a service manager everything is as it was.
func TestNotifyNobody(t *testing.T) {
	var n *notifier
	n.say(notice{text: "X=1"})
	n.becameReady(func() string { t.Error("asked"); return "" })
	n.reloading(nil)()
	n.leaving()
	n.staying()
	n.stops()
	n.watch(t.Context(), health{})
}

func TestStoreName(t *testing.T) {
	for name, want := range map[string]string{
		"web": "web", "[::1]:80": "[__1]_80", "unix:/run/a b": "unix_/run/a_b", "ü\n": "__",
		strings.Repeat("x", 300): strings.Repeat("x", 255),
	} {
		if got := storeName(name); got != want {
			t.Errorf("%q is %q, want %q", name, got, want)
		}
	}
}

func TestShortened(t *testing.T) {
	for _, tt := range []struct{ s, want string }{{"short", "short"}, {"1234567890", "1234567890"}, {"12345678901", "1234567..."}, {"123456ü8901", "123456..."}} {
		if got := shortened(tt.s, 10); got != tt.want {
			t.Errorf("%q is %q, want %q", tt.s, got, tt.want)
		}
	}
}
