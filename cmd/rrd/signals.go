//go:build unix

package main

import (
	"bytes"
	"os"
	"os/signal"
	"runtime"
	"syscall"
)

// request is what a signal asks for.
type request int

const (
	sigStop    request = iota // QUIT: drain
	sigStopNow                // TERM, INT: drain; a second one stops at once
	sigReload
	sigDump
	sigUpgrade
	sigGrow
	sigShrink
)

var requests = map[os.Signal]request{
	syscall.SIGTERM: sigStopNow, syscall.SIGINT: sigStopNow, syscall.SIGQUIT: sigStop,
	syscall.SIGHUP: sigReload, syscall.SIGUSR1: sigDump, syscall.SIGUSR2: sigUpgrade,
	syscall.SIGTTIN: sigGrow, syscall.SIGTTOU: sigShrink,
}

func (r request) name(*signals) string {
	return [...]string{"QUIT", "TERM or INT", "HUP", "USR1", "USR2", "TTIN", "TTOU"}[r]
}

// signals turns the signals of this process into requests. They are caught, never
// ignored: an ignored signal would stay ignored in the workers.
type signals struct {
	c    chan request
	raw  chan os.Signal
	done chan struct{}
}

func newSignals() *signals {
	s := &signals{c: make(chan request, 64), raw: make(chan os.Signal, 64), done: make(chan struct{})}
	for sig := range requests {
		signal.Notify(s.raw, sig)
	}
	// A write to a closed stdout or stderr would end the process (os/signal,
	// "SIGPIPE"); caught, it is an error of that write.
	signal.Notify(s.raw, syscall.SIGPIPE)
	go s.translate() // stop waits for it
	return s
}

func (s *signals) stop() {
	signal.Stop(s.raw)
	close(s.raw)
	<-s.done
}

func (s *signals) translate() {
	defer close(s.done)
	for sig := range s.raw {
		r, ok := requests[sig]
		if !ok {
			continue
		}
		select {
		case s.c <- r:
		default: // 64 requests are waiting: one more changes nothing
		}
	}
}

// other acts on the signals that do not stop.
func (m *master) other(r request) {
	switch r {
	case sigDump:
		m.dump()
	case sigGrow, sigShrink:
		m.resize(r)
	case sigReload, sigUpgrade:
		m.log.Warn().Str("event", "signal.unsupported").Str("signal", r.name(nil)).Msg("not in this version")
	case sigStop, sigStopNow: // supervise's
	}
}

// resize is one worker more or less. With a controlling terminal these signals
// are job control's (stty tostop), not a wish.
func (m *master) resize(r request) {
	if hasTerminal() {
		m.log.Info().Str("event", "signal.ignored").Str("signal", r.name(nil)).Msg("rrd has a controlling terminal, which sends this signal itself")
		return
	}
	change := m.pool.Grow
	if r == sigShrink {
		change = m.pool.Shrink
	}
	n, err := change()
	if err != nil {
		m.log.Error().Str("event", "workers.resize").Str("signal", r.name(nil)).Err(err).Msg("number of workers unchanged")
		return
	}
	m.log.Info().Str("event", "workers.resize").Str("signal", r.name(nil)).Int("workers", n).Msg("number of workers changed")
}

func hasTerminal() bool {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return false
	}
	_ = f.Close()
	return true
}

// dump logs the state of everything: a line for each worker and listener and one
// for each goroutine.
func (m *master) dump() {
	s, err := m.snapshot(backgroundSecond())
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
