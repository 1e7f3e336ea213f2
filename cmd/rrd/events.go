//go:build unix

package main

import (
	"os"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"rrd/dispatcher"
	"rrd/handoff"
	"rrd/worker/pool"
)

// What one room tells another, and the log. Both rooms call these from
// goroutines of their own, one event after the other.

func (m *master) dispatcherConfig() dispatcher.Config {
	c := m.cfg
	return dispatcher.Config{
		Policy: c.Policy, QueueLimit: c.QueueLimit, QueueTimeout: max(c.QueueTimeout, 0),
		Window: c.HandoffWindow, BusyAfter: orForever(c.BusyAfter), HangTimeout: max(c.HangTimeout, 0),
		RescueLimit: c.RescueLimit, MaxActive: c.MaxConnectionsActive, MaxAsked: c.askedLimit(),
		DrainTimeout: max(c.DrainTimeout, 0), TicketRotate: max(c.TicketRotate, 0), Configured: len(c.Listen) > 0, NonblockingShared: c.node(), Log: m.log,
		Hooks: dispatcher.Hooks{
			Spoke:   func(id uint64) { m.pool.Spoke(id) },
			Ready:   func(id uint64) { m.pool.Ready(id) },
			Drained: func(id uint64) { m.pool.Drained(id) },
			Reader:  func(id uint64, pid int) { m.pool.SetReader(id, pid) },
			Health:  m.workerHealth,
			HungUp:  func(id uint64) { m.pool.HungUp(id) },
			Leaves: func(id uint64) {
				m.ofWorker(m.log.Info().Str("event", "worker.leaves"), id).Msg("worker leaves of its own accord")
				m.pool.Leaves(id)
			},
			Broke: func(id uint64, reason string) {
				m.ofWorker(m.log.Error().Str("event", "worker.broke"), id).Str("reason", reason).
					Msg("worker broke the protocol and is ended")
				m.pool.Kill(id, reason)
			},
			TicketsRotated: func(serial uint64, workers int) {
				m.log.Info().Str("event", "tickets.rotate").Uint64("serial", serial).Int("workers", workers).
					Msg("new key for TLS session tickets")
			},
			Hung: func(id uint64, owed time.Duration) {
				m.ofWorker(m.log.Error().Str("event", "worker.hung"), id).Float64("duration_s", owed.Seconds()).
					Msg("worker has not answered for too long and is ended")
				reason := "hung: it owed an answer for " + owed.Round(time.Millisecond).String()
				if sig := m.current().HangSignal; sig != syscall.SIGKILL {
					m.pool.Abort(id, sig, reason)
					return
				}
				m.pool.Kill(id, reason)
			},
			Opened: func(i dispatcher.ListenerInfo) { m.logListener("listener.open", i) },
			Closed: func(i dispatcher.ListenerInfo) { m.logListener("listener.close", i) },
			Dropped: func(name string, why dispatcher.DropReason, n uint64) {
				if !m.flood.passes("connection.dropped", allSlots) {
					return
				}
				m.log.Warn().Str("event", "connection.dropped").Str("listener", dispatcher.Printable(name)).Str("reason", why.String()).
					Uint64("connections", n).Msg("connections dropped")
			},
			Waiting: func(name string, n int, why string) {
				if !m.flood.passes("connection.waiting", allSlots) {
					return
				}
				m.log.Warn().Str("event", "connection.waiting").Str("listener", dispatcher.Printable(name)).Int("queue", n).Str("reason", why).
					Msg("connections wait for a worker")
			},
			AcceptPaused: func(name string, err error, pause time.Duration) {
				m.log.Error().Str("event", "accept.paused").Str("listener", dispatcher.Printable(name)).Err(err).
					Float64("duration_s", pause.Seconds()).Msg("accepting pauses")
			},
			Refused: func(id uint64, network, address string, err error) {
				if !m.flood.passes("listener.refused", m.slotOf(id)) {
					return
				}
				m.ofWorker(m.log.Error().Str("event", "listener.refused"), id).Str("network", dispatcher.Printable(network)).
					Str("address", dispatcher.Printable(address)).Err(err).Msg("a worker did not get the listener that it asked for")
			},
			HelperWanted:  m.helpers.want,
			HelperUseless: m.helpers.useless,
			Rearmed:       m.listenerRearmed, Unreachable: m.listenerUnreachable,
			Filtered: func(f dispatcher.Filter) {
				if !m.flood.passes("listener.filtered", allSlots) {
					return
				}
				m.log.Error().Str("event", "listener.filtered").Str("listener", dispatcher.Printable(f.Listener.Name)).
					Str("address", dispatcher.Printable(f.Listener.Address)).Str("kind", f.Kind.String()).Int("times", f.Times).
					Msg("rrd removed a filter that a worker had attached to the shared listener")
			},
			Ignored: func(i dispatcher.ListenerInfo) {
				if !m.flood.passes("listener.ignored", allSlots) {
					return
				}
				m.log.Error().Str("event", "listener.ignored").Str("listener", dispatcher.Printable(i.Name)).Str("address", dispatcher.Printable(i.Address)).
					Msg("clients wait and no worker accepts them: does the program use the listeners of LISTEN_FDS?")
			},
		},
	}
}

// slotOf returns the slot of a worker, or allSlots if it is not known.
func (m *master) slotOf(id uint64) int {
	if slot, ok := m.slots.Load(id); ok {
		return slot.(int)
	}
	return allSlots
}

// leftOut logs the number of records that a floodgate has left out.
func (m *master) leftOut(f flood, records int) {
	e := m.log.Warn().Str("event", "log.left_out").Str("of", f.event).Int("records", records)
	if f.slot != allSlots {
		e = e.Int("worker", f.slot)
	}
	e.Msg("records were left out because they came too fast")
}

// ofWorker adds to a line which worker it is about.
func (m *master) ofWorker(e *zerolog.Event, id uint64) *zerolog.Event {
	if slot, ok := m.slots.Load(id); ok {
		e = e.Int("worker", slot.(int))
	}
	return e.Uint64("worker_id", id)
}

// orForever makes "off" a time that never comes.
func orForever(d time.Duration) time.Duration {
	if d == off {
		return 100 * 365 * 24 * time.Hour
	}
	return d
}

func (m *master) logListener(event string, i dispatcher.ListenerInfo) {
	if i.Asked && !m.flood.passes(event, allSlots) {
		return
	}
	m.log.Info().Str("event", event).Str("listener", dispatcher.Printable(i.Name)).Str("network", i.Network).Str("address", dispatcher.Printable(i.Address)).
		Bool("asked", i.Asked).Bool("shared", i.Shared).Msg("listener")
}

func (m *master) poolConfig(environ []string) pool.Config {
	c := m.cfg
	command := c.Command
	if c.builtIn() {
		command = m.builtInCommand(m.listeners)
	}
	return pool.Config{
		Size: c.Workers, Argv: command, Dir: c.Chdir, Env: environ, ExtraEnv: c.Env,
		Credential: c.Credential, Account: c.Account, NoFile: c.WorkerNoFile, StopSignal: c.StopSignal, Protocol: m.protocol(),
		// A Node program gets its listeners by its channel under every policy.
		SharesListeners: c.Policy != dispatcher.SchedRR && len(c.Listen) > 0 && !c.node(),
		Pair:            m.channels(),
		SilentAfter:     silentAfter(c.StartTimeout),
		StartTimeout:    c.StartTimeout, ReadyAfter: c.ReadyAfter, DrainTimeout: c.DrainTimeout, DrainSpread: c.DrainSpread,
		StopTimeout: c.StopTimeout,
		RespawnMin:  c.RespawnMin, RespawnMax: c.RespawnMax, Restart: c.Restart, Output: m.workerOutput(),
		Hooks: pool.Hooks{
			Listeners: m.lend, BeforeSpawn: m.beforeSpawn, MayResize: m.mayResize,
			Started: m.workerStarted, Ready: m.workerReady, Silent: m.workerSilent, Drain: m.workerDrain,
			Replaced: m.workerReplaced, Restored: m.workerRestored,
			Orphaned: m.workerOrphaned, Exited: m.workerExited, SpawnFailed: m.spawnFailed,
			Backoff: func(slot int, d time.Duration) {
				m.log.Info().Str("event", "worker.backoff").Int("worker", slot).Float64("duration_s", d.Seconds()).
					Msg("worker is started again after a pause")
			},
		},
	}
}

// channels returns what makes them; nil stands for rrd's own protocol.
func (m *master) channels() func(slot int) (handoff.Channel, *os.File, error) {
	if m.cfg.node() {
		return m.nodePair
	}
	return nil
}

// silentAfter is when a worker that says nothing is spoken of: after five
// seconds, or before the start timeout ends it.
func silentAfter(start time.Duration) time.Duration {
	const silent = 5 * time.Second
	if start != off && start <= silent {
		return start * 3 / 4
	}
	return silent
}

// protocol spares the built-in worker what it does not need.
func (m *master) protocol() pool.Protocol {
	if m.cfg.builtIn() && m.cfg.WorkerProtocol == pool.ProtocolAuto {
		return pool.ProtocolNative
	}
	return m.cfg.WorkerProtocol
}

func (m *master) workerOutput() pool.Output {
	mode := m.cfg.WorkerOutput
	if mode == "auto" {
		mode = string(pool.OutputRaw)
		if isTerminal(os.Stderr) {
			mode = string(pool.OutputPrefix)
		}
	}
	return pool.Output{Mode: pool.OutputMode(mode), Writer: forJournal(m.environ, m.stdout, zerolog.InfoLevel), Accepted: m.accepted, Lost: m.outputLost, Record: func(l pool.Line) {
		e := m.output.Info().Str("event", "worker.output").Int("worker", l.Worker.Slot).Int("worker_pid", l.Worker.PID).
			Str("stream", l.Stream).Bytes("line", l.Text)
		if l.More {
			e = e.Bool("more", true)
		}
		if l.Lost > 0 {
			e = e.Uint64("lost", l.Lost)
		}
		e.Msg("output")
	}}
}

func (m *master) outputLost(lines uint64) {
	m.log.Warn().Str("event", "worker.output_lost").Uint64("lines", lines).
		Msg("worker output was lost because stdout or stderr took nothing for a second")
}

// lend gives the listeners of a generation for one spawn, in the order of its
// configuration.
func (m *master) lend(slot, generation int) ([]pool.Inherited, error) {
	lent, err := m.dispatcher.Lend(slot)
	if err != nil {
		return nil, err
	}
	var in []pool.Inherited
	list, _ := m.listenersOf(generation)
	for _, c := range list {
		for i, l := range lent {
			if l.File != nil && l.Address == c.Address && l.Name == dispatcher.FDName(c.Name) {
				in = append(in, pool.Inherited{Name: l.Name, File: l.File})
				lent[i].File = nil
			}
		}
	}
	for _, l := range lent {
		_ = l.File.Close() // of another generation; nil is an error only
	}
	return in, nil
}

func (m *master) workerStarted(w pool.Worker, ch handoff.Channel) {
	m.log.Info().Str("event", "worker.start").Int("worker", w.Slot).Int("worker_pid", w.PID).
		Int("generation", w.Generation).Uint64("worker_id", w.ID).Msg("worker started")
	if ch == nil {
		return
	}
	m.slots.Store(w.ID, w.Slot)
	_, hidden := m.listenersOf(w.Generation)
	err := m.dispatcher.Add(dispatcher.Worker{ID: w.ID, Slot: w.Slot, Channel: ch, Rights: m.rights(), Hidden: hidden})
	if err != nil {
		m.log.Error().Str("event", "worker.add_failed").Int("worker", w.Slot).Err(err).Msg("worker cannot be given connections")
		m.pool.Kill(w.ID, err.Error())
	}
}

// rights are those of --user and --group.
func (m *master) rights() *dispatcher.Rights {
	c := m.current().Credential
	if c == nil {
		return nil
	}
	r := &dispatcher.Rights{UID: int(c.UID), GID: int(c.GID)}
	for _, g := range c.Groups {
		r.Groups = append(r.Groups, int(g))
	}
	return r
}

func (m *master) workerReady(w pool.Worker) {
	m.log.Info().Str("event", "worker.ready").Int("worker", w.Slot).Int("worker_pid", w.PID).
		Int("generation", w.Generation).Float64("duration_s", time.Since(w.Started).Seconds()).Msg("worker ready")
	m.settled(w.Slot, true)
	m.notify.becameReady(m.statusText)
	m.hookReady(w)
}

// settled notes how the first start of a slot went, and says "ready" when that is
// known of each: one that is broken must not keep those who wait for the event.
func (m *master) settled(slot int, ready bool) {
	m.mu.Lock()
	m.wasReady[slot] = m.wasReady[slot] || ready
	n := 0
	for _, ready := range m.wasReady {
		if ready {
			n++
		}
	}
	say := !m.announced && !m.draining.Load() && n > 0 && len(m.wasReady) >= m.cfg.Workers
	m.announced = m.announced || say
	m.mu.Unlock()
	if say {
		m.log.Info().Str("event", "ready").Int("workers", n).Str("policy", string(m.cfg.Policy)).
			Float64("duration_s", time.Since(m.started).Seconds()).Msg("workers are ready")
	}
}

func (m *master) workerSilent(w pool.Worker) {
	e, why := m.log.Error(), ""
	if m.cfg.node() {
		// It may serve all the same, past us; and what is wrong with one is wrong
		// with all of them.
		if m.saidSilent.Swap(true) {
			return
		}
		e, why = m.log.Warn(), m.cfg.nodeCure()
	} else {
		why = m.waysOut()
	}
	e.Str("event", "worker.silent").Int("worker", w.Slot).Int("worker_pid", w.PID).Strs("command", m.current().Command).
		Str("reason", why).Msg("worker says nothing on its channel")
}

// waysOut is what to do about a program that does not speak to rrd.
func (m *master) waysOut() string {
	c := m.cfg
	switch {
	case c.Policy == dispatcher.SchedRR:
		return "under --policy rr a worker must speak to rrd: (1) a Go program uses rrd's worker library, or any language docs/protocol.md; " +
			"(2) --policy none or reuseport for a program that takes its listeners by LISTEN_FDS; (3) a Node program, which is recognised by its name or first line, or by --worker-protocol node"
	case c.WorkerProtocol == pool.ProtocolNative:
		return "with --worker-protocol rrd a worker must speak to rrd: leave it out for a program that takes its listeners by LISTEN_FDS"
	}
	return "without --listen a worker must ask rrd for its listeners: add --listen for a program that takes them by LISTEN_FDS"
}

func (m *master) workerDrain(w pool.Worker) {
	m.log.Info().Str("event", "worker.drain").Int("worker", w.Slot).Int("worker_pid", w.PID).Msg("worker drains")
	if err := m.dispatcher.Drain(w.ID); err != nil {
		m.log.Error().Str("event", "worker.drain").Int("worker", w.Slot).Err(err).Msg("worker could not be told to drain")
	}
}

// workerReplaced is a hook of the pool: a roll keeps the worker, and its successor gets
// the connections.
func (m *master) workerReplaced(w pool.Worker) {
	if err := m.dispatcher.Replace(w.ID); err != nil {
		m.log.Error().Str("event", "worker.replaced").Int("worker", w.Slot).Err(err).Msg("a replaced worker still gets connections")
	}
}

// workerRestored is a hook of the pool: the roll has failed, and a kept worker gets
// connections again.
func (m *master) workerRestored(w pool.Worker) {
	if err := m.dispatcher.Reinstate(w.ID); err != nil {
		m.log.Error().Str("event", "worker.restored").Int("worker", w.Slot).Err(err).Msg("worker cannot be given connections")
	}
}

func (m *master) workerExited(w pool.Worker, x pool.Exit) {
	e := m.log.Info()
	if !x.Requested && !x.Left {
		e = m.log.Error()
	}
	e = e.Str("event", "worker.exit").Int("worker", w.Slot).Int("worker_pid", w.PID).Int("generation", w.Generation).
		Bool("requested", x.Requested).Str("cause", x.Cause.String()).Float64("duration_s", x.Uptime.Seconds())
	if x.Signal != 0 {
		e = e.Str("signal", x.Signal.String()).Int("signal_number", int(x.Signal))
	} else {
		e = e.Int("exit_code", x.Code)
	}
	if x.Reason != "" {
		e = e.Str("reason", x.Reason)
	}
	e.Msg("worker exited")
	m.hookExit(w, x)
	m.settled(w.Slot, false)
	if err := m.dispatcher.Remove(w.ID, dispatcher.Removal{Blame: x.Blame()}); err != nil {
		m.log.Error().Str("event", "worker.exit").Int("worker", w.Slot).Err(err).Msg("what the worker left could not be taken back")
	}
	m.slots.Delete(w.ID)
	m.mu.Lock()
	if t := m.failing[w.ID]; t != nil {
		t.Stop()
		delete(m.failing, w.ID)
	}
	m.mu.Unlock()
	if m.slotIsDown(w.Slot) {
		_ = m.dispatcher.ForgetSlot(w.Slot) // it fails only when everything ends
	}
}

// workerOrphaned: the process that was started is dead, the one that reads the
// channel is not.
func (m *master) workerOrphaned(w pool.Worker) {
	m.log.Info().Str("event", "worker.orphaned").Int("worker", w.Slot).Int("worker_pid", w.PID).Int("generation", w.Generation).
		Msg("the command has ended and a process that it started has not: what that one has read stays with it until it is dead")
	if err := m.dispatcher.Disown(w.ID); err != nil {
		m.log.Error().Str("event", "worker.orphaned").Int("worker", w.Slot).Err(err).Msg("what it had not read could not be taken back")
	}
}

// workerHealth replaces a worker whose own check fails for too long.
func (m *master) workerHealth(id uint64, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.failing[id]; t != nil {
		t.Stop()
		delete(m.failing, id)
	}
	if ok {
		if m.flood.passes("worker.healthy", m.slotOf(id)) {
			m.ofWorker(m.log.Info().Str("event", "worker.healthy"), id).Msg("the worker's own health check passes again")
		}
		return
	}
	if m.flood.passes("worker.unhealthy", m.slotOf(id)) {
		m.ofWorker(m.log.Warn().Str("event", "worker.unhealthy"), id).Msg("the worker's own health check fails: it gets nothing new")
	}
	if after := m.current().UnhealthyAfter; after != off {
		m.failing[id] = time.AfterFunc(after, func() {
			m.pool.Retire(id, "its own health check has failed for "+after.String())
		})
	}
}

func (m *master) slotIsDown(slot int) bool {
	for _, s := range m.pool.Snapshot().Slots {
		if s.Slot == slot {
			return s.State == pool.StateDown
		}
	}
	return true
}

func (m *master) spawnFailed(slot int, err error) {
	m.log.Error().Str("event", "worker.spawn_failed").Int("worker", slot).Err(err).Msg("worker could not be started")
	m.settled(slot, false)
}
