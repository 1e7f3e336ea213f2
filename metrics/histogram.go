package metrics

import (
	"sort"
	"sync"
	"time"
)

// DurationBounds are the upper bounds, in seconds, of the buckets of the
// dispatch, queue wait and ack histograms: 10 us to 10 s in 1-2.5-5 steps.
var DurationBounds = []float64{
	10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6,
	1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3,
	1, 2.5, 5, 10,
}

// StartBounds are those of the worker start histogram: 5 ms to 60 s, with a
// bound at the default start timeout.
var StartBounds = []float64{5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1, 2.5, 10, 30, 60}

// Histogram is a copy of bucket counts. Counts[i] is how many observations were
// at most bounds[i] and more than the bound before; one count more than there
// are bounds holds the rest. Counts are not cumulative. No Counts: no such
// histogram.
type Histogram struct {
	Counts []uint64 `json:"counts,omitempty"`
	Sum    float64  `json:"sum_seconds"`
}

// cumulative turns counts into what Prometheus wants. Missing trailing counts
// are zero; surplus ones go to the last bucket, which is the total.
func (h Histogram) cumulative(bounds []float64) (total uint64, buckets map[float64]uint64) {
	buckets = make(map[float64]uint64, len(bounds))
	for i, bound := range bounds {
		if i < len(h.Counts) {
			total += h.Counts[i]
		}
		buckets[bound] = total
	}
	for i := len(bounds); i < len(h.Counts); i++ {
		total += h.Counts[i]
	}
	return total, buckets
}

// Recorder collects durations into a Histogram, for events that are rare enough
// to take a lock for. It may be used by several goroutines.
type Recorder struct {
	bounds []float64

	mu     sync.Mutex
	counts []uint64
	sum    float64
}

// NewRecorder returns a Recorder over bounds, which ascend and are in seconds.
func NewRecorder(bounds []float64) *Recorder {
	return &Recorder{bounds: bounds, counts: make([]uint64, len(bounds)+1)}
}

// Observe counts d once. A negative d counts as 0.
func (r *Recorder) Observe(d time.Duration) {
	s := max(d, 0).Seconds()
	i := sort.SearchFloat64s(r.bounds, s) // the first bound that is not below s
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts[i]++
	r.sum += s
}

// Histogram returns a copy of what was observed.
func (r *Recorder) Histogram() Histogram {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Histogram{Counts: append([]uint64(nil), r.counts...), Sum: r.sum}
}
