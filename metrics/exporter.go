package metrics

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// copyTimeout is how long the dispatcher may take to give a copy before it is
// taken to be stuck.
const copyTimeout = time.Second

// errNoSnapshot is what a Source that returned neither copy nor error gets.
var errNoSnapshot = errors.New("the source gave no copy")

// Build says which rrd this is; its fields are the labels of rrd_build_info.
type Build struct {
	Version, Revision, Branch, Tags string
}

// Config is what an Exporter needs. Only Source is required.
type Config struct {
	Source Source
	Build  Build
	// Logs, if set, is exposed as rrd_log_messages_total.
	Logs *LogCounter
}

// Exporter turns the copies of a Source into metrics on a registry of its own,
// together with go_* and process_* of this process. It may be used by several
// goroutines.
type Exporter struct {
	cfg     Config
	runtime *prometheus.Registry // go_*, nothing else
	reg     *prometheus.Registry // all others

	mu   sync.Mutex
	last *Snapshot // the newest copy, shown while there is no newer one
}

// New returns an Exporter. It starts no goroutine.
func New(cfg Config) *Exporter {
	e := &Exporter{cfg: cfg, runtime: prometheus.NewPedanticRegistry(), reg: prometheus.NewPedanticRegistry()}
	e.runtime.MustRegister(collectors.NewGoCollector())
	e.reg.MustRegister(e, collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return e
}

// Gatherer gathers all that is exposed. What the runtime tells comes first and alone:
// a registry starts one goroutine for each of its collectors, or fewer, as time
// allows, and go_goroutines would count them.
func (e *Exporter) Gatherer() prometheus.Gatherer { return prometheus.Gatherers{e.runtime, e.reg} }

// snapshot returns a fresh copy, or the newest one there was (nil if there was
// none) together with the reason why there is no fresh one.
func (e *Exporter) snapshot(ctx context.Context) (*Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, copyTimeout)
	defer cancel()
	s, err := e.cfg.Source(ctx)
	if s == nil && err == nil {
		err = errNoSnapshot
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if s != nil && (e.last == nil || !s.Time.Before(e.last.Time)) {
		e.last = s
	}
	if s == nil {
		s = e.last
	}
	return s, err
}

// Describe sends nothing: the series of the workers' processes have one
// descriptor per slot, and slots come and go.
func (e *Exporter) Describe(chan<- *prometheus.Desc) {}

// Collect emits one copy. With no copy at all it emits what needs none and one
// invalid metric, which promhttp counts and reports.
func (e *Exporter) Collect(ch chan<- prometheus.Metric) {
	out := emitter{ch}
	b := e.cfg.Build
	out.gauge(descBuild, 1, b.Version, b.Revision, b.Branch, runtime.Version(), runtime.GOOS, runtime.GOARCH, b.Tags)
	if e.cfg.Logs != nil {
		for _, level := range LogLevels {
			out.counter(descLogMessages, e.cfg.Logs.Count(level), level)
		}
	}
	s, err := e.snapshot(context.Background())
	if s == nil {
		ch <- prometheus.NewInvalidMetric(prometheus.NewInvalidDesc(err), err)
		return
	}
	out.master(s)
	for i := range s.Listeners {
		out.listener(&s.Listeners[i])
	}
	for i := range s.Workers {
		out.worker(&s.Workers[i])
	}
}
