//go:build unix

package main

import (
	"errors"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// repeatWithin is how long after the first request to stop a TERM or INT repeats that
// request. Later it is a request of its own: to stop at once. coreutils timeout, npm and a
// terminal deliver the same request twice within milliseconds.
const repeatWithin = time.Second

// verdict is the effect of a signal that stops rrd.
type verdict int

const (
	stopFirst  verdict = iota // the first request: stop gracefully
	stopSame                  // the same request
	stopRepeat                // the same request; the first repeat, which is recorded
	stopAtOnce
)

// stopRequest is the request to stop that is under way. The goroutine that reads the
// signals owns it.
type stopRequest struct {
	since time.Time // when it came
	told  bool      // a repeat was recorded
}

// judge returns the effect of sig at the time now. stopping is set if rrd stops already.
func (r *stopRequest) judge(sig os.Signal, stopping bool, now time.Time) verdict {
	switch {
	case !stopping:
		return stopFirst
	case sig != syscall.SIGTERM && sig != syscall.SIGINT:
		return stopSame // QUIT and HUP never hurry
	case now.Sub(r.since) >= repeatWithin:
		return stopAtOnce
	case r.told:
		return stopSame
	default:
		r.told = true
		return stopRepeat
	}
}

// judgeStop is judge for a signal that has come now. It records the first repeat.
func (m *master) judgeStop(sig os.Signal) verdict {
	v := m.stopRequest.judge(sig, m.stopping.Load(), time.Now())
	if v == stopRepeat {
		m.log.Info().Str("event", "signal.ignored").Stringer("signal", sig).
			Msg("rrd is stopping already: to stop it at once, send TERM or INT a second or more after the first")
	}
	return v
}

// hangup holds two facts of the start that decide about HUP. They cross an upgrade in
// place. The new program must not look again, because HUP is ignored around the exec.
type hangup struct {
	Terminal bool // rrd had a controlling terminal
	Ignored  bool // HUP was ignored, as nohup does
}

// noteHangup reads the facts from this process. It must come before catchSignals.
func noteHangup() hangup {
	return hangup{Terminal: hasTerminal(), Ignored: signal.Ignored(syscall.SIGHUP)}
}

// stops reports whether a signal asks rrd to stop. HUP does so if the terminal that started
// rrd is gone.
func (h hangup) stops(sig os.Signal) bool {
	switch sig {
	case syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT:
		return true
	case syscall.SIGHUP:
		return h.Terminal && !h.Ignored && errors.Is(openTerminal(), syscall.ENXIO)
	}
	return false
}

// hasTerminal reports whether this process has a controlling terminal.
func hasTerminal() bool { return openTerminal() == nil }

// openTerminal tries to open the controlling terminal. The error is ENXIO if there is no
// terminal, or if it has hung up (tried on Linux 6.18).
func openTerminal() error {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	return f.Close()
}
