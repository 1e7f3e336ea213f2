//go:build unix

package main

import (
	"context"
	"fmt"
	"time"

	"rrd/dispatcher"
	"rrd/handoff"
	"rrd/metrics"
	"rrd/worker/pool"
)

// snapshot puts the copies of the two rooms together for the metrics.
func (m *master) snapshot(ctx context.Context) (*metrics.Snapshot, error) {
	d, err := m.dispatcher.Stats(ctx)
	if err != nil {
		return nil, fmt.Errorf("copy the dispatcher's counts: %w", err)
	}
	p := m.pool.Snapshot()
	s := &metrics.Snapshot{
		Time: time.Now(), Policy: string(m.cfg.Policy), PolicyReason: m.cfg.PolicyReason,
		Draining: m.draining.Load(), QueueLimit: d.QueueLimit, Desired: p.Desired,
		ReadyRule: m.current().readyRule(), OldestWait: d.OldestWait, LastQueueTimeout: d.LastQueueTimeout,
		Redispatches: counts(d.Redispatches[:], dispatcher.Redispatch.String),
		Dispatch:     histogram(&d.Dispatch), QueueWait: histogram(&d.QueueWait), HandoffAck: histogram(&d.HandoffAck),
		Reloads:     m.reloadCounts(),
		Upgrades:    m.upgradeCounts(),
		Control:     m.ctl.requests(),
		WorkerStart: metrics.Histogram{Counts: p.StartDurations.Counts, Sum: p.StartDurations.Sum},
	}
	for i := range d.Listeners {
		s.Listeners = append(s.Listeners, listenerCounts(&d.Listeners[i]))
	}
	for _, h := range d.Helpers {
		s.Helpers = append(s.Helpers, metrics.Helper{PID: h.PID, Busy: h.Out.Seconds()})
	}
	bySlot := make(map[int]*dispatcher.SlotStats, len(d.Slots))
	for i := range d.Slots {
		bySlot[d.Slots[i].Slot] = &d.Slots[i]
	}
	processes := make(map[uint64]*dispatcher.ProcessStats, len(d.Processes))
	for i := range d.Processes {
		processes[d.Processes[i].ID] = &d.Processes[i]
	}
	for _, slot := range p.Slots {
		w := workerCounts(slot, bySlot[slot.Slot])
		if process := processes[slot.ID]; process != nil {
			addProcess(&w, process)
		}
		s.Workers = append(s.Workers, w)
	}
	for _, slot := range p.Removed {
		w := workerCounts(slot, bySlot[slot.Slot])
		w.State = "" // its counts live on, but it is no slot any more
		s.Workers = append(s.Workers, w)
	}
	return s, nil
}

// readyRule returns the rule of --ready-min and --ready-max-wait.
func (c *config) readyRule() metrics.ReadyRule {
	return metrics.ReadyRule{Min: c.ReadyMin, MaxWait: max(c.ReadyMaxWait, 0)}
}

// counts names an array's elements. The zeroes are there too, for who reads
// /status.json.
func counts[R ~uint8](values []uint64, name func(R) string) metrics.Counts {
	c := make(metrics.Counts, len(values))
	for i, n := range values {
		c[name(R(i))] += n
	}
	return c
}

func histogram(h *dispatcher.Histogram) metrics.Histogram {
	return metrics.Histogram{Counts: h.Buckets[:], Sum: h.Sum.Seconds()}
}

func listenerCounts(ln *dispatcher.ListenerStats) metrics.Listener {
	out := metrics.Listener{
		Name: dispatcher.Printable(ln.Name), Network: ln.Network, Address: dispatcher.Printable(ln.Address), Shared: ln.Shared,
		Accepted: ln.Accepted, Acked: ln.Acked, Rescued: ln.Rescued,
		Dropped: counts(ln.Dropped[:], dispatcher.DropReason.String),
		Queued:  ln.Queued, InFlight: ln.InFlight,
		AcceptErrors: counts(ln.AcceptErrors[:], dispatcher.AcceptError.String),
		Pauses:       counts(ln.Pauses[:], dispatcher.PauseReason.String),
		Paused:       ln.Paused,
		Filters:      counts(ln.Filters[:], dispatcher.FilterKind.String),
		Rearmed:      ln.Rearmed, Unreachable: ln.Unreachable,
	}
	if ln.KernelKnown {
		out.KernelQueue = &metrics.KernelQueue{Length: int(ln.KernelQueue), Limit: int(ln.KernelLimit), Drops: ln.KernelDrops}
	}
	return out
}

func workerCounts(slot pool.SlotStatus, d *dispatcher.SlotStats) metrics.Worker {
	w := metrics.Worker{
		Slot: slot.Slot, PID: slot.PID, Generation: slot.Generation, State: string(slot.State),
		Started: slot.Started, Backoff: slot.Backoff,
		Starts: make(metrics.Counts, len(slot.Starts)), Exits: make(metrics.Counts, len(slot.Exits)),
	}
	for why, n := range slot.Starts {
		w.Starts[why.String()] = n
	}
	for why, n := range slot.Exits {
		w.Exits[why.String()] = n
	}
	if d == nil {
		return w
	}
	w.Handoffs, w.Acks, w.InFlight = d.Handoffs, d.Acks, d.InFlight
	w.Rejections = make(metrics.Counts, len(d.Rejects))
	for why := handoff.ReasonBusy; why <= handoff.ReasonOther; why++ {
		w.Rejections[why.String()] += d.Rejects[why]
	}
	w.Failures = counts(d.Failures[:], dispatcher.Failure.String)
	w.ProtocolErrors = metrics.Counts{"violation": d.ProtocolErrors}
	if d.Reported {
		active := int(d.Active)
		w.Active = &active
	}
	return w
}

// addProcess adds the state of the process that works in the slot. Those that were replaced
// may be there still.
func addProcess(w *metrics.Worker, p *dispatcher.ProcessStats) {
	w.Heartbeat, w.Late, w.LateFor = p.Heard, p.Late, p.LateFor
	if p.Unhealthy && w.State == string(pool.StateReady) {
		w.State = metrics.StateUnhealthy
	}
}
