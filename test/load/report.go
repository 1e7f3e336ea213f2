package load

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Outcome is what became of one connection.
type Outcome uint8

// The outcomes. Everything between OK and Client is the server's fault.
const (
	OK        Outcome = iota
	Refused           // nobody listened, or the backlog of a unix socket was full
	Reset             // ended by a reset
	Empty             // ended without an answer, or with a part of it
	Timeout           // no answer, or no end, in time
	Wrong             // an answer to something else, or none at all
	Duplicate         // a second answer, or a connection that a worker counts twice
	Client            // this side ran out of ports or descriptors: no verdict
	outcomes
)

var outcomeNames = [outcomes]string{"ok", "refused", "reset", "empty", "timeout", "wrong", "duplicate", "client"}

func (o Outcome) String() string { return outcomeNames[o] }

// Result is one connection. Times are since the beginning of the run.
type Result struct {
	Seq     int
	URI     string
	Outcome Outcome
	Err     error
	Local   string // this side's address, "" if it did not get as far

	// Who answered, as far as the answer says; Slot is -1 if it does not.
	Slot       int
	PID        int
	Born       int64 // tells processes apart that had the same pid, 0 if the answer does not
	Generation int
	Connection uint64
	Remote     string

	Scheduled time.Duration // when it was to start; in a closed loop it is Started
	Started   time.Duration // connect was called then,
	Connected time.Duration // and had succeeded by then; 0: it had not
	Answered  time.Duration // the answer was complete
	Ended     time.Duration // the stream ended
}

// Latency counts from the moment that the connection was to start.
func (r *Result) Latency() time.Duration { return r.Answered - r.Scheduled }

// Report is the ledger of a run.
type Report struct {
	Results []Result // in order of Seq
	Elapsed time.Duration
	Began   time.Time // what the times of Results are since

	counts [outcomes]int
	sorted []time.Duration // latencies of those answered
}

func newReport(results []Result, elapsed time.Duration) *Report {
	r := &Report{Results: results, Elapsed: elapsed}
	slices.SortFunc(r.Results, func(a, b Result) int { return a.Seq - b.Seq })
	type served struct {
		pid  int
		born int64
		n    uint64
	}
	seen := make(map[served]int, len(results))
	for i := range r.Results {
		res := &r.Results[i]
		if res.Outcome == OK && res.PID > 0 && res.Connection > 0 {
			k := served{res.PID, res.Born, res.Connection}
			if first, ok := seen[k]; ok {
				res.Outcome = Duplicate
				res.Err = fmt.Errorf("process %d says connection %d, as it did to %d", res.PID, res.Connection, first)
			} else {
				seen[k] = res.Seq
			}
		}
		r.counts[res.Outcome]++
		if res.Outcome == OK {
			r.sorted = append(r.sorted, res.Latency())
		}
	}
	slices.Sort(r.sorted)
	return r
}

// Count returns how many connections ended so.
func (r *Report) Count(o Outcome) int { return r.counts[o] }

// Failed returns the connections that were not answered properly.
func (r *Report) Failed() []Result {
	var f []Result
	for i := range r.Results {
		if r.Results[i].Outcome != OK {
			f = append(f, r.Results[i])
		}
	}
	return f
}

// BySlot counts the answered connections of each slot.
func (r *Report) BySlot() map[int]int {
	n := make(map[int]int)
	for i := range r.Results {
		if res := &r.Results[i]; res.Outcome == OK {
			n[res.Slot]++
		}
	}
	return n
}

// ByPID counts the answered connections of each process.
func (r *Report) ByPID() map[int]int {
	n := make(map[int]int)
	for i := range r.Results {
		if res := &r.Results[i]; res.Outcome == OK {
			n[res.PID]++
		}
	}
	return n
}

// Spread is how far the slot that is the farthest from the mean is from it, as a
// part of it: 0.05 is 5 %. slots is how many there should be.
func (r *Report) Spread(slots int) float64 {
	mean := float64(r.counts[OK]) / float64(slots)
	if mean == 0 {
		return 0
	}
	by := r.BySlot()
	worst := 0.0
	for slot := range slots {
		d := float64(by[slot]) - mean
		worst = max(worst, d/mean, -d/mean)
	}
	return worst
}

// Percentile returns the latency that q, from 0 to 1, of the answered connections
// did not exceed; 0 if there are none.
func (r *Report) Percentile(q float64) time.Duration {
	if len(r.sorted) == 0 {
		return 0
	}
	i := int(q*float64(len(r.sorted))+0.999999) - 1
	return r.sorted[min(max(i, 0), len(r.sorted)-1)]
}

// String is the summary: a line, and one more for each of the first failures.
func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d connections in %.2fs (%.0f/s):", len(r.Results), r.Elapsed.Seconds(), float64(len(r.Results))/r.Elapsed.Seconds())
	for o, n := range r.counts {
		if n > 0 {
			fmt.Fprintf(&b, " %d %s", n, Outcome(o))
		}
	}
	fmt.Fprintf(&b, "; p50 %v p99 %v max %v;", r.Percentile(0.5), r.Percentile(0.99), r.Percentile(1))
	by := r.BySlot()
	for _, slot := range slices.Sorted(maps.Keys(by)) {
		fmt.Fprintf(&b, " [%d]=%d", slot, by[slot])
	}
	const shown = 10
	for i, f := range r.Failed() {
		if i == shown {
			fmt.Fprintf(&b, "\n  and more")
			break
		}
		fmt.Fprintf(&b, "\n  connection %d, %v to %v: %s: %v", f.Seq, f.Started, f.Ended, f.Outcome, f.Err)
	}
	return b.String()
}
