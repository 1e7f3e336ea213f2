//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"rrd/dispatcher"
	"rrd/worker/pool"
)

// If no client can connect to a listener, the dispatcher makes it work again and calls the
// hooks in this file. If the listener got a new socket, a roll replaces the workers that
// share the old one, with the command and the listeners in force. This file also makes the
// file of the control socket again.

const (
	// controlEvery is how often the file of the control socket is looked at.
	controlEvery = 2 * time.Second
	// rerollPause is the pause before another try of a roll that has failed.
	rerollPause = 30 * time.Second
)

// rerolls are the rolls that follow a new listening socket.
type rerolls struct {
	wanted *wish

	mu       sync.Mutex
	replaced time.Time // when a socket that workers share was replaced last
	covered  time.Time // when the last roll that succeeded began
}

// cover notes a successful roll, of its own or of a reload.
func (r *rerolls) cover(began time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.covered = began
}

// due reports whether there are workers that may share an old socket.
func (r *rerolls) due() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.replaced.After(r.covered)
}

// want asks for a roll of the workers that were started before at.
func (r *rerolls) want(at time.Time) {
	r.mu.Lock()
	r.replaced = at
	r.mu.Unlock()
	r.wanted.want()
}

// listenerRearmed is a hook of the dispatcher.
func (m *master) listenerRearmed(r dispatcher.Rearm) {
	i := r.Listener
	if m.flood.passes("listener.rearmed", allSlots) {
		m.log.Warn().Str("event", "listener.rearmed").Str("listener", dispatcher.Printable(i.Name)).Str("address", dispatcher.Printable(i.Address)).
			Str("reason", r.Why).Int("times", r.Times).Bool("replaced", r.Replaced).Msg("clients can connect to this listener again")
	}
	configured := slices.DeleteFunc(slices.Clone(m.current().Listen), func(c dispatcher.ListenerConfig) bool { return c.Name != i.Name })
	if !i.Asked && len(configured) > 0 {
		m.releaseSockets(configured) // the stored socket may be the old one
		m.keepSockets(configured)
	}
	if r.Replaced {
		m.rerolls.want(r.At)
	}
}

// listenerUnreachable is a hook of the dispatcher.
func (m *master) listenerUnreachable(i dispatcher.ListenerInfo, err error) {
	if !m.flood.passes("listener.unreachable", allSlots) {
		return
	}
	m.log.Error().Str("event", "listener.unreachable").Str("listener", dispatcher.Printable(i.Name)).Str("address", dispatcher.Printable(i.Address)).Err(err).
		Msg("no client can connect to this listener")
}

// rollForSockets replaces workers that share an old socket, until ctx ends. Its caller
// waits for it.
func (m *master) rollForSockets(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.rerolls.wanted.tokenC:
		}
		var err error
		m.rerolls.wanted.heed(&m.reloads.running, func() { err = m.reroll() })
		if err == nil {
			continue
		}
		m.log.Error().Str("event", "listener.roll_failed").Err(err).Float64("retry_in_s", rerollPause.Seconds()).
			Msg("workers that share an old listening socket could not be replaced")
		select {
		case <-ctx.Done():
			return
		case <-time.After(rerollPause):
			m.rerolls.wanted.want()
		}
	}
}

// reroll is one roll, if it is still needed. Preconditions: reloads.running is held.
func (m *master) reroll() error {
	if !m.rerolls.due() || m.ends() {
		return nil
	}
	m.reloads.rolling.Lock()
	defer m.reloads.rolling.Unlock()
	began := time.Now()
	c := m.current()
	err := m.pool.Roll(m.template(c, m.listeners), pool.RollConfig{Surge: c.Surge, Canary: max(c.CanaryTime, 0), Keep: c.RollKeep}, m.rollProgress(nil))
	switch {
	case err == nil:
		m.rerolls.cover(began)
		m.log.Info().Str("event", "listener.rolled").Float64("duration_s", time.Since(began).Seconds()).
			Msg("workers that shared an old listening socket were replaced")
	case errors.Is(err, pool.ErrStopping):
		return nil
	}
	return err
}

// watchControl makes the file of the control socket again if it was removed, until ctx
// ends. Its caller waits for it.
func (m *master) watchControl(ctx context.Context) {
	if m.ctl.ln == nil {
		return
	}
	tick := time.NewTicker(controlEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if m.reloads.running.TryLock() { // not while the socket may cross to another image
			_ = m.renewControl() // it is logged
			m.reloads.running.Unlock()
		}
	}
}

// renewControl looks at the file of the control socket. Preconditions: reloads.running is
// held.
func (m *master) renewControl() error {
	if m.ctl.ln == nil {
		return nil
	}
	why, err := m.ctl.ln.Renew()
	switch {
	case err != nil && m.ctl.unreachable != err.Error():
		m.ctl.unreachable = err.Error()
		m.log.Error().Str("event", "control.unreachable").Str("path", m.ctl.at).AnErr("reason", why).Err(err).
			Msg("no client can connect to the control socket")
	case err == nil:
		m.ctl.unreachable = ""
	}
	if why != nil && err == nil {
		m.log.Warn().Str("event", "control.rearmed").Str("path", m.ctl.at).AnErr("reason", why).
			Msg("clients can connect to the control socket again")
	}
	return err
}

// checkFiles looks at the files of all sockets now, and makes those again that were
// removed. It returns a warning for each, or an error if one of next cannot be made
// again. Preconditions: reloads.running is held.
func (m *master) checkFiles(ctx context.Context, next *config) (warnings []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, controlEvery)
	defer cancel()
	if err := m.renewControl(); err != nil {
		warnings = append(warnings, "no client can connect to the control socket: "+err.Error())
	}
	checked, err := m.dispatcher.CheckFiles(ctx)
	if err != nil {
		warnings = append(warnings, "whether the socket files are there could not be found out: "+err.Error())
	}
	for _, f := range checked {
		wanted := slices.ContainsFunc(next.Listen, func(c dispatcher.ListenerConfig) bool { return c.Name == f.Listener.Name })
		switch {
		case f.Err == nil:
			warnings = append(warnings, fmt.Sprintf("the socket file of listener %s was missing: rrd has made it again", f.Listener.Name))
		case wanted && !f.Listener.Asked:
			return warnings, located("listen", next.origin("listen"), fmt.Errorf("%q: %w", f.Listener.Name, f.Err))
		}
	}
	return warnings, nil
}
