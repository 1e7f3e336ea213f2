//go:build unix

package main

import (
	"context"
	"os"
	"sync"
	"syscall"
	"time"

	"rrd/cmd/internal/control"
)

// A lame duck serves whoever comes, and says that nobody is to come any more: load
// balancers need a while to see that, and until then nobody is turned away.
//
//	in rotation --WINCH, drain, TERM--> lame duck --undrain--> in rotation
//	lame duck --drain or TERM, and --lame-duck is over--> draining
//
// Draining closes the listeners, and there is no way back from it.

// lameDuck is where the master is on that way.
type lameDuck struct {
	mu    sync.Mutex
	since time.Time     // zero: in rotation
	back  chan struct{} // closed by undrain; then there is a new one
	drain bool          // draining
}

func newLameDuck() *lameDuck { return &lameDuck{back: make(chan struct{})} }

// drains says whether there is no way back.
func (d *lameDuck) drains() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.drain
}

// backC is closed by the next undrain.
func (d *lameDuck) backC() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.back
}

// leave takes the master out of rotation, and with stop on its way to the end. since is
// when that was first so. first says whether nobody had asked for a stop (without stop:
// for anything) before.
func (m *master) leave(stop bool) (since time.Time, backC <-chan struct{}, first bool) {
	d := m.duck
	d.mu.Lock()
	defer d.mu.Unlock()
	first = m.draining.CompareAndSwap(false, true)
	if stop {
		first = m.stopping.CompareAndSwap(false, true)
	}
	if d.since.IsZero() {
		d.since = time.Now()
	}
	return d.since, d.back, first
}

// waddle waits until --lame-duck is over, and reports whether to drain now: not if the
// master was called back, or ctx has ended. first says that nobody was told so before.
func (m *master) waddle(ctx context.Context, since time.Time, backC <-chan struct{}) (drain, first bool) {
	if limit := m.current().LameDuck; limit != off && !m.duck.drains() {
		if rest := time.Until(since.Add(limit)); rest > 0 {
			m.log.Info().Str("event", "lameduck.start").Float64("duration_s", rest.Seconds()).
				Msg("not ready any more, and serving until load balancers have seen it")
			timer := time.NewTimer(rest)
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-backC:
			case <-ctx.Done():
				return false, false
			}
		}
	}
	d := m.duck
	d.mu.Lock()
	defer d.mu.Unlock()
	select {
	case <-backC:
		return false, false
	default:
		first = !d.drain
		d.drain = true
		return true, first
	}
}

// noWayBack is for an end that drains nothing.
func (d *lameDuck) noWayBack() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.drain = true
}

// stopGracefully is the first TERM, INT, QUIT or rrdctl stop, which field and why tell,
// after leave. supervise waits for it.
func (m *master) stopGracefully(ctx context.Context, since time.Time, backC <-chan struct{}, field, why string) {
	m.notify.leaving()
	if drain, _ := m.waddle(ctx, since, backC); !drain {
		return
	}
	m.log.Info().Str("event", "drain.start").Str(field, why).Msg("draining")
	m.notify.stops()
	m.drain(ctx)
}

// stopNow is the second TERM or INT, and rrdctl stop --now.
func (m *master) stopNow(field, why string) {
	m.leave(true)
	m.duck.noWayBack()
	m.log.Warn().Str("event", "stop.now").Str(field, why).Msg("stopping at once")
	m.notify.stops()
	m.hooks.cut()
	m.pool.StopNow()
}

// outOfRotation is WINCH: a lame duck until somebody says more. With a controlling
// terminal it only says that the window has another size.
func (m *master) outOfRotation(sig os.Signal) {
	if hasTerminal() {
		return
	}
	if _, _, first := m.leave(false); first {
		m.log.Info().Str("event", "lameduck.start").Stringer("signal", sig).Msg("not ready any more, and serving until told otherwise")
	}
}

// Undrain takes a lame duck back into rotation, also one that was asked to stop.
func (m *master) Undrain() error {
	d := m.duck
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.drain:
		return control.Errorf(control.CodeRefused, "the listeners are closed, or about to be: only a restart opens them again")
	case d.since.IsZero():
		return control.Errorf(control.CodeRefused, "rrd is not draining")
	}
	d.since = time.Time{}
	close(d.back)
	d.back = make(chan struct{})
	m.draining.Store(false)
	m.stopping.Store(false)
	m.notify.staying()
	m.log.Info().Str("event", "lameduck.end").Msg("back in rotation")
	return nil
}

// stops says whether a signal asks for an end.
func stops(sig os.Signal) bool {
	return sig == syscall.SIGTERM || sig == syscall.SIGINT || sig == syscall.SIGQUIT
}
