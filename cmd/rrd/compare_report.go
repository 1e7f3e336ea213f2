//go:build unix

package main

import (
	"encoding/json"
	"io"
	"runtime"
	"slices"
	"time"
)

// compareReport is rrd compare -o json. docs/operation.md names its fields; times
// are in seconds.
type compareReport struct {
	Version string    `json:"version"`
	Kernel  string    `json:"kernel"`
	CPUs    int       `json:"cpus"`
	Began   time.Time `json:"began"`
	Workers int       `json:"workers"`
	Rate    int       `json:"rate"`
	Clients int       `json:"clients"`
	Seconds float64   `json:"seconds"`
	Rounds  int       `json:"rounds"`
	// Which worker was slow in the phases that have one, and how.
	SlowWorker int     `json:"slow_worker"`
	PauseFor   float64 `json:"pause_s"`
	PauseEvery float64 `json:"pause_every_s"`

	Phases  []phaseReport `json:"phases"`
	LeftOut []leftOut     `json:"left_out"`
}

type phaseReport struct {
	Phase    string         `json:"phase"`
	Policies []policyReport `json:"policies"`
}

// policyReport is one policy in one phase.
type policyReport struct {
	Policy      string  `json:"policy"`
	Connections int     `json:"connections"` // answered
	Failed      int     `json:"failed"`
	Failure     string  `json:"failure,omitempty"` // the first
	PerSecond   float64 `json:"connections_per_second"`
	P50         float64 `json:"p50_s"`
	P99         float64 `json:"p99_s"`
	// P999 is null of fewer than compareTail connections.
	P999     *float64 `json:"p999_s"`
	Spread   int      `json:"spread"`
	ByWorker []int    `json:"by_worker"`
}

// compareTail is how many connections a p99.9 takes: of fewer it is the worst one.
const compareTail = 1000

func newCompareReport(c *compareConfig, left []leftOut) *compareReport {
	if left == nil {
		left = []leftOut{}
	}
	return &compareReport{
		Version: buildInfo().Version, Kernel: kernelRelease(), CPUs: runtime.NumCPU(), Began: time.Now().UTC().Truncate(time.Second),
		Workers: c.workers, Rate: c.rate, Clients: compareClients, Seconds: c.duration.Seconds(),
		SlowWorker: slowWorker, PauseFor: pauseFor.Seconds(), PauseEvery: pauseEvery.Seconds(),
		LeftOut: left,
	}
}

// add enters a phase; tallies are in the order of masters.
func (r *compareReport) add(p comparePhase, masters []*comparedMaster, tallies []*tally) {
	phase := phaseReport{Phase: p.name}
	for i, m := range masters {
		phase.Policies = append(phase.Policies, newPolicyReport(string(m.policy), tallies[i]))
	}
	r.Phases = append(r.Phases, phase)
}

func newPolicyReport(policy string, t *tally) policyReport {
	slices.Sort(t.latencies)
	p := policyReport{
		Policy: policy, Connections: len(t.latencies), Failed: t.failed, PerSecond: float64(t.inTime) / t.seconds,
		P50: percentile(t.latencies, 0.5).Seconds(), P99: percentile(t.latencies, 0.99).Seconds(),
		Spread: spread(t.byWorker), ByWorker: t.byWorker,
	}
	if len(t.latencies) >= compareTail {
		tail := percentile(t.latencies, 0.999).Seconds()
		p.P999 = &tail
	}
	if t.failure != nil {
		p.Failure = oneLine(t.failure.Error())
	}
	return p
}

func (r *compareReport) writeJSON(w io.Writer) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(text, '\n'))
	return err
}

// phase returns what was found in a phase.
func (r *compareReport) phase(name string) []policyReport {
	for _, p := range r.Phases {
		if p.Phase == name {
			return p.Policies
		}
	}
	return nil
}
