//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"rrd/cmd/internal/control"
	"rrd/dispatcher"
	"rrd/metrics"
	"rrd/worker/pool"
)

// The master as the operator of the control socket.

// controls is what the master has for its control socket.
type controls struct {
	gate *logGate
	ln   *control.Listener // nil: there is none
	at   string            // its path
	// unreachable is the reason why its file could not be made again; "" if it is there.
	unreachable string
	stopC       chan bool // asks supervise to stop; true: now
	overC       chan struct{}
	ended       control.Stopped // set before overC is closed

	mu     sync.Mutex
	counts map[controlRequest]uint64
	told   time.Time // when a denied peer was last spoken of
	untold int
}

type controlRequest struct{ command, result string }

func newControls(gate *logGate) *controls {
	return &controls{gate: gate, stopC: make(chan bool), overC: make(chan struct{}), counts: make(map[controlRequest]uint64)}
}

// openControl returns what serves the control socket until its context ends. A
// default one that cannot be made is only a warning.
func (m *master) openControl() (serve func(context.Context), err error) {
	var ln *control.Listener
	switch at := m.cfg.Control; at {
	case "off":
		return func(context.Context) {}, nil
	case "auto":
		ln, err = control.ListenAuto(os.Getenv, m.cfg.ControlUIDs)
		if err != nil && !m.cfg.explicit("control") {
			m.log.Warn().Str("event", "control.unavailable").Str("error", oneLine(err.Error())).
				Msg("going on without a control socket; --control names another path")
			return func(context.Context) {}, nil
		}
	default:
		ln, err = control.Listen(at, m.cfg.ControlUIDs)
	}
	if err != nil {
		return nil, fmt.Errorf("--control: %w (from %s)", err, m.cfg.origin("control"))
	}
	m.ctl.ln, m.ctl.at = ln, ln.Path()
	m.log.Info().Str("event", "control.open").Str("path", ln.Path()).Msg("control socket")
	return m.controlServer(m.newControlServer(), ln), nil
}

func (m *master) newControlServer() *control.Server {
	return control.NewServer(control.ServerConfig{Handler: controlHandler{m}, Handled: m.ctl.handled, Denied: m.controlDenied})
}

// controlServer returns what serves the control socket until its context ends.
func (m *master) controlServer(server *control.Server, ln *control.Listener) func(context.Context) {
	return func(ctx context.Context) {
		if err := server.Serve(ctx, ln); err != nil {
			m.log.Error().Str("event", "control.failed").Err(err).Msg("the control socket is not served any more")
		}
	}
}

// handled counts a request. What is no command of ours has no label of its own.
func (c *controls) handled(_ control.Peer, cmd string, err error) {
	if _, ok := controlCommands[cmd]; !ok {
		cmd = "unknown"
	}
	result := "ok"
	if err != nil {
		result = "error"
	}
	c.count(cmd, result)
}

func (c *controls) count(cmd, result string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[controlRequest{cmd, result}]++
}

// requests are the counts for the metrics.
func (c *controls) requests() (out []metrics.ControlRequests) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for r, n := range c.counts {
		out = append(out, metrics.ControlRequests{Command: r.command, Result: r.result, Count: n})
	}
	return out
}

// deniedEvery is how often a peer that was turned away is logged.
const deniedEvery = time.Second

func (m *master) controlDenied(p control.Peer, err error) {
	c := m.ctl
	c.count("none", "denied")
	c.mu.Lock()
	c.untold++
	n := c.untold
	say := time.Since(c.told) >= deniedEvery
	if say {
		c.told, c.untold = time.Now(), 0
	}
	c.mu.Unlock()
	if say {
		m.log.Warn().Str("event", "control.denied").Int("uid", p.UID).Int("peer_pid", p.PID).Int("times", n).
			AnErr("reason", err).Msg("turned away from the control socket")
	}
}

// ownPeer says whether a peer has our own rights, and not just those of
// --control-uid.
func ownPeer(p control.Peer) bool { return p.UID == 0 || p.UID == os.Geteuid() }

// over says how the run has ended to those who wait for it.
func (c *controls) over(ended control.Stopped) {
	c.ended = ended
	close(c.overC)
}

func (m *master) Over() <-chan struct{}   { return m.ctl.overC }
func (m *master) Events() *eventHub       { return &m.ctl.gate.events }
func (m *master) Log() *logGate           { return m.ctl.gate }
func (m *master) Snapshot() pool.Snapshot { return m.pool.Snapshot() }

func (m *master) Note(cmd string, p control.Peer) {
	m.log.Info().Str("event", "control.request").Str("command", cmd).Int("uid", p.UID).Int("peer_pid", p.PID).
		Msg("asked over the control socket")
}

// Resize, Grow and Shrink are the pool's, told in the log.

func (m *master) Resize(n int) error {
	_, err := m.resized(func() (int, error) { return n, m.pool.Resize(n) })
	return err
}

func (m *master) Grow() (int, error)   { return m.resized(m.pool.Grow) }
func (m *master) Shrink() (int, error) { return m.resized(m.pool.Shrink) }

func (m *master) resized(change func() (int, error)) (int, error) {
	n, err := change()
	if err == nil {
		m.log.Info().Str("event", "workers.resize").Int("workers", n).Msg("number of workers changed")
	}
	return n, err
}

func (m *master) Kill(id uint64, reason string)             { m.pool.KillAsked(id, reason) }
func (m *master) Signal(slot int, sig syscall.Signal) error { return m.pool.Signal(slot, sig) }

// Restart is no reload, but has the pool to itself like one: HUP and USR2 wait for it.
func (m *master) Restart(slot int) error {
	if !m.reloads.running.TryLock() {
		return orBusy(fmt.Errorf("%w: %w", errReloading, pool.ErrBusy))
	}
	defer m.reloads.running.Unlock()
	return orBusy(m.pool.Restart(slot, "restarted by rrdctl", nil))
}
func (m *master) DrainSlot(slot int) error   { return orBusy(m.pool.DrainSlot(slot)) }
func (m *master) UndrainSlot(slot int) error { return orBusy(m.pool.UndrainSlot(slot)) }

// orBusy tells what is only refused because something else is under way.
func orBusy(err error) error {
	if errors.Is(err, pool.ErrBusy) {
		return control.Errorf(control.CodeBusy, "%v", err)
	}
	return err
}

// Reload is HUP with an answer.
func (m *master) Reload(ctx context.Context, progress func(any)) error {
	err := m.reload(ctx, func(e pool.RollEvent) {
		event := control.SlotEvent{Slot: e.Slot, State: string(e.Step)}
		if e.Err != nil {
			event.Reason = e.Err.Error()
		}
		progress(event)
	})
	if errors.Is(err, errReloading) {
		return control.Errorf(control.CodeBusy, "%v", err)
	}
	return err
}

// Upgrade is USR2 with an answer, which is the next image's if it does not fail.
func (m *master) Upgrade(ctx context.Context, asked control.Crossing) error {
	err := m.upgrade(ctx, asked)
	if errors.Is(err, errReloading) {
		return control.Errorf(control.CodeBusy, "%v", err)
	}
	return err
}

// Dump has a worker write its stacks, which land where its stderr does.
func (m *master) Dump(slot int) (string, error) {
	if m.cfg.node() {
		return "", control.Errorf(control.CodeRefused, "Node workers have no such message: use --inspect of Node, or workers signal USR1")
	}
	for _, s := range m.pool.Snapshot().Slots {
		if s.Slot != slot {
			continue
		}
		if s.PID == 0 || !s.Native {
			return "", control.Errorf(control.CodeRefused, "slot %d has no worker that speaks rrd's protocol", slot)
		}
		if err := m.dispatcher.Dump(s.ID); err != nil {
			return "", control.Errorf(control.CodeFailed, "slot %d: %v", slot, err)
		}
		return fmt.Sprintf("slot %d: process %d writes its stacks to its stderr", slot, s.PID), nil
	}
	return "", control.Errorf(control.CodeRefused, "there is no slot %d", slot)
}

// drainPoll is how often it is looked whether connections are still open.
const drainPoll = 50 * time.Millisecond

// Drain takes the service out of rotation. It is not ready any more and still serves new
// connections, until Undrain or a stop.
func (m *master) Drain() (control.Drained, error) {
	switch {
	case m.stopping.Load():
		return control.Drained{}, control.Errorf(control.CodeRefused, "rrd is stopping")
	case m.duck.drains():
		return control.Drained{}, control.Errorf(control.CodeRefused, "the listeners are closed already: rrd waits for stop")
	}
	began := time.Now()
	m.serveOn("reason", "rrdctl drain")
	return control.Drained{Open: m.openConnections(), Seconds: time.Since(began).Seconds()}, nil
}

// DrainAndClose takes the service out of rotation for good. When --lame-duck is over it
// closes the listeners, hands on all waiting connections and waits for those that the
// workers have open. The workers stay, and so does rrd, until it is stopped.
func (m *master) DrainAndClose(ctx context.Context) (control.Drained, error) {
	if m.cfg.Policy != dispatcher.SchedRR {
		return control.Drained{}, control.Errorf(control.CodeRefused,
			"under --policy %s the workers accept by themselves, so rrd cannot end that without ending them: use stop, or drain without --close", m.cfg.Policy)
	}
	if m.stopping.Load() {
		return control.Drained{}, control.Errorf(control.CodeRefused, "rrd is stopping")
	}
	began := time.Now()
	since, backC, _ := m.leave(toClose)
	drain, first := m.waitLame(ctx, since, backC)
	if !drain {
		return control.Drained{}, control.Errorf(control.CodeFailed, "called back into rotation, or nobody waits any more: the listeners are open")
	}
	if first {
		m.log.Info().Str("event", "drain.start").Str("reason", "rrdctl drain --close").Msg("draining")
	}
	m.releaseSockets(m.current().Listen)
	limited := ctx
	if limit := m.current().DrainTimeout; limit != off {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	err := m.dispatcher.Shutdown(limited)
	open := m.openConnections()
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for err == nil && open > 0 {
		select {
		case <-tick.C:
			open = m.openConnections()
		case <-limited.Done():
			err = limited.Err()
		}
	}
	if err != nil && ctx.Err() != nil {
		return control.Drained{}, control.Errorf(control.CodeFailed, "nobody waits any more; what was begun goes on")
	}
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return control.Drained{}, fmt.Errorf("drain: %w", err)
	}
	return control.Drained{Open: m.openConnections(), Seconds: time.Since(began).Seconds()}, nil
}

// openConnections is how many connections wait, are unanswered, or are open in
// workers that report that; if the dispatcher does not answer, at least one.
func (m *master) openConnections() (n int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s, err := m.dispatcher.Stats(ctx)
	if err != nil {
		return 1
	}
	for i := range s.Listeners {
		n += s.Listeners[i].Queued + s.Listeners[i].InFlight
	}
	for i := range s.Slots {
		n += int(max(s.Slots[i].Active, 0))
	}
	return n
}

// Stop does what TERM does, or a second TERM, and waits for the end.
func (m *master) Stop(ctx context.Context, now bool) (control.Stopped, error) {
	backC := m.duck.backC()
	select {
	case m.ctl.stopC <- now:
	case <-m.ctl.overC:
	case <-ctx.Done():
		return control.Stopped{}, ctx.Err()
	}
	select {
	case <-m.ctl.overC:
	case <-backC:
		return control.Stopped{}, control.Errorf(control.CodeFailed, "rrd was called back into rotation (undrain)")
	case <-ctx.Done():
		select {
		case <-m.ctl.overC: // both at once: that is the end
		default:
			return control.Stopped{}, control.Errorf(control.CodeFailed, "nobody waits any more; what was begun goes on")
		}
	}
	return m.ctl.ended, nil
}

// Status puts together what everybody knows. Of a dispatcher that does not answer
// it has nothing, and says so.
func (m *master) Status(ctx context.Context) control.Status {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	b := buildInfo()
	s := control.Status{
		Version: b.Version, Revision: b.Revision, PID: os.Getpid(), Time: time.Now(), Started: m.started,
		Policy: string(m.cfg.Policy), PolicyReason: m.cfg.PolicyReason, Control: m.ctl.at, Metrics: m.metricsAt,
		Draining: m.draining.Load(), LameDuck: m.duck.lame(), Stopping: m.stopping.Load(), LogLevel: m.ctl.gate.get().String(),
		Listeners: []control.ListenerStatus{},
	}
	if r := m.reloadCounts(); r.OK+r.Failed > 0 {
		s.Reload = &control.Reload{OK: r.LastFailure == "", Error: r.LastFailure, LastSuccess: r.LastSuccess}
	}
	if u := m.upgradeCounts(); u.OK+u.Failed > 0 {
		s.Upgrade = &control.Upgrade{OK: u.OK, Failed: u.Failed, Error: u.LastFailure}
	}
	p := m.pool.Snapshot()
	s.Desired = p.Desired
	counts, err := m.snapshot(ctx)
	is := metrics.Ready(counts, err)
	s.Ready, s.Reason = is.OK, oneLine(is.Reason)
	if err != nil {
		s.Workers = workerStatuses(p, nil)
		return s
	}
	s.QueueLimit, s.Redispatches = counts.QueueLimit, counts.Redispatches
	for _, h := range counts.Helpers {
		s.Helpers = append(s.Helpers, control.HelperStatus(h))
	}
	s.Dispatch = control.Histogram{Bounds: metrics.DurationBounds, Counts: counts.Dispatch.Counts}
	for i := range counts.Listeners {
		s.Listeners = append(s.Listeners, listenerStatus(&counts.Listeners[i]))
	}
	s.Workers = workerStatuses(p, counts)
	return s
}

func (m *master) Workers(ctx context.Context) control.Workers {
	s := m.Status(ctx)
	return control.Workers{Policy: s.Policy, Desired: s.Desired, Workers: s.Workers}
}

func listenerStatus(l *metrics.Listener) control.ListenerStatus {
	out := control.ListenerStatus{
		Name: l.Name, Network: l.Network, Address: l.Address, Shared: l.Shared, Paused: l.Paused,
		Accepted: l.Accepted, Acked: l.Acked, Rescued: l.Rescued, Dropped: l.Dropped, Queued: l.Queued, InFlight: l.InFlight,
		LawHolds: l.Law().Holds, Rearmed: l.Rearmed, Unreachable: l.Unreachable,
	}
	if q := l.KernelQueue; q != nil {
		out.KernelQueue = &control.KernelQueue{Length: q.Length, Limit: q.Limit, Drops: q.Drops}
	}
	return out
}

// workerStatuses joins what the pool knows of each slot with the counts of it,
// which may be missing.
func workerStatuses(p pool.Snapshot, counts *metrics.Snapshot) []control.WorkerStatus {
	out := make([]control.WorkerStatus, 0, len(p.Slots))
	for i := range p.Slots {
		slot := &p.Slots[i]
		w := control.WorkerStatus{
			Slot: slot.Slot, PID: slot.PID, State: string(slot.State),
			Held: slot.Held, Restarts: slot.Restarts, Backoff: slot.StartsIn.Seconds(),
		}
		if slot.PID > 0 {
			w.Generation, w.Uptime = slot.Generation, slot.Uptime.Seconds()
			w.CPU, w.RSS, w.FDs = processFacts(slot.PID)
		}
		if slot.LastExit != nil {
			w.LastExit = slot.LastExit.String()
		}
		others := slot.Older
		if slot.Next != nil {
			others = append(slices.Clone(others), *slot.Next)
		}
		for _, o := range others {
			w.Others = append(w.Others, control.OtherProcess{Name: o.Name(), PID: o.PID, State: string(o.State), Uptime: o.Uptime.Seconds()})
		}
		if counts != nil {
			at := slices.IndexFunc(counts.Workers, func(c metrics.Worker) bool { return c.Slot == slot.Slot })
			if at >= 0 {
				addCounts(&w, &counts.Workers[at], counts.Time)
			}
		}
		out = append(out, w)
	}
	return out
}

func addCounts(w *control.WorkerStatus, c *metrics.Worker, now time.Time) {
	w.Handoffs, w.Acks, w.InFlight, w.Active, w.Late = c.Handoffs, c.Acks, c.InFlight, c.Active, c.Late
	w.Rejections, w.Failures = c.Rejections.Total(), c.Failures.Total()
	if c.State == metrics.StateUnhealthy && w.State == string(pool.StateReady) {
		w.State = metrics.StateUnhealthy
	}
	if !c.Heartbeat.IsZero() {
		ago := max(now.Sub(c.Heartbeat).Seconds(), 0)
		w.Heard = &ago
	}
}
