package metrics

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// samples gathers reg and returns every sample of a family that starts with
// rrd_, in the exposition format's notation, but for the workers' processes.
func samples(t *testing.T, reg prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatalf("gather: %v", err)
	}
	got := map[string]float64{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "rrd_") || strings.HasPrefix(f.GetName(), "rrd_worker_process_") {
			continue
		}
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() {
				labels = append(labels, fmt.Sprintf("%s=%q", l.GetName(), l.GetValue()))
			}
			sort.Strings(labels)
			suffix := ""
			if len(labels) > 0 {
				suffix = "{" + strings.Join(labels, ",") + "}"
			}
			switch {
			case m.GetCounter() != nil:
				got[f.GetName()+suffix] = m.GetCounter().GetValue()
			case m.GetGauge() != nil:
				got[f.GetName()+suffix] = m.GetGauge().GetValue()
			case m.GetHistogram() != nil:
				h := m.GetHistogram()
				got[f.GetName()+"_count"] = float64(h.GetSampleCount())
				got[f.GetName()+"_sum"] = h.GetSampleSum()
				for _, b := range h.GetBucket() {
					if n := b.GetCumulativeCount(); n > 0 {
						got[fmt.Sprintf("%s_bucket{le=%q}", f.GetName(), strconv.FormatFloat(b.GetUpperBound(), 'g', -1, 64))] = float64(n)
					}
				}
			}
		}
	}
	return got
}

func fixed(s *Snapshot) Source {
	return func(context.Context) (*Snapshot, error) { return s, nil }
}

func fullSnapshot() *Snapshot {
	active := 7
	return &Snapshot{
		Time:       time.Unix(1700000000, 0).UTC(),
		Policy:     "rr",
		QueueLimit: 4096,
		Desired:    2,
		Reloads:    Reloads{OK: 6, Failed: 1, LastSuccess: time.Unix(1600000000, 0).UTC(), LastFailure: "no"},
		Upgrades:   Upgrades{OK: 2, Failed: 3, LastFailure: "no"},
		Control:    []ControlRequests{{Command: "status", Result: "ok", Count: 9}},
		Listeners: []Listener{
			{
				Name: ":80", Network: "tcp", Address: "[::]:80",
				Accepted: 100, Acked: 90, Rescued: 2,
				Dropped: Counts{"queue_timeout": 3, "poison": 1}, Queued: 5, InFlight: 3,
				AcceptErrors: Counts{"emfile": 4}, Pauses: Counts{"fd_limit": 2}, Paused: true, Rearmed: 2,
				KernelQueue: &KernelQueue{Length: 9, Limit: 511, Drops: 6},
			},
			{Name: "dns", Network: "udp", Shared: true},
		},
		Workers: []Worker{
			{
				Slot: 0, PID: os.Getpid(), Generation: 1, State: "ready", Started: time.Unix(1700000000, 0),
				Handoffs: 95, Acks: 90, Rejections: Counts{"busy": 2}, Failures: Counts{"would_block": 1}, InFlight: 3,
				Active: &active, ProtocolErrors: Counts{"bad_frame": 1},
				Starts: Counts{"initial": 1, "crash": 1}, Exits: Counts{"signal": 1},
				Heartbeat: time.Unix(1700000009, 500e6),
			},
			{Slot: 1, State: "backoff", Backoff: 1500 * time.Millisecond},
		},
		Redispatches: Counts{"rejected": 2, "novel": 1},
		Dispatch:     Histogram{Counts: []uint64{1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4}, Sum: 44.5},
		WorkerStart:  Histogram{Counts: []uint64{0, 1}, Sum: 0.008},
	}
}

func TestExporterEmitsEverySample(t *testing.T) {
	logs := &LogCounter{}
	logs.Inc("warn")
	logs.Inc("warn")
	logs.Inc("no such level")
	e := New(Config{Source: fixed(fullSnapshot()), Build: Build{Version: "1.2.3", Revision: "abc"}, Logs: logs})

	want := map[string]float64{
		fmt.Sprintf(`rrd_build_info{branch="",goarch=%q,goos=%q,goversion=%q,revision="abc",tags="",version="1.2.3"}`,
			runtime.GOARCH, runtime.GOOS, runtime.Version()): 1,
		`rrd_policy_info{policy="rr"}`:                             1,
		`rrd_draining`:                                             0,
		`rrd_connections_queue_limit`:                              4096,
		`rrd_workers_desired`:                                      2,
		`rrd_workers{state="ready"}`:                               1,
		`rrd_workers{state="backoff"}`:                             1,
		`rrd_reloads_total{kind="config",result="ok"}`:             6,
		`rrd_reloads_total{kind="config",result="error"}`:          1,
		`rrd_reloads_total{kind="upgrade",result="ok"}`:            2,
		`rrd_reloads_total{kind="upgrade",result="error"}`:         3,
		"rrd_config_last_reload_successful":                        0,
		"rrd_config_last_reload_success_timestamp_seconds":         1.6e9,
		`rrd_control_requests_total{command="status",result="ok"}`: 9,
		`rrd_redispatches_total{reason="rejected"}`:                2,
		`rrd_redispatches_total{reason="novel"}`:                   1,
		`rrd_dispatch_duration_seconds_count`:                      7,
		`rrd_dispatch_duration_seconds_sum`:                        44.5,
		`rrd_dispatch_duration_seconds_bucket{le="1e-05"}`:         1,
		`rrd_worker_start_duration_seconds_count`:                  1,
		`rrd_worker_start_duration_seconds_sum`:                    0.008,

		`rrd_connections_accepted_total{listener=":80"}`:                                100,
		`rrd_connections_acked_total{listener=":80"}`:                                   90,
		`rrd_connections_rescued_total{listener=":80"}`:                                 2,
		`rrd_connections_queued{listener=":80"}`:                                        5,
		`rrd_connections_in_flight{listener=":80"}`:                                     3,
		`rrd_listener_paused{listener=":80"}`:                                           1,
		`rrd_listener_rearms_total{listener=":80"}`:                                     2,
		`rrd_listener_unreachable{listener=":80"}`:                                      0,
		`rrd_listener_filters_removed_total{kind="socket",listener="dns"}`:              0,
		`rrd_listener_filters_removed_total{kind="reuseport",listener="dns"}`:           0,
		`rrd_listener_rearms_total{listener="dns"}`:                                     0,
		`rrd_listener_unreachable{listener="dns"}`:                                      0,
		`rrd_listener_accept_queue_connections{listener=":80"}`:                         9,
		`rrd_listener_accept_queue_limit{listener=":80"}`:                               511,
		`rrd_listener_kernel_drops_total{listener=":80"}`:                               6,
		`rrd_worker_heartbeat_timestamp_seconds{worker="0"}`:                            1700000009.5,
		`rrd_connections_dropped_total{listener=":80",reason="queue_timeout"}`:          3,
		`rrd_connections_dropped_total{listener=":80",reason="poison"}`:                 1,
		`rrd_accept_errors_total{listener=":80",reason="emfile"}`:                       4,
		`rrd_accept_pauses_total{listener=":80",reason="fd_limit"}`:                     2,
		`rrd_handoff_rejections_total{reason="busy",worker="0"}`:                        2,
		`rrd_handoff_failures_total{reason="would_block",worker="0"}`:                   1,
		`rrd_protocol_errors_total{reason="bad_frame",worker="0"}`:                      1,
		`rrd_worker_starts_total{reason="initial",worker="0"}`:                          1,
		`rrd_worker_starts_total{reason="crash",worker="0"}`:                            1,
		`rrd_worker_exits_total{cause="signal",worker="0"}`:                             1,
		`rrd_worker_connections_active{worker="0"}`:                                     7,
		fmt.Sprintf(`rrd_worker_info{generation="1",pid="%d",worker="0"}`, os.Getpid()): 1,

		`rrd_handoffs_total{worker="0"}`:                 95,
		`rrd_handoffs_total{worker="1"}`:                 0,
		`rrd_handoff_acks_total{worker="0"}`:             90,
		`rrd_handoff_acks_total{worker="1"}`:             0,
		`rrd_handoffs_in_flight{worker="0"}`:             3,
		`rrd_handoffs_in_flight{worker="1"}`:             0,
		`rrd_worker_respawn_backoff_seconds{worker="0"}`: 0,
		`rrd_worker_respawn_backoff_seconds{worker="1"}`: 1.5,
	}
	// Cumulative buckets and the zeros of known reasons, spelled by rule.
	for i, b := range DurationBounds {
		if i > 0 {
			want[fmt.Sprintf(`rrd_dispatch_duration_seconds_bucket{le=%q}`, strconv.FormatFloat(b, 'g', -1, 64))] = 3
		}
	}
	for _, b := range StartBounds[1:] {
		want[fmt.Sprintf(`rrd_worker_start_duration_seconds_bucket{le=%q}`, strconv.FormatFloat(b, 'g', -1, 64))] = 1
	}
	zero := func(format string, values []string, args ...any) {
		for _, v := range values {
			if k := fmt.Sprintf(format, append([]any{v}, args...)...); want[k] == 0 {
				want[k] = 0
			}
		}
	}
	zero(`rrd_log_messages_total{level=%q}`, LogLevels)
	want[`rrd_log_messages_total{level="warn"}`] = 2
	zero(`rrd_workers{state=%q}`, WorkerStates)
	zero(`rrd_redispatches_total{reason=%q}`, RedispatchReasons)
	zero(`rrd_connections_dropped_total{listener=":80",reason=%q}`, DropReasons)
	zero(`rrd_accept_errors_total{listener=":80",reason=%q}`, AcceptErrorReasons)
	zero(`rrd_accept_pauses_total{listener=":80",reason=%q}`, PauseReasons)
	for _, slot := range []string{"0", "1"} {
		zero(`rrd_handoff_rejections_total{reason=%q,worker=%q}`, RejectReasons, slot)
		zero(`rrd_handoff_failures_total{reason=%q,worker=%q}`, FailureReasons, slot)
		zero(`rrd_worker_starts_total{reason=%q,worker=%q}`, StartReasons, slot)
		zero(`rrd_worker_exits_total{cause=%q,worker=%q}`, ExitCauses, slot)
	}
	if diff := cmp.Diff(want, samples(t, e.Gatherer())); diff != "" {
		t.Errorf("samples (-want +got):\n%s", diff)
	}
}

func TestExporterLints(t *testing.T) {
	e := New(Config{Source: fixed(fullSnapshot()), Logs: &LogCounter{}})
	problems, err := testutil.GatherAndLint(e.Gatherer())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// A collector that describes nothing escapes the registry's check that each
// metric was described, so the check is made here.
func TestExporterEmitsOnlyDeclaredFamilies(t *testing.T) {
	declared := map[string]bool{}
	for _, d := range descs {
		declared[d.String()] = true
	}
	e := New(Config{Source: fixed(fullSnapshot()), Logs: &LogCounter{}})
	ch := make(chan prometheus.Metric, 1000)
	e.Collect(ch)
	close(ch)
	seen := map[string]bool{}
	for m := range ch {
		d := m.Desc().String()
		if !declared[d] && !strings.Contains(d, "rrd_worker_process_") {
			t.Errorf("undeclared %s", d)
		}
		seen[d] = true
	}
	for d := range declared {
		// These two have no counts in the snapshot, so no series.
		if !seen[d] && !strings.Contains(d, "queue_wait") && !strings.Contains(d, "handoff_ack_d") {
			t.Errorf("never emitted: %s", d)
		}
	}
}

func TestWorkerProcessSeries(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has the process collector's files of other processes")
	}
	e := New(Config{Source: fixed(&Snapshot{Workers: []Worker{{Slot: 3, PID: os.Getpid()}, {Slot: 4, PID: math.MaxInt32}}})})
	families, err := e.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "rrd_worker_process_") {
			continue
		}
		if strings.Contains(f.GetName(), "network") {
			t.Errorf("%s is of the whole network namespace", f.GetName())
		}
		for _, m := range f.GetMetric() {
			found[f.GetName()] += m.GetLabel()[0].GetName() + "=" + m.GetLabel()[0].GetValue()
		}
	}
	for _, name := range []string{"cpu_seconds_total", "open_fds", "max_fds", "resident_memory_bytes", "start_time_seconds", "virtual_memory_bytes"} {
		// One series each: the process that is gone has none.
		if got := found["rrd_worker_process_"+name]; got != "worker=3" {
			t.Errorf("rrd_worker_process_%s has %q, want worker=3", name, got)
		}
	}
}

func TestSharedListenerHasNoConnectionSeries(t *testing.T) {
	e := New(Config{Source: fixed(&Snapshot{Policy: "none", Listeners: []Listener{{Name: "a", Shared: true, KernelQueue: &KernelQueue{Length: 1, Limit: 2}}}})})
	for name := range samples(t, e.Gatherer()) {
		if strings.Contains(name, `listener="a"`) && !strings.HasPrefix(name, "rrd_listener_accept_queue_") && !strings.HasPrefix(name, "rrd_listener_kernel_drops_") &&
			!strings.HasPrefix(name, "rrd_listener_rearms_") && !strings.HasPrefix(name, "rrd_listener_filters_") && !strings.HasPrefix(name, "rrd_listener_unreachable") {
			t.Errorf("%s for a listener that the master does not accept on", name)
		}
	}
}

func TestRemovedSlotKeepsItsCounters(t *testing.T) {
	e := New(Config{Source: fixed(&Snapshot{Workers: []Worker{{Slot: 0, State: "ready"}, {Slot: 1, Handoffs: 9}}})})
	got := samples(t, e.Gatherer())
	if got[`rrd_handoffs_total{worker="1"}`] != 9 {
		t.Error("the counter is gone")
	}
	slots := 0.0
	for name, n := range got {
		if strings.HasPrefix(name, "rrd_workers{") {
			slots += n
		}
	}
	if slots != 1 {
		t.Errorf("the states add up to %v slots, want 1", slots)
	}
}

func TestLabelsThatAreNoUTF8(t *testing.T) {
	e := New(Config{Source: fixed(&Snapshot{
		Listeners: []Listener{{Name: "unix:/\xff\n\""}, {Name: "unix:/\xfe\n\""}},
		Workers:   []Worker{{State: "\xfe", Exits: Counts{"\xff": 1}}},
	})})
	got := samples(t, e.Gatherer())
	for _, name := range []string{`unix:/\\xff\n\"`, `unix:/\\xfe\n\"`} {
		if _, ok := got[`rrd_connections_queued{listener="`+name+`"}`]; !ok {
			t.Errorf("the series of %s is missing", name)
		}
	}
}

func TestOneCopyPerScrape(t *testing.T) {
	copies := 0
	e := New(Config{Source: func(context.Context) (*Snapshot, error) { copies++; return fullSnapshot(), nil }})
	samples(t, e.Gatherer())
	if copies != 1 {
		t.Errorf("one scrape took %d copies", copies)
	}
}

func TestNoCopyThenLastCopy(t *testing.T) {
	boom := errors.New("no copy within 1s")
	var give *Snapshot
	e := New(Config{Source: func(context.Context) (*Snapshot, error) {
		if give == nil {
			return nil, boom
		}
		return give, nil
	}})
	// Never a copy: the gather fails, but the other collectors' families are there.
	families, err := e.Gatherer().Gather()
	if err == nil || !strings.Contains(err.Error(), boom.Error()) {
		t.Errorf("gather without a copy: %v", err)
	}
	if len(families) < 10 {
		t.Errorf("only %d families without a copy", len(families))
	}
	// One copy, then none: the last one is shown.
	give = fullSnapshot()
	samples(t, e.Gatherer())
	give = nil
	if got := samples(t, e.Gatherer())[`rrd_connections_accepted_total{listener=":80"}`]; got != 100 {
		t.Errorf("accepted of the last copy = %v", got)
	}
	if s, err := e.snapshot(t.Context()); s == nil || !errors.Is(err, boom) {
		t.Errorf("snapshot = %v, %v", s, err)
	}
}

func TestSourceGivingNothing(t *testing.T) {
	e := New(Config{Source: fixed(nil)})
	if s, err := e.snapshot(t.Context()); s != nil || !errors.Is(err, errNoSnapshot) {
		t.Errorf("snapshot = %v, %v", s, err)
	}
}

func TestSourceHasOneSecond(t *testing.T) {
	e := New(Config{Source: func(ctx context.Context) (*Snapshot, error) {
		d, ok := ctx.Deadline()
		if left := time.Until(d); !ok || left > time.Second || left < 500*time.Millisecond {
			t.Errorf("the source has %v", left)
		}
		return &Snapshot{}, nil
	}})
	if _, err := e.snapshot(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestLaw(t *testing.T) {
	for _, c := range []struct {
		name string
		l    Listener
		want Law
	}{
		{"idle", Listener{}, Law{true, 0, 0}},
		{"balanced", Listener{Accepted: 10, Rescued: 1, Acked: 5, Dropped: Counts{"a": 1, "b": 2}, Queued: 2, InFlight: 1}, Law{true, 11, 11}},
		{"lost one", Listener{Accepted: 10, Acked: 9}, Law{false, 10, 9}},
		{"served twice", Listener{Accepted: 1, Acked: 2}, Law{false, 1, 2}},
	} {
		if got := c.l.Law(); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestRecorder(t *testing.T) {
	r := NewRecorder([]float64{0.01, 1})
	for _, d := range []time.Duration{-time.Second, 0, 10 * time.Millisecond, 11 * time.Millisecond, time.Second, time.Hour} {
		r.Observe(d)
	}
	want := Histogram{Counts: []uint64{3, 2, 1}, Sum: 0.01 + 0.011 + 1 + 3600}
	if diff := cmp.Diff(want, r.Histogram()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestBounds(t *testing.T) {
	for name, bounds := range map[string][]float64{"duration": DurationBounds, "start": StartBounds} {
		if !sort.Float64sAreSorted(bounds) {
			t.Errorf("%s bounds do not ascend", name)
		}
	}
	if len(DurationBounds) != 19 || len(StartBounds) != 12 {
		t.Errorf("%d and %d buckets", len(DurationBounds), len(StartBounds))
	}
}

func TestCumulative(t *testing.T) {
	bounds := []float64{1, 2}
	for _, c := range []struct {
		counts  []uint64
		total   uint64
		buckets map[float64]uint64
	}{
		{nil, 0, map[float64]uint64{1: 0, 2: 0}},
		{[]uint64{3}, 3, map[float64]uint64{1: 3, 2: 3}},
		{[]uint64{3, 1, 2}, 6, map[float64]uint64{1: 3, 2: 4}},
		{[]uint64{3, 1, 2, 9}, 15, map[float64]uint64{1: 3, 2: 4}},
	} {
		total, buckets := Histogram{Counts: c.counts}.cumulative(bounds)
		if total != c.total || cmp.Diff(c.buckets, buckets) != "" {
			t.Errorf("%v: %d %v", c.counts, total, buckets)
		}
	}
}

// TestRuntimeIsGatheredAlone: any other collector in its registry brings goroutines, of
// which go_goroutines would tell.
func TestRuntimeIsGatheredAlone(t *testing.T) {
	e := New(Config{Source: fixed(fullSnapshot())})
	for name, r := range map[string]struct {
		registry *prometheus.Registry
		runtime  bool
	}{"runtime": {e.runtime, true}, "reg": {e.reg, false}} {
		families, err := r.registry.Gather()
		if err != nil || len(families) == 0 {
			t.Errorf("%s: %d families, %v", name, len(families), err)
		}
		for _, f := range families {
			if strings.HasPrefix(f.GetName(), "go_") != r.runtime {
				t.Errorf("%s has %s", name, f.GetName())
			}
		}
	}
}
