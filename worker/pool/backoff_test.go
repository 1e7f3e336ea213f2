package pool

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestBackoff(t *testing.T) {
	const none = 0.5 // no jitter
	run := func(b backoff, healthy ...bool) (got []time.Duration) {
		for _, h := range healthy {
			got = append(got, b.next(h, none))
		}
		return got
	}
	const s = time.Second
	tests := []struct {
		name    string
		b       backoff
		healthy []bool
		want    []time.Duration
	}{
		{"never healthy", backoff{min: s, max: 30 * s}, make([]bool, 7),
			[]time.Duration{s, 2 * s, 4 * s, 8 * s, 16 * s, 30 * s, 30 * s}},
		{"at once after health, then from the minimum", backoff{min: s, max: 30 * s},
			[]bool{false, false, true, false, false, true, true},
			[]time.Duration{s, 2 * s, 0, s, 2 * s, 0, 0}},
		{"constant", backoff{min: 10 * time.Millisecond, max: 10 * time.Millisecond}, make([]bool, 2),
			[]time.Duration{10 * time.Millisecond, 10 * time.Millisecond}},
		{"no overflow", backoff{min: 1 << 61, max: 1<<63 - 1}, make([]bool, 3),
			[]time.Duration{1 << 61, 1 << 62, 1<<63 - 1}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, run(tt.b, tt.healthy...)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestBackoffJitter(t *testing.T) {
	for jitter, want := range map[float64]time.Duration{0: 1800, 0.25: 1900, 0.5: 2000, 0.999999: 2200} {
		b := backoff{min: 1000 * time.Millisecond, max: time.Minute, failures: 1}
		if d := b.next(false, jitter).Round(time.Millisecond); d != want*time.Millisecond {
			t.Errorf("jitter %v: %v, want %vms", jitter, d, int(want))
		}
		b = backoff{min: time.Second, max: time.Second}
		if d := b.next(false, jitter); d != time.Second {
			t.Errorf("jitter %v: %v is not within the bounds", jitter, d)
		}
	}
}
