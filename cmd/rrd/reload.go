//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"rrd/dispatcher"
	"rrd/metrics"
	"rrd/worker/pool"
)

// A reload reads flags, environment and file again (only the file can have changed)
// and makes the running master what they say, without a moment in which it serves
// worse: everything is checked first, new listeners are opened, workers are rolled
// successor first, and what is not wanted any more is closed last. Whatever fails,
// the master is afterwards as it was.

// frozenSettings are those that need a restart. The policy decides who accepts, and
// a master has one.
var frozenSettings = []string{"policy", "worker-protocol", "ready-on-message", "worker-output", "control", "control-uid", "metrics", "log-format"}

// reloads is what became of them.
type reloads struct {
	running sync.Mutex // held by the one that is under way
	wanted  *wish      // of HUP
	rolling sync.Mutex // held while a worker is recycled, and by a reload: it waits for that

	mu          sync.Mutex
	ok, failed  uint64
	lastOK      time.Time // of the last that succeeded, or of the start
	lastFailure string    // of the last one; "": it succeeded
}

// A wish is what a signal asks for. Those that come before it is heeded are one.
type wish struct {
	tokenC chan struct{}
	open   atomic.Bool // the token was taken, and it has not begun yet
}

func newWish() *wish { return &wish{tokenC: make(chan struct{}, 1)} }

func (w *wish) want() {
	select {
	case w.tokenC <- struct{}{}:
	default:
	}
}

// pending says whether it is still to be heeded.
func (w *wish) pending() bool { return w.open.Load() || len(w.tokenC) > 0 }

// heed does it when mu is free.
func (w *wish) heed(mu *sync.Mutex, do func()) {
	w.open.Store(true)
	mu.Lock()
	defer mu.Unlock()
	w.open.Store(false)
	do()
}

// errReloading is what a reload gets while another is under way.
var errReloading = errors.New("a reload, an upgrade or a restart is under way: try again when it is done")

// reloadOnSignal reloads when HUP comes, once for all that came during one, until
// ctx ends. Its caller waits for it.
func (m *master) reloadOnSignal(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.reloads.wanted.tokenC:
			m.reloads.wanted.heed(&m.reloads.running, func() { _ = m.reloadHeld(ctx, nil) }) // it is logged
		}
	}
}

// wantReload is HUP.
func (m *master) wantReload() { m.reloads.wanted.want() } // one that waits has not read the file yet

// reload reads the configuration again, makes the master follow it, and rolls all
// workers. progress, if not nil, is told of each step of the roll.
func (m *master) reload(ctx context.Context, progress func(pool.RollEvent)) error {
	if !m.reloads.running.TryLock() {
		return errReloading
	}
	defer m.reloads.running.Unlock()
	return m.reloadHeld(ctx, progress)
}

func (m *master) reloadHeld(ctx context.Context, progress func(pool.RollEvent)) error {
	began := time.Now()
	m.log.Info().Str("event", "reload.start").Msg("reloading")
	defer m.notify.reloading(m.statusText)()
	m.reloads.rolling.Lock()
	defer m.reloads.rolling.Unlock()
	next, diff, err := m.readAgain()
	if err == nil {
		_, err = m.checkFiles(ctx, next) // it is logged
	}
	checked := time.Now()
	if err == nil {
		err = m.follow(ctx, next, diff, progress)
	}
	m.noteReload(err)
	if err != nil {
		m.log.Error().Str("event", "reload.failed").Err(err).Float64("duration_s", time.Since(began).Seconds()).
			Msg("reload failed")
		return err
	}
	m.rerolls.cover(checked)
	m.log.Info().Str("event", "reload.done").Int("workers", next.Workers).Float64("duration_s", time.Since(began).Seconds()).
		Msg("reloaded")
	return nil
}

func (m *master) noteReload(err error) {
	r := &m.reloads
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.failed++
		r.lastFailure = oneLine(err.Error())
		return
	}
	r.ok++
	r.lastOK, r.lastFailure = time.Now(), ""
}

// reloadCounts is for the metrics.
func (m *master) reloadCounts() metrics.Reloads {
	r := &m.reloads
	r.mu.Lock()
	defer r.mu.Unlock()
	return metrics.Reloads{OK: r.ok, Failed: r.failed, LastSuccess: r.lastOK, LastFailure: r.lastFailure}
}

// readAgain reads and checks the configuration; nothing is changed.
func (m *master) readAgain() (*config, *listenerDiff, error) {
	if m.ends() {
		return nil, nil, errors.New("rrd is being stopped")
	}
	next, err := m.parseAgain(thisHost(), m.args)
	if err != nil {
		return nil, nil, err
	}
	diff, err := m.compare(next)
	return next, diff, err
}

// compare says how the listeners of next differ, or why this master cannot become what
// next says. Whether its new addresses can be had is not looked at.
func (m *master) compare(next *config) (*listenerDiff, error) {
	now := m.current()
	for _, name := range frozenSettings {
		if was, is := now.settings[name].values, next.settings[name].values; !slices.Equal(was, is) {
			return nil, next.bad(name, strings.Join(is, ","), fmt.Sprintf("needs a restart of rrd: it runs with %q", strings.Join(was, ",")))
		}
	}
	if next.Policy != now.Policy {
		return nil, next.bad("policy", string(next.Policy), fmt.Sprintf("needs a restart of rrd: it runs with %q", now.Policy))
	}
	if next.builtIn() != now.builtIn() || next.WorkerProtocol != now.WorkerProtocol {
		return nil, fmt.Errorf("command %q: takes workers of another kind, which needs a restart of rrd", next.Command)
	}
	if err := next.checkDirectory(); err != nil {
		return nil, err
	}
	if err := next.checkCommand(); err != nil {
		return nil, err
	}
	for i := range next.Listen {
		next.Listen[i].File = nil // an fd: listener that stays is open already
	}
	diff, err := diffListeners(now.Listen, next.Listen)
	if err != nil {
		return nil, located("listen", next.origin("listen"), err)
	}
	wanted := next.Workers
	next.Workers = max(next.Workers, m.pool.Snapshot().Desired)
	defer func() { next.Workers = wanted }()
	return diff, fitBudget(next)
}

// follow makes the master what next says.
func (m *master) follow(ctx context.Context, next *config, diff *listenerDiff, progress func(pool.RollEvent)) error {
	was := m.current()
	opened, infos, err := m.openListeners(diff)
	if err != nil {
		return fmt.Errorf("--listen: %w%s (from %s)", err, bindAdvice(err), next.origin("listen"))
	}
	logWarnings(m.log, next)
	m.between.Store(&between{m.pool.Snapshot().Generations, was.Listen, next.Listen, diff.removed, diff.open})
	defer m.between.Store(nil)
	level := m.ctl.gate.get() // rrdctl may have set another than was has
	err = m.becomes(next, diff.changed)
	if err == nil {
		infos = append(m.keptListeners(diff), infos...)
		how := pool.RollConfig{
			Surge: next.Surge, Canary: max(next.CanaryTime, 0), Keep: next.RollKeep,
			BeforeDrain: func() { m.settleListeners(ctx, infos, diff) },
		}
		if m.cfg.Policy != dispatcher.SchedRR && diff.overlaps() {
			// Each generation accepts from its own sockets, so both must be there to the end.
			how.Keep, how.AtOnce = 0, true
		}
		if was.Workers != next.Workers {
			how.Size = next.Workers
		}
		err = m.pool.Roll(m.template(next, infos), how, m.rollProgress(progress))
	}
	if err != nil {
		err = errors.Join(err, m.goBack(was, diff, opened))
		m.ctl.gate.set(level)
		return err
	}
	m.closeStopped(ctx, m.stopsFirst(diff.removed, diff.open))
	m.sealPorts(diff)
	return m.resizeTo(was, next)
}

// settleListeners closes the listeners that the new generation does not have. The old
// generation has them and does not drain yet.
func (m *master) settleListeners(ctx context.Context, infos []dispatcher.ListenerInfo, diff *listenerDiff) {
	m.listeners = infos
	m.releaseSockets(diff.removed)
	m.keepSockets(diff.open)
	first := m.stopsFirst(diff.removed, diff.open)
	m.closeListeners(ctx, without(diff.removed, first))
	m.stopListeners(ctx, first)
}

// between is a roll from one list of listeners to another. Both are open meanwhile, and
// each generation is to see only its own: a program may count on how many there are.
type between struct {
	after           int // newer generations are of the next list
	was, next       []dispatcher.ListenerConfig
	leaving, coming []dispatcher.ListenerConfig
}

// listenersOf returns those of a generation's workers, and those they are not given.
func (m *master) listenersOf(generation int) (list, hidden []dispatcher.ListenerConfig) {
	switch b := m.between.Load(); {
	case b == nil:
		return m.current().Listen, nil
	case generation > b.after:
		return b.next, b.leaving
	default:
		return b.was, b.coming
	}
}

// becomes has what takes effect at once take effect.
func (m *master) becomes(c *config, changed []dispatcher.ListenerConfig) error {
	for _, ln := range changed {
		if err := m.dispatcher.ChangeListener(ln); err != nil {
			return err
		}
	}
	m.limits.Lock()
	defer m.limits.Unlock()
	if err := m.dispatcher.SetLimits(c.dispatcherLimits()); err != nil {
		return err
	}
	if err := m.pool.SetLimits(c.poolLimits()); err != nil {
		return err
	}
	if c.LogLevel != m.current().LogLevel {
		m.ctl.gate.set(c.LogLevel)
	}
	m.live.Store(c)
	return nil
}

// goBack undoes what a reload has begun.
func (m *master) goBack(was *config, diff *listenerDiff, opened []dispatcher.ListenerConfig) error {
	err := m.becomes(was, diff.before)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	first := m.stopsFirst(opened, diff.removed)
	m.stopListeners(ctx, first)
	m.closeStopped(ctx, first)
	m.closeListeners(ctx, without(opened, first))
	return err
}

// resizeTo follows a number of workers that the configuration has changed. More of them
// came with the roll, and have been ready. What TTIN, TTOU and rrdctl have made of it holds
// until then.
func (m *master) resizeTo(was, next *config) error {
	if was.Workers == next.Workers {
		return nil
	}
	if err := m.pool.Resize(next.Workers); err != nil {
		return fmt.Errorf("--workers: %w (from %s): all workers are new, their number is as before", err, next.origin("workers"))
	}
	m.log.Info().Str("event", "workers.resize").Int("workers", next.Workers).Msg("number of workers changed")
	return nil
}

// rollProgress logs the steps of a roll and passes them on.
func (m *master) rollProgress(progress func(pool.RollEvent)) func(pool.RollEvent) {
	return func(e pool.RollEvent) {
		l := m.log.Info()
		if e.Err != nil {
			l = m.log.Error().Err(e.Err)
		}
		l.Str("event", "reload.step").Int("worker", e.Slot).Str("step", string(e.Step)).Msg("roll")
		if progress != nil {
			progress(e)
		}
	}
}

func (m *master) openListeners(diff *listenerDiff) (opened []dispatcher.ListenerConfig, infos []dispatcher.ListenerInfo, err error) {
	for _, c := range diff.open {
		info, err := m.dispatcher.ListenBeside(c, diff.removed)
		if err != nil {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			m.closeListeners(ctx, opened)
			return nil, nil, err
		}
		opened, infos = append(opened, c), append(infos, info)
	}
	return opened, infos, nil
}

// keptListeners are those that stay.
func (m *master) keptListeners(diff *listenerDiff) []dispatcher.ListenerInfo {
	return slices.DeleteFunc(slices.Clone(m.listeners), func(i dispatcher.ListenerInfo) bool {
		return slices.ContainsFunc(diff.removed, func(c dispatcher.ListenerConfig) bool { return c.Name == i.Name })
	})
}

func (m *master) closeListeners(ctx context.Context, list []dispatcher.ListenerConfig) {
	for _, c := range list {
		if err := m.dispatcher.CloseListener(ctx, c.Name, c.Address); err != nil {
			m.log.Error().Str("event", "listener.close").Str("listener", c.Name).Err(err).Msg("listener is not closed yet")
		}
	}
}

// listenerDiff is what a reload does with the listeners. Kept ones keep their socket
// and its queue.
type listenerDiff struct {
	open, removed   []dispatcher.ListenerConfig
	changed, before []dispatcher.ListenerConfig // the same ones as they are to be, and were
}

func diffListeners(was, next []dispatcher.ListenerConfig) (*listenerDiff, error) {
	d := &listenerDiff{}
	kept := make([]bool, len(was))
	for _, n := range next {
		at := func(w dispatcher.ListenerConfig) bool { return w.Network == n.Network && w.Address == n.Address }
		// By name first: of port 0 there can be several.
		i := slices.IndexFunc(was, func(w dispatcher.ListenerConfig) bool { return at(w) && w.Name == n.Name })
		if i < 0 {
			i = slices.IndexFunc(was, at)
		}
		switch {
		case i < 0 && n.Network == "fd":
			return nil, badValue("fd:"+n.Address, "is new, and descriptors come when rrd is started: it needs a restart")
		case i < 0:
			d.open = append(d.open, n)
			continue
		}
		w := was[i]
		kept[i] = true
		switch {
		case w.Name != n.Name:
			return nil, badValue(n.Name, "is another name for the open listener %q: that needs a restart", w.Name)
		case !sameMode(w, n) || w.UID != n.UID || w.GID != n.GID:
			return nil, badValue(n.Name, "has another mode or owner than its open socket: that needs a restart, or another path")
		case w.Backlog != n.Backlog || w.As != n.As:
			d.changed, d.before = append(d.changed, n), append(d.before, w)
		}
	}
	for i, w := range was {
		if !kept[i] {
			d.removed = append(d.removed, w)
		}
	}
	return d, nil
}

func sameMode(a, b dispatcher.ListenerConfig) bool {
	if a.Mode == nil || b.Mode == nil {
		return a.Mode == b.Mode
	}
	return *a.Mode == *b.Mode
}

// template is what workers are started with.
func (m *master) template(c *config, listeners []dispatcher.ListenerInfo) pool.Template {
	argv := c.Command
	if c.builtIn() {
		argv = m.builtInCommand(listeners)
	}
	return pool.Template{Argv: argv, Dir: c.Chdir, ExtraEnv: c.Env, Credential: c.Credential, Account: c.Account, NoFile: c.WorkerNoFile}
}

func (c *config) dispatcherLimits() dispatcher.Limits {
	return dispatcher.Limits{
		QueueLimit: c.QueueLimit, QueueTimeout: max(c.QueueTimeout, 0), Window: c.HandoffWindow,
		BusyAfter: orForever(c.BusyAfter), HangTimeout: max(c.HangTimeout, 0), RescueLimit: c.RescueLimit,
		MaxActive: c.MaxConnectionsActive, MaxAsked: c.askedLimit(), DrainTimeout: max(c.DrainTimeout, 0), Configured: len(c.Listen) > 0,
		TicketRotate: max(c.TicketRotate, 0),
	}
}

func (c *config) poolLimits() pool.Limits {
	return pool.Limits{
		StartTimeout: c.StartTimeout, ReadyAfter: c.ReadyAfter, SilentAfter: silentAfter(c.StartTimeout),
		DrainTimeout: c.DrainTimeout, DrainSpread: c.DrainSpread, StopTimeout: c.StopTimeout,
		RespawnMin: c.RespawnMin, RespawnMax: c.RespawnMax,
		Restart: c.Restart, StopSignal: c.StopSignal,
	}
}
