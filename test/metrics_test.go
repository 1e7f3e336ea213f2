//go:build linux

package test

import (
	"net/http"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"rrd/test/harness"
	"rrd/test/load"
)

// The page is what promtool check metrics would pass, and counts what the clients
// have counted.
func TestMetrics(t *testing.T) {
	each(t, func(t *testing.T, policy string) {
		m := harness.Start(t, harness.Options{
			Args: []string{"--policy", policy, "--workers", "2"}, Listen: []string{"web=" + harness.Host() + ":0"},
		})
		r := serves(t, m, load.Config{Clients: 4, Total: 500})
		m.Idle()
		text, samples := m.Metrics()
		problems, err := promlint.New(strings.NewReader(text)).Lint()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
		want := map[string]float64{
			`rrd_policy_info{policy="` + policy + `"}`:             1,
			"rrd_workers_desired":                                  2,
			`rrd_workers{state="ready"}`:                           2,
			`rrd_worker_starts_total{reason="initial",worker="1"}`: 1,
			"rrd_draining":                                         0,
			"rrd_worker_start_duration_seconds_count":              2,
		}
		if policy == "rr" {
			for name, value := range map[string]float64{
				`rrd_connections_accepted_total{listener="web"}`:                       500,
				`rrd_connections_acked_total{listener="web"}`:                          500,
				`rrd_connections_rescued_total{listener="web"}`:                        0,
				`rrd_connections_dropped_total{listener="web",reason="queue_timeout"}`: 0,
				`rrd_connections_queued{listener="web"}`:                               0,
				`rrd_connections_in_flight{listener="web"}`:                            0,
				`rrd_handoff_acks_total{worker="0"}`:                                   float64(r.BySlot()[0]),
				`rrd_handoff_acks_total{worker="1"}`:                                   float64(r.BySlot()[1]),
				`rrd_handoff_rejections_total{reason="busy",worker="0"}`:               samples[`rrd_handoff_rejections_total{reason="busy",worker="0"}`],
				"rrd_dispatch_duration_seconds_count":                                  500,
				"rrd_queue_wait_duration_seconds_count":                                500,
			} {
				want[name] = value
			}
		}
		for name, value := range want {
			if got, ok := samples[name]; !ok || got != value {
				t.Errorf("%s is %v (there: %v), want %v", name, got, ok, value)
			}
		}
		for _, name := range []string{"process_open_fds", "go_goroutines", `rrd_log_messages_total{level="info"}`} {
			if samples[name] == 0 {
				t.Errorf("%s is not there", name)
			}
		}
		if !strings.Contains(text, "rrd_build_info{") {
			t.Error("no rrd_build_info")
		}
		if policy != "rr" && strings.Contains(text, "rrd_connections_accepted_total{") {
			t.Error("the master claims to know how many connections there were")
		}
	})
}

// Ready while somebody serves, healthy while the loop answers.
func TestProbes(t *testing.T) {
	t.Parallel()
	m := rr(t, 1, "--respawn-min", "100ms", "--respawn-max", "100ms")
	probe := func(path string, code int, says string) {
		t.Helper()
		harness.Poll(t, path, func() error {
			got, body, err := m.Get(path)
			if err == nil && (got != code || !strings.Contains(body, says)) {
				err = &probeError{got, body}
			}
			return err
		})
	}
	probe("/-/healthy", http.StatusOK, "healthy")
	probe("/-/ready", http.StatusOK, "1 of 1")
	probe("/", http.StatusOK, "/metrics")
	probe("/nothing", http.StatusNotFound, "")

	// The only worker is stopped by its death, and again there.
	m.Kill(m.PID(0), syscall.SIGKILL)
	m.Wait(harness.Named("worker.exit"))
	probe("/-/healthy", http.StatusOK, "healthy")
	probe("/-/ready", http.StatusOK, "1 of 1")

	// While it drains it is healthy, and wants no connections.
	finish := waiting(t, m, load.Config{URI: func(int) string { return "/sleep?ms=1500" }})
	m.WaitStatus("the request to be taken", func(s *harness.Status) bool { return s.Acked() == 1 })
	m.Signal(syscall.SIGTERM)
	probe("/-/ready", http.StatusServiceUnavailable, "draining")
	probe("/-/healthy", http.StatusOK, "healthy")
	if r := finish(); r.Count(load.OK) != 1 {
		t.Error(r)
	}
	m.WaitExit()
}

type probeError struct {
	code int
	body string
}

func (e *probeError) Error() string { return http.StatusText(e.code) + ": " + e.body }

// A default address that is taken is no reason not to serve, one that was asked for
// is.
func TestMetricsAddressInUse(t *testing.T) {
	t.Parallel()
	m := rr(t, 1)
	second := harness.Run(t, harness.Options{NoMetrics: true, Args: []string{"--metrics", m.MetricsAddr()}, ExitCode: 1})
	if !strings.Contains(second.Log(), "--metrics") || !strings.Contains(second.Log(), "address already in use") {
		t.Error(second.Log())
	}
}
