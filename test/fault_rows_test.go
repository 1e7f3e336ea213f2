//go:build linux

package test

import (
	"context"
	"strings"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

func init() {
	matrix = append(matrix, []struct {
		id  string
		run func(*testing.T, form)
	}{
		{"F19", atDescriptorLimit},
		{"F20", acceptFails},
		{"F21", masterStopped},
		{"F22", giveUp},
		{"F23", scan},
		{"F24", slowClients},
		{"F25", packetLoss},
		{"F26", overflow},
		{"F33", drain},
		{"F34", signalStorm},
		{"F35", manyDie},
		{"F36", orphans},
		{"F37", pidReuse},
		{"F38", clock},
		{"F39", logSink},
		{"F40", starved},
		{"F42", controlMode},
		{"F43", controlPeer},
		{"F44", controlPath},
		{"F45", controlTaken},
		{"F46", controlAbuse},
		{"F47", strayDescriptors},
		{"F48", environment},
		{"F49", forging},
		{"F50", privilegeDrop},
		{"F51", metricsAbuse},
		{"F52", sharedDeath},
		{"F53", hosts},
	}...)
}

// span lets a time pass that is itself the fault, or the measurement.
func span(d time.Duration) { <-time.NewTimer(d).C }

// patient is the time-out of clients that a fault of the test keeps waiting.
const patient = 60 * time.Second

// sample adds up the samples of a family that have this label.
func sample(samples map[string]float64, family, label string) (sum float64) {
	for name, v := range samples {
		if strings.HasPrefix(name, family+"{") && strings.Contains(name, label) {
			sum += v
		}
	}
	return sum
}

// under runs a load until the returned function is called, which returns its report.
func under(t *testing.T, m *harness.Master, rate float64) (finish func() *load.Report) {
	t.Helper()
	return underWith(t, m, load.Config{Rate: rate, Duration: 24 * time.Hour})
}

func underWith(t *testing.T, m *harness.Master, cfg load.Config) (finish func() *load.Report) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	wait := waitingContext(ctx, m, cfg)
	return func() *load.Report {
		cancel()
		r := wait()
		t.Log(r)
		return r
	}
}
