//go:build unix

package main

import (
	"bytes"
	"context"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"
)

// catchSignals asks for the signals that mean something to the master. They are
// caught, never ignored: an ignored signal would stay ignored in the workers.
func catchSignals() chan os.Signal {
	// A write to a closed stdout or stderr ends a process by SIGPIPE (os/signal,
	// "SIGPIPE"); caught, it is only an error of that write. Its own channel is
	// never read: os/signal drops what does not fit.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	c := make(chan os.Signal, 64)
	signal.Notify(c, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGHUP,
		syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGWINCH)
	return c
}

// heed acts on a signal that does not stop.
func (m *master) heed(sig os.Signal) {
	switch sig {
	case syscall.SIGUSR1:
		m.dump()
	case syscall.SIGHUP:
		m.reloadAsked(sig)
	case syscall.SIGWINCH:
		m.outOfRotation(sig)
	case syscall.SIGUSR2:
		m.wantUpgrade()
	case syscall.SIGTTIN:
		m.resize(sig, m.pool.Grow)
	case syscall.SIGTTOU:
		m.resize(sig, m.pool.Shrink)
	}
}

// reloadAsked is a HUP that does not stop.
func (m *master) reloadAsked(sig os.Signal) {
	if m.hangup.Ignored {
		m.log.Info().Str("event", "signal.ignored").Stringer("signal", sig).
			Msg("HUP is ignored because it was ignored at the start, as with nohup: use rrdctl reload")
		return
	}
	m.wantReload()
}

// resize is one worker more or less. With a controlling terminal these signals
// are job control's (stty tostop), not a wish.
func (m *master) resize(sig os.Signal, change func() (int, error)) {
	if hasTerminal() {
		m.log.Info().Str("event", "signal.ignored").Stringer("signal", sig).Msg("rrd has a controlling terminal, which sends this signal itself")
		return
	}
	n, err := change()
	if err != nil {
		m.log.Error().Str("event", "workers.resize").Stringer("signal", sig).Err(err).Msg("number of workers unchanged")
		return
	}
	m.log.Info().Str("event", "workers.resize").Stringer("signal", sig).Int("workers", n).Msg("number of workers changed")
}

// dump logs the state of everything: a line for each worker and listener and one
// for each goroutine.
func (m *master) dump() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s, err := m.snapshot(ctx)
	if err != nil {
		m.log.Error().Str("event", "dump").Err(err).Msg("the dispatch loop gave no copy of its counts")
	}
	if s != nil {
		for i := range s.Listeners {
			ln := &s.Listeners[i]
			law := ln.Law()
			m.log.Info().Str("event", "dump.listener").Str("listener", ln.Name).Str("address", ln.Address).
				Uint64("accepted", ln.Accepted).Uint64("acked", ln.Acked).Uint64("dropped", ln.Dropped.Total()).
				Int("queue", ln.Queued).Int("in_flight", ln.InFlight).Bool("law_holds", law.Holds).Msg("listener")
		}
		for i := range s.Workers {
			w := &s.Workers[i]
			m.log.Info().Str("event", "dump.worker").Int("worker", w.Slot).Int("worker_pid", w.PID).
				Int("generation", w.Generation).Str("state", w.State).Uint64("handoffs", w.Handoffs).
				Uint64("acks", w.Acks).Int("in_flight", w.InFlight).Msg("worker")
		}
	}
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	for stack := range bytes.SplitSeq(buf, []byte("\n\n")) {
		m.log.Info().Str("event", "dump.goroutine").Bytes("stack", stack).Msg("goroutine")
	}
}
