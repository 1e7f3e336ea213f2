//go:build unix

package main

import (
	"context"
	"os"
	"sync"
	"time"

	"rrd/cmd/internal/control"
)

// A lame duck is not ready and still serves new connections: load balancers need a while
// to see that, and until then no client is refused.
//
//	in rotation --drain, WINCH--> lame duck
//	in rotation, lame duck --drain --close, stop, TERM--> closing soon
//	lame duck, closing soon --undrain--> in rotation
//	closing soon --------- --lame-duck is over ---------> closed
//
// Closed listeners stay closed. Only a restart opens them again.

// lameDuck is where the master is on that way.
type lameDuck struct {
	mu    sync.Mutex
	phase duckPhase
	since time.Time     // when the master left rotation
	back  chan struct{} // closed by undrain; then there is a new one
}

// duckPhase is a place on the way out of rotation.
type duckPhase int

const (
	inRotation  duckPhase = iota
	servesOn              // a lame duck without an end
	closingSoon           // a lame duck until --lame-duck is over
	closed                // the listeners are closed, or about to be
)

func newLameDuck() *lameDuck { return &lameDuck{back: make(chan struct{})} }

func (d *lameDuck) now() duckPhase {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.phase
}

// drains reports whether the master has begun to close its listeners, for good.
func (d *lameDuck) drains() bool { return d.now() == closed }

// lame reports whether new connections are served although the master is not ready.
func (d *lameDuck) lame() bool {
	phase := d.now()
	return phase == servesOn || phase == closingSoon
}

// age returns how long the master has been out of rotation; 0: it is in rotation.
func (d *lameDuck) age() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.phase == inRotation {
		return 0
	}
	return max(time.Since(d.since), 1)
}

// stayOut makes a restored master a lame duck without an end, if the previous image was
// one.
func (m *master) stayOut(age time.Duration) {
	if age > 0 {
		m.duck.phase, m.duck.since = servesOn, time.Now().Add(-age)
		m.draining.Store(true)
	}
}

// backC is closed by the next undrain.
func (d *lameDuck) backC() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.back
}

// departure is the reason why the master leaves rotation.
type departure int

const (
	toServeOn departure = iota // WINCH, drain
	toClose                    // drain --close
	toStop                     // TERM, INT, QUIT, stop
)

// leave takes the master out of rotation. since is when it left. first reports whether
// this is the first stop, or, if it is not a stop, the first departure.
func (m *master) leave(why departure) (since time.Time, backC <-chan struct{}, first bool) {
	d := m.duck
	d.mu.Lock()
	defer d.mu.Unlock()
	first = m.draining.CompareAndSwap(false, true)
	if d.phase == inRotation {
		d.phase, d.since = servesOn, time.Now()
	}
	if why != toServeOn {
		d.phase = max(d.phase, closingSoon)
	}
	if why == toStop {
		first = m.stopping.CompareAndSwap(false, true)
	}
	return d.since, d.back, first
}

// waitLame waits until --lame-duck is over. drain reports whether to close the listeners
// now. It is false after undrain and after the end of ctx. first reports whether this is
// the first call with drain true.
func (m *master) waitLame(ctx context.Context, since time.Time, backC <-chan struct{}) (drain, first bool) {
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
		first = d.phase != closed
		d.phase = closed
		return true, first
	}
}

// noWayBack is for an end that drains nothing.
func (d *lameDuck) noWayBack() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.phase = closed
}

// stopGracefully is the first TERM, INT, QUIT or rrdctl stop, which field and why tell,
// after leave. supervise waits for it.
func (m *master) stopGracefully(ctx context.Context, since time.Time, backC <-chan struct{}, field, why string) {
	m.notify.leaving()
	if drain, _ := m.waitLame(ctx, since, backC); !drain {
		return
	}
	m.log.Info().Str("event", "drain.start").Str(field, why).Msg("draining")
	m.notify.stops()
	m.drain(ctx)
}

// stopNow is the second TERM or INT, and rrdctl stop --now.
func (m *master) stopNow(field, why string) {
	m.leave(toStop)
	m.duck.noWayBack()
	m.log.Warn().Str("event", "stop.now").Str(field, why).Msg("stopping at once")
	m.notify.stops()
	m.hooks.cut()
	m.pool.StopNow()
}

// outOfRotation handles WINCH as drain. With a controlling terminal, WINCH only means that
// the window has another size.
func (m *master) outOfRotation(sig os.Signal) {
	if !hasTerminal() {
		m.serveOn("signal", sig.String())
	}
}

// serveOn makes the master a lame duck without an end. The record has why under field.
func (m *master) serveOn(field, why string) {
	if _, _, first := m.leave(toServeOn); first {
		m.log.Info().Str("event", "lameduck.start").Str(field, why).Msg("rrd is not ready any more and serves on until undrain or a stop")
	}
}

// Undrain takes a lame duck back into rotation, also one that was asked to stop.
func (m *master) Undrain() error {
	d := m.duck
	d.mu.Lock()
	defer d.mu.Unlock()
	switch d.phase {
	case closed:
		return control.Errorf(control.CodeRefused, "the listeners are closed, or about to be: only a restart opens them again")
	case inRotation:
		return control.Errorf(control.CodeRefused, "rrd is not draining")
	}
	d.phase = inRotation
	close(d.back)
	d.back = make(chan struct{})
	m.draining.Store(false)
	m.stopping.Store(false)
	m.notify.staying()
	m.log.Info().Str("event", "lameduck.end").Msg("back in rotation")
	return nil
}

// ends reports whether the master is on its way to the end: it was asked to stop, or its
// listeners are closed.
func (m *master) ends() bool { return m.stopping.Load() || m.duck.drains() }
