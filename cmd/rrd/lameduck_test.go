//go:build unix

package main

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"rrd/cmd/internal/control"
)

// duckOf is a master that can only leave rotation.
func duckOf(wait time.Duration) *master {
	return &master{cfg: &config{LameDuck: wait}, duck: newLameDuck()}
}

func TestLameDuckWaits(t *testing.T) {
	for _, tt := range []struct {
		name       string
		wait, took time.Duration
		do         func(m *master, cancel func()) // after 1 s
		drains     bool
	}{
		{"off", off, 0, nil, true},
		{"until it is over", 5 * time.Second, 5 * time.Second, nil, true},
		{"until it is called back", 5 * time.Second, time.Second, func(m *master, _ func()) {
			if err := m.Undrain(); err != nil {
				panic(err)
			}
		}, false},
		{"until it is cut short", 5 * time.Second, time.Second, func(_ *master, cancel func()) { cancel() }, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			m := duckOf(tt.wait)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			began := time.Now()
			since, backC, first := m.leave(toStop)
			if !first || !m.draining.Load() || !m.stopping.Load() {
				t.Errorf("%s: first %v", tt.name, first)
			}
			if tt.do != nil {
				timer := time.AfterFunc(time.Second, func() { tt.do(m, cancel) })
				defer timer.Stop()
			}
			drains, begins := m.waitLame(ctx, since, backC)
			if begins != drains {
				t.Errorf("%s: drains %v, for the first time %v", tt.name, drains, begins)
			}
			if took := time.Since(began); drains != tt.drains || took != tt.took || m.duck.drains() != drains {
				t.Errorf("%s: after %v drains %v", tt.name, took, drains)
			}
		})
	}
}

// Who asks later waits for what is left, and somebody who has been a lame duck for long
// enough for nothing.
func TestLameDuckCountsFromTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := duckOf(5 * time.Second)
		if _, _, first := m.leave(toServeOn); !first || m.stopping.Load() {
			t.Error("WINCH stops")
		}
		time.Sleep(3 * time.Second)
		began := time.Now()
		since, backC, first := m.leave(toStop)
		if !first {
			t.Error("a stop is not the first stop")
		}
		// A lame duck since WINCH, and the first that drains all the same.
		if drains, begins := m.waitLame(t.Context(), since, backC); !drains || !begins || time.Since(began) != 2*time.Second {
			t.Errorf("drains %v, for the first time %v, after %v", drains, begins, time.Since(began))
		}
		if drains, begins := m.waitLame(t.Context(), since, backC); !drains || begins {
			t.Errorf("again: drains %v, for the first time %v", drains, begins)
		}
		if _, _, first := m.leave(toStop); first {
			t.Error("the second stop is the first")
		}
	})
}

// A drained master that was upgraded in place is a lame duck since it was drained. No
// other master is one.
func TestLameDuckRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before := duckOf(5 * time.Second)
		before.leave(toServeOn)
		time.Sleep(3 * time.Second)
		m := duckOf(5 * time.Second)
		m.stayOut(before.duck.age())
		if !m.draining.Load() || m.stopping.Load() || !m.duck.lame() {
			t.Error("it is in rotation")
		}
		began := time.Now()
		since, backC, _ := m.leave(toStop)
		if drains, _ := m.waitLame(t.Context(), since, backC); !drains || time.Since(began) != 2*time.Second {
			t.Errorf("drains %v after %v", drains, time.Since(began))
		}
		m = duckOf(5 * time.Second)
		m.stayOut(duckOf(0).duck.age())
		if m.draining.Load() || m.duck.lame() {
			t.Error("it is out of rotation")
		}
	})
}

// Only a lame duck without an end may be upgraded in place: no other state crosses.
func TestUpgradeOfALameDuck(t *testing.T) {
	for why, says := range map[departure]string{toServeOn: "", toClose: "closes its listeners", toStop: "is being stopped"} {
		m := duckOf(time.Hour)
		m.leave(why)
		if err := m.endsSoon(); (err == nil) != (says == "") || err != nil && !strings.Contains(err.Error(), says) {
			t.Errorf("%v: %v, want %q", why, err, says)
		}
	}
}

func TestUndrain(t *testing.T) {
	refused := func(t *testing.T, m *master, says string) {
		t.Helper()
		err := m.Undrain()
		var e *control.Error
		if !errors.As(err, &e) || e.Code != control.CodeRefused || !strings.Contains(e.Text, says) {
			t.Errorf("%v, want %q", err, says)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		m := duckOf(5 * time.Second)
		refused(t, m, "not draining")
		for range 2 { // any number of times
			_, backC, first := m.leave(toStop)
			if err := m.Undrain(); err != nil || !first || m.draining.Load() || m.stopping.Load() {
				t.Errorf("%v, first %v", err, first)
			}
			if _, open := <-backC; open {
				t.Error("nobody was called back")
			}
			refused(t, m, "not draining")
		}
		// Called back between its wish and its turn.
		since, backC, _ := m.leave(toStop)
		if err := m.Undrain(); err != nil {
			t.Error(err)
		}
		if drains, _ := m.waitLame(t.Context(), since, backC); drains {
			t.Error("it drains")
		}
		m.leave(toStop)
		m.duck.noWayBack()
		refused(t, m, "only a restart")
	})
}
