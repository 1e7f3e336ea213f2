//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/rs/zerolog"

	"rrd/cmd/internal/control"
	"rrd/dispatcher"
	"rrd/worker/pool"
)

// restoreFault is set by the linker in tests of what a new program that cannot restore
// the state is answered with.
var restoreFault string

// restoreMaster makes the rooms from a state. Until the dispatcher is made, which is
// last, nothing that an older image needs is closed or changed.
func restoreMaster(r *resumed, args, environ []string, stdout, stderr *os.File) (*master, error) {
	c, err := r.config(environ)
	if err != nil {
		return nil, err
	}
	if err := pool.CloseOnExecAll(); err != nil {
		return nil, err
	}
	atLeastTwoProcs()
	m := newMaster(c, args, environ, stdout, stderr)
	m.started = time.Now().Add(-r.Age)
	m.program = r.Path
	if r.WorkDir != "" {
		m.workDir = &workDir{path: r.WorkDir}
	}
	m.listeners, m.metricsAt = r.Listeners, r.MetricsAt
	m.resumed = r
	m.hangup = r.Hangup
	m.restoreCounts(r.savedMaster)
	m.stayOut(r.LameDuck)
	if m.pool, err = pool.Restore(m.poolConfig(environ), r.Pool); err != nil {
		return nil, err
	}
	m.hooks.start = m.pool.StartOther
	if r.Metrics.Valid() {
		f, err := duplicate(r.Metrics, "metrics")
		if err != nil {
			return nil, fmt.Errorf("metrics listener: %w", err)
		}
		m.metricsLn, err = net.FileListener(f)
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("metrics listener: %w", err)
		}
		if ln, ok := m.metricsLn.(*net.UnixListener); ok {
			ln.SetUnlinkOnClose(true) // as metrics.Listen does
		}
	}
	if r.Control.Valid() {
		f, err := duplicate(r.Control, "control")
		if err != nil {
			return nil, fmt.Errorf("control socket: %w", err)
		}
		m.ctl.ln, err = control.Inherit(f, r.ControlAt, r.ControlFile, r.ControlMade, c.ControlUIDs)
		_ = f.Close()
		if err != nil {
			return nil, err
		}
		m.ctl.at = r.ControlAt
	}
	if restoreFault != "" && r.failed == "" {
		panic(restoreFault)
	}
	if m.dispatcher, err = dispatcher.Restore(m.dispatcherConfig(), r.Dispatcher, m.codec()); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *master) restoreCounts(s *savedMaster) {
	m.Events().restore(s.Events)
	if level, err := zerolog.ParseLevel(s.LogLevel); err == nil {
		m.ctl.gate.set(level)
	}
	for level, n := range s.LogCounts {
		m.logs.Add(level, n)
	}
	for _, r := range s.Requests {
		m.ctl.counts[controlRequest{r.Command, r.Result}] = r.Count
	}
	m.reloads.ok, m.reloads.failed = s.Reloads.OK, s.Reloads.Failed
	m.reloads.lastOK, m.reloads.lastFailure = s.Reloads.LastSuccess, s.Reloads.LastFailure
	m.upgrades.counts = s.Upgrades
	m.saidSilent.Store(s.SaidSilent)
	m.announced = s.Announced
	for slot, ready := range s.WasReady {
		m.wasReady[slot] = ready
	}
	for i, slot := range s.Pool.Slots {
		if slot.Worker != nil {
			m.slots.Store(slot.Worker.ID, i)
		}
		for _, older := range slot.Older {
			m.slots.Store(older.ID, i)
		}
	}
}

// runResumed goes on where the image before has stopped.
func (m *master) runResumed(signals <-chan os.Signal, stderr *os.File) int {
	defer m.sink.close()
	defer m.closeDispatcher()
	r := m.resumed
	// What the other image would have needed.
	_, _, _ = r.Metrics.Close(), r.Control.Close(), r.OldImage.Close()
	_ = r.file.Close()
	m.helpers.adopt(r.Helpers)
	if r.failed != "" {
		m.noteUpgrade(fmt.Errorf("%s", r.failed))
	} else {
		m.upgrades.mu.Lock()
		m.upgrades.counts.OK++
		m.upgrades.counts.LastFailure = ""
		m.upgrades.mu.Unlock()
		m.log.Info().Str("event", "upgrade.done").Str("from", r.Program).Str("to", programVersion()).Str("path", m.program).
			Float64("duration_s", r.TookSeconds).Msg("upgraded in place")
	}
	if r.ReloadAsked {
		m.wantReload()
	}
	if r.RollAsked {
		m.rerolls.want(time.Now())
	}
	if r.UpgradeAsked {
		m.wantUpgrade()
	}
	m.notify.becameReady(m.statusText) // as it was said before; or a reload now would not be told
	m.keepSockets(m.current().Listen)  // once more, if the image before had no time for one
	serveMetrics := func(context.Context) {}
	if m.metricsLn != nil {
		serveMetrics = m.metricsServer(m.metricsLn)
	}
	serveControl := func(context.Context) {}
	if m.ctl.ln != nil {
		server := m.newControlServer()
		m.answerAsker(server)
		serveControl = m.controlServer(server, m.ctl.ln)
	}
	return m.serve(serveMetrics, serveControl, signals, false, stderr)
}

// answerAsker has the server tell who has asked for the upgrade how it went.
func (m *master) answerAsker(server *control.Server) {
	r := m.resumed
	if !r.Asker.Valid() {
		return
	}
	f := os.NewFile(uintptr(r.Asker.Release()), "asker")
	var result any
	var err error
	if r.failed != "" {
		err = errors.New(r.failed)
	} else {
		result = control.Upgraded{Version: buildInfo().Version, PID: os.Getpid()}
	}
	if err := server.Resume(f, r.Asked, result, err); err != nil {
		m.log.Warn().Str("event", "control.lost").Err(err).Msg("who asked for the upgrade gets no answer")
	}
}

// programVersion is what this program calls itself.
func programVersion() string {
	b := buildInfo()
	if b.Revision != "" {
		return b.Version + " " + b.Revision
	}
	return b.Version
}
