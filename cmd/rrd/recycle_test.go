//go:build unix

package main

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"rrd/worker/pool"
)

func TestParseSize(t *testing.T) {
	for v, want := range map[string]uint64{
		"512MB": 512e6, "512MiB": 512 << 20, "1gb": 1e9, "2GiB": 2 << 30, "100 KB": 100e3, "64KiB": 64 << 10, "1TB": 1e12, "1TiB": 1 << 40,
	} {
		if got, err := parseSize(v); got != want || err != nil {
			t.Errorf("%s is %d: %v", v, got, err)
		}
	}
	for _, v := range []string{"", "MB", "-1MB", "1.5MB", "5", "5M", "5B", "0MB", "9999999999MB", "+1MB"} {
		if got, err := parseSize(v); err == nil {
			t.Errorf("%q is %d", v, got)
		}
	}
}

// workers makes candidates that are ready; f sets what matters of each.
func workers(n int, f func(i int, w *candidate)) (list []candidate) {
	for i := range n {
		w := candidate{id: uint64(i + 1), slot: i, ready: true, rss: func() (uint64, bool) { return 0, false }}
		f(i, &w)
		list = append(list, w)
	}
	return list
}

func TestWhoIsRecycled(t *testing.T) {
	middle := func() float64 { return 0.5 } // no jitter
	now := time.Now()
	for _, tt := range []struct {
		name string
		c    config
		of   func(i int, w *candidate)
		want string
	}{
		{"nobody is due", config{MaxPerWorker: 10, MaxAge: time.Hour, MaxRSS: 1e6}, func(i int, w *candidate) {
			w.acks, w.age, w.rss = 9, time.Hour-1, func() (uint64, bool) { return 999_999, true }
		}, "0 "},
		{"what is off is no limit", config{MaxAge: off}, func(i int, w *candidate) {
			w.acks, w.age, w.rss = 1<<40, 1e6*time.Hour, func() (uint64, bool) { return 1 << 50, true }
		}, "0 "},
		{"by connections", config{MaxPerWorker: 10, MaxAge: off}, func(i int, w *candidate) { w.acks = uint64(8 + i) },
			"2 it has taken 10 connections (--max-connections-per-worker 10)"},
		{"by age", config{MaxAge: time.Hour}, func(i int, w *candidate) { w.age = time.Duration(i) * time.Hour },
			"1 it is 1h0m0s old (--max-age 1h0m0s)"},
		{"by size", config{MaxAge: off, MaxRSS: 50e6}, func(i int, w *candidate) {
			w.rss = func() (uint64, bool) { return uint64(i) * 30e6, true }
		}, "2 it has 60 MB of memory (--max-rss 50 MB)"},
		{"a size that nobody tells", config{MaxAge: off, MaxRSS: 1}, func(int, *candidate) {}, "0 "},
		{"the first that was started", config{MaxAge: time.Second}, func(i int, w *candidate) { w.age, w.id = time.Hour, uint64(9-i) },
			"2 it is 1h0m0s old (--max-age 1s)"},
		{"only who is ready", config{MaxAge: time.Second}, func(i int, w *candidate) { w.age, w.ready = time.Hour, i == 1 },
			"1 it is 1h0m0s old (--max-age 1s)"},
	} {
		slot, reason := newRecycler(middle).next(now, &tt.c, workers(3, tt.of))
		if got := fmt.Sprintf("%d %s", slot, reason); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// Each process has a limit of its own, for as long as it lives.
func TestRecyclingIsJittered(t *testing.T) {
	chance := []float64{0, 0.25, 0.75, 0.9999}
	r := newRecycler(func() float64 { f := chance[0]; chance = chance[1:]; return f })
	c := &config{MaxPerWorker: 1000, MaxAge: off}
	now := time.Now()
	for _, tt := range []struct {
		acks uint64
		slot int
		due  bool
	}{{899, 0, false}, {900, 0, true}, {950, 0, true}} {
		slot, reason := r.next(now, c, workers(4, func(_ int, w *candidate) { w.acks = tt.acks }))
		if slot != tt.slot || (reason != "") != tt.due {
			t.Errorf("after %d connections: slot %d, %q", tt.acks, slot, reason)
		}
	}
	for i, limit := range []uint64{900, 950, 1050, 1100} {
		for _, acks := range []uint64{limit - 1, limit} {
			slot, reason := r.next(now, c, workers(4, func(j int, w *candidate) {
				if j == i {
					w.acks = acks
				}
			}))
			if due := reason != ""; due != (acks == limit) || due && slot != i {
				t.Errorf("worker %d after %d connections: slot %d, %q", i, acks, slot, reason)
			}
		}
	}
	if len(r.factor) != 4 {
		t.Errorf("%d are remembered", len(r.factor))
	}
	_, _ = r.next(now, c, nil)
	if len(r.factor) != 0 {
		t.Errorf("%d that are gone are remembered", len(r.factor))
	}
}

// A slot whose successor fails is left alone for longer and longer; being busy is no
// failure.
func TestRecyclingPausesAfterAFailure(t *testing.T) {
	r := newRecycler(func() float64 { return 0.5 })
	c := &config{MaxAge: time.Second, RespawnMin: time.Second, RespawnMax: 3 * time.Second}
	old := func() []candidate { return workers(1, func(_ int, w *candidate) { w.age = time.Hour }) }
	due := func(now time.Time) bool { _, reason := r.next(now, c, old()); return reason != "" }
	now := time.Now()
	r.done(now, c, 0, fmt.Errorf("roll: %w", pool.ErrBusy))
	if !due(now) {
		t.Error("busy is a failure")
	}
	for _, pause := range []time.Duration{1, 2, 3, 3} {
		r.done(now, c, 0, errors.New("it crashed"))
		now = now.Add(pause*time.Second - 1)
		if due(now) {
			t.Errorf("due before %ds are over", pause)
		}
		if now = now.Add(1); !due(now) {
			t.Errorf("not due after %ds", pause)
		}
	}
	r.done(now, c, 0, nil)
	if !due(now) {
		t.Error("it has succeeded, and is not due")
	}
}
