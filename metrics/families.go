package metrics

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
)

// descs lists every family that this package declares itself.
var descs []*prometheus.Desc

func desc(name, help string, labels ...string) *prometheus.Desc {
	d := prometheus.NewDesc("rrd_"+name, help, labels, nil)
	descs = append(descs, d)
	return d
}

// Families of the whole master.
var (
	descBuild = desc("build_info", "Constant 1, labelled by what this rrd was built from.",
		"version", "revision", "branch", "goversion", "goos", "goarch", "tags")
	descLogMessages = desc("log_messages_total", "Log messages written, by level.", "level")
	descPolicy      = desc("policy_info", "Constant 1, labelled by the scheduling policy in force.", "policy")
	descDraining    = desc("draining", "Whether the master was asked to stop and is finishing, or has left rotation.")
	descQueueLimit  = desc("connections_queue_limit", "Accepted connections that may wait for a worker, over all listeners.")
	descRedispatch  = desc("redispatches_total", "Connections given to another worker, by what became of the handoff before.", "reason")
	descDispatch    = desc("dispatch_duration_seconds", "Time from accepting a connection to a worker's ack.")
	descQueueWait   = desc("queue_wait_duration_seconds", "Time from accepting a connection to its first handoff.")
	descHandoffAck  = desc("handoff_ack_duration_seconds", "Time from a handoff to its answer.")
	descWorkerStart = desc("worker_start_duration_seconds", "Time from spawning a worker to its being ready.")
	descReloads     = desc("reloads_total", "Reloads of the configuration and upgrades in place, by result.", "kind", "result")
	descReloadOK    = desc("config_last_reload_successful", "Whether the last reload succeeded; 1 before the first.")
	descReloadTime  = desc("config_last_reload_success_timestamp_seconds", "When the configuration in force was read.")
	descControl     = desc("control_requests_total", "Requests over the control socket, by command and result.", "command", "result")
	descWorkers     = desc("workers", "Slots by the state of their newest worker.", "state")
	descDesired     = desc("workers_desired", "Slots that should have a ready worker.")
)

// Families of one listener. The first six are the law.
var (
	descAccepted = desc("connections_accepted_total", "Connections accepted.", "listener")
	descAcked    = desc("connections_acked_total", "Connections that a worker took over.", "listener")
	descRescued  = desc("connections_rescued_total", "Connections taken back untouched from a worker that died after its ack.", "listener")
	descDropped  = desc("connections_dropped_total", "Connections closed by the master without being served.", "listener", "reason")
	descQueued   = desc("connections_queued", "Accepted connections waiting for a worker.", "listener")
	descInFlight = desc("connections_in_flight", "Connections handed to a worker that has not answered yet.", "listener")

	descAcceptErrors = desc("accept_errors_total", "Failed accepts, by error.", "listener", "reason")
	descPauses       = desc("accept_pauses_total", "Times that accepting was paused, by reason.", "listener", "reason")
	descRearms       = desc("listener_rearms_total", "Times that rrd made a listener work again after clients could not connect.", "listener")
	descFilters      = desc("listener_filters_removed_total", "Filters that workers had attached to a shared listener, removed, by kind.", "listener", "kind")
	descUnreachable  = desc("listener_unreachable", "Whether no client can connect to an open listener.", "listener")
	descPaused       = desc("listener_paused", "Whether accepting is paused at the moment.", "listener")
	descKernelQueue  = desc("listener_accept_queue_connections", "Connections in the kernel's accept queue.", "listener")
	descKernelDrops  = desc("listener_kernel_drops_total", "Connections and SYNs that the kernel dropped at the listener, its accept queue being full or for another reason.", "listener")
	descKernelLimit  = desc("listener_accept_queue_limit", "Connections that the kernel's accept queue can hold.", "listener")
)

// Families of one worker, by slot.
var (
	descWorkerInfo     = desc("worker_info", "Constant 1, joining a slot to its newest process.", "worker", "pid", "generation")
	descHandoffs       = desc("handoffs_total", "Connections sent to a worker.", "worker")
	descAcks           = desc("handoff_acks_total", "Handoffs that a worker took.", "worker")
	descRejections     = desc("handoff_rejections_total", "Handoffs that a worker did not take, by its reason.", "worker", "reason")
	descFailures       = desc("handoff_failures_total", "Handoffs that got no answer, by reason.", "worker", "reason")
	descWorkerInFlight = desc("handoffs_in_flight", "Handoffs that a worker has not answered yet.", "worker")
	descActive         = desc("worker_connections_active", "Connections that a worker is serving, where it says so.", "worker")
	descProtocolErrors = desc("protocol_errors_total", "Violations of the channel's protocol by a worker.", "worker", "reason")
	descStarts         = desc("worker_starts_total", "Worker processes started, by reason.", "worker", "reason")
	descExits          = desc("worker_exits_total", "Worker processes ended, by cause.", "worker", "cause")
	descHeartbeat      = desc("worker_heartbeat_timestamp_seconds", "When a worker last said something on its channel.", "worker")
	descBackoff        = desc("worker_respawn_backoff_seconds", "Pause before the next start of a slot, 0 when there is none.", "worker")
)

// emitter sends constant metrics. A label that is not UTF-8 would be an invalid metric, and
// two that become the same would end the scrape: so bytes are escaped, not replaced.
type emitter struct{ ch chan<- prometheus.Metric }

func (e emitter) send(d *prometheus.Desc, t prometheus.ValueType, v float64, labels []string) {
	for i, l := range labels {
		labels[i] = validLabel(l)
	}
	e.ch <- prometheus.MustNewConstMetric(d, t, v, labels...)
}

func validLabel(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			fmt.Fprintf(&b, `\x%02x`, s[i])
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

func (e emitter) counter(d *prometheus.Desc, v uint64, labels ...string) {
	e.send(d, prometheus.CounterValue, float64(v), labels)
}

func (e emitter) gauge(d *prometheus.Desc, v float64, labels ...string) {
	e.send(d, prometheus.GaugeValue, v, labels)
}

func (e emitter) flag(d *prometheus.Desc, on bool, labels ...string) {
	v := 0.0
	if on {
		v = 1
	}
	e.gauge(d, v, labels...)
}

// counts emits one series per reason: the known ones always, others as they
// come. The reason is the last label.
func (e emitter) counts(d *prometheus.Desc, c Counts, known []string, labels ...string) {
	for _, reason := range known {
		e.counter(d, c[reason], append(slices.Clone(labels), reason)...)
	}
	for reason, n := range c {
		if !slices.Contains(known, reason) {
			e.counter(d, n, append(slices.Clone(labels), reason)...)
		}
	}
}

func (e emitter) histogram(d *prometheus.Desc, h Histogram, bounds []float64) {
	if len(h.Counts) == 0 {
		return
	}
	total, buckets := h.cumulative(bounds)
	e.ch <- prometheus.MustNewConstHistogram(d, total, h.Sum, buckets)
}

func (e emitter) master(s *Snapshot) {
	if s.Policy != "" {
		e.gauge(descPolicy, 1, s.Policy)
	}
	e.flag(descDraining, s.Draining)
	e.gauge(descQueueLimit, float64(s.QueueLimit))
	e.gauge(descDesired, float64(s.Desired))
	e.counter(descReloads, s.Reloads.OK, "config", "ok")
	e.counter(descReloads, s.Reloads.Failed, "config", "error")
	e.counter(descReloads, s.Upgrades.OK, "upgrade", "ok")
	e.counter(descReloads, s.Upgrades.Failed, "upgrade", "error")
	e.flag(descReloadOK, s.Reloads.LastFailure == "")
	if !s.Reloads.LastSuccess.IsZero() {
		e.gauge(descReloadTime, float64(s.Reloads.LastSuccess.UnixMilli())/1e3)
	}
	for _, c := range s.Control {
		e.counter(descControl, c.Count, c.Command, c.Result)
	}
	e.counts(descRedispatch, s.Redispatches, RedispatchReasons)
	e.histogram(descDispatch, s.Dispatch, DurationBounds)
	e.histogram(descQueueWait, s.QueueWait, DurationBounds)
	e.histogram(descHandoffAck, s.HandoffAck, DurationBounds)
	e.histogram(descWorkerStart, s.WorkerStart, StartBounds)

	states := make(Counts, len(WorkerStates))
	for i := range s.Workers {
		if state := s.Workers[i].State; state != "" {
			states[state]++
		}
	}
	for _, state := range WorkerStates {
		e.gauge(descWorkers, float64(states[state]), state)
		delete(states, state)
	}
	for state, n := range states {
		e.gauge(descWorkers, float64(n), state)
	}
}

func (e emitter) listener(l *Listener) {
	if l.KernelQueue != nil {
		e.gauge(descKernelQueue, float64(l.KernelQueue.Length), l.Name)
		e.gauge(descKernelLimit, float64(l.KernelQueue.Limit), l.Name)
		e.counter(descKernelDrops, l.KernelQueue.Drops, l.Name)
	}
	e.counter(descRearms, l.Rearmed, l.Name)
	if l.Shared {
		e.counts(descFilters, l.Filters, FilterKinds, l.Name)
	}
	e.flag(descUnreachable, l.Unreachable != "", l.Name)
	if l.Shared && l.Accepted == 0 { // the master does not see its connections, so 0 would be a lie
		return
	}
	e.counter(descAccepted, l.Accepted, l.Name)
	e.counter(descAcked, l.Acked, l.Name)
	e.counter(descRescued, l.Rescued, l.Name)
	e.counts(descDropped, l.Dropped, DropReasons, l.Name)
	e.gauge(descQueued, float64(l.Queued), l.Name)
	e.gauge(descInFlight, float64(l.InFlight), l.Name)
	e.counts(descAcceptErrors, l.AcceptErrors, AcceptErrorReasons, l.Name)
	e.counts(descPauses, l.Pauses, PauseReasons, l.Name)
	e.flag(descPaused, l.Paused, l.Name)
}

func (e emitter) worker(w *Worker) {
	slot := strconv.Itoa(w.Slot)
	e.counter(descHandoffs, w.Handoffs, slot)
	e.counter(descAcks, w.Acks, slot)
	e.counts(descRejections, w.Rejections, RejectReasons, slot)
	e.counts(descFailures, w.Failures, FailureReasons, slot)
	e.gauge(descWorkerInFlight, float64(w.InFlight), slot)
	if w.Active != nil {
		e.gauge(descActive, float64(*w.Active), slot)
	}
	e.counts(descProtocolErrors, w.ProtocolErrors, nil, slot)
	e.counts(descStarts, w.Starts, StartReasons, slot)
	e.counts(descExits, w.Exits, ExitCauses, slot)
	if !w.Heartbeat.IsZero() {
		e.gauge(descHeartbeat, float64(w.Heartbeat.UnixMilli())/1e3, slot)
	}
	e.gauge(descBackoff, w.Backoff.Seconds(), slot)
	if w.PID > 0 {
		e.gauge(descWorkerInfo, 1, slot, strconv.Itoa(w.PID), strconv.Itoa(w.Generation))
		e.process(slot, w.PID)
	}
}
