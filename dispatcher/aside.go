package dispatcher

import (
	"context"
	"fmt"
	"os"
	"time"

	"rrd/dispatcher/internal/aside"
	"rrd/handoff"
)

// A call that may wait for a worker is made by a helper process (package aside). The
// loop asks, goes on, and takes the answer as an event. Until then whatever the call
// is about keeps its state.

// HelperArg is the hidden argument that makes this program a helper; descriptor 3 is
// the helper's end of the socket. A program needs no code for it.
const HelperArg = aside.Arg

// MaxHelpers is the largest number of helpers; 0: this system needs none.
const MaxHelpers = aside.MaxHelpers

// asideLimitDefault is the limit for an answer if HangTimeout is off.
const asideLimitDefault = 30 * time.Second

// asideLimit returns how long an answer may take.
func (l *loop) asideLimit() time.Duration {
	if l.cfg.HangTimeout > 0 {
		return l.cfg.HangTimeout
	}
	return asideLimitDefault
}

func (l *loop) wantHelper() {
	if hook := l.cfg.Hooks.HelperWanted; hook != nil {
		l.event(hook)
	}
}

func (l *loop) killHelper(pid int) {
	if hook := l.cfg.Hooks.HelperUseless; hook != nil {
		l.event(func() { hook(pid) })
	}
}

func (l *loop) watchHelper(fd int, token uint64) error { return l.poll.add(fd, token, true, false) }

func (l *loop) unwatchHelper(fd int) { _ = l.poll.remove(fd) }

// askHelper asks a helper to make a call.
func (l *loop) askHelper(r aside.Request) { l.aside.Ask(l.now, r) }

// Keys of requests: a worker by its place, a socket by its descriptor.
const (
	keyOfWorker = uint64(1) << 32
	keyOfSocket = uint64(2) << 32
)

func (k *link) key() uint64 { return keyOfWorker | uint64(k.idx) }

func (s *socket) key() uint64 { return keyOfSocket | uint64(s.fd.Num()) }

// HelperPair makes the socket between the loop and a helper. child is the helper's
// end, to be inherited as descriptor 3 and closed by the caller.
func HelperPair() (master handoff.FD, child *os.File, err error) { return aside.Pair() }

// AddHelper gives the loop the master's end of the socket to a helper. AddHelper
// takes ownership, also when it fails.
func (d *Dispatcher) AddHelper(pid int, socket handoff.FD) error {
	added := false
	err := d.do(context.Background(), func(l *loop) {
		if err := l.addHelper(pid, socket); err != nil {
			l.fatal("watch a helper", err)
			return
		}
		added = true
	})
	switch {
	case added:
		return nil
	case err == nil:
		err = ErrClosed
	}
	_ = socket.Close()
	return fmt.Errorf("add helper %d: %w", pid, err)
}

func (l *loop) addHelper(pid int, socket handoff.FD) error {
	return l.aside.Add(l.now, pid, socket, l.token(0, tokenIsHelper))
}

// NoHelper reports to the loop that a helper could not be started. The loop asks again
// later.
func (d *Dispatcher) NoHelper() error {
	return d.do(context.Background(), func(l *loop) { l.aside.Failed(l.now) })
}

// HelperStats is one helper process.
type HelperStats struct {
	PID int
	// Out is the age of its call; 0: no call is under way.
	Out time.Duration
}

func (l *loop) copyHelpers() (out []HelperStats) {
	for _, p := range l.aside.Processes(l.now) {
		out = append(out, HelperStats(p))
	}
	return out
}
