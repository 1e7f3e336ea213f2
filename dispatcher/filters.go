package dispatcher

import (
	"fmt"
	"syscall"

	"rrd/dispatcher/internal/aside"
)

// Filters. A worker can attach a socket filter to a shared socket, which drops clients, or a
// program that chooses a socket of a reuseport group, which gives all to one. Only removing
// one tells that there was one.

// FilterKind is the kind of an attached filter.
type FilterKind uint8

// The kinds.
const (
	SocketFilter FilterKind = iota
	ReuseportProgram
	NumFilterKinds
)

func (k FilterKind) String() string { return [...]string{"socket", "reuseport"}[k] }

// Filter tells that a filter was removed.
type Filter struct {
	Listener ListenerInfo
	Kind     FilterKind
	// Times is how often that has happened since the last call.
	Times int
}

// filters are the removed filters of a listener that were not reported yet.
type filters struct {
	times  [NumFilterKinds]int
	toldAt [NumFilterKinds]int64
}

// lookForFilters removes what workers have attached to the sockets of a shared listener.
// An inherited socket with a filter at the start keeps what its owner attaches.
func (l *loop) lookForFilters(ln *listener) {
	l.tellFilters(ln)
	if aside.MaxHelpers == 0 || ln.foreignFilters {
		return
	}
	for _, s := range ln.live() {
		if !s.tcp() && !s.packet() || s.probing || s.revival.busy {
			continue
		}
		s.probing = true
		l.askHelper(aside.Request{Call: aside.DetachFilter, FD: s.fd, Key: s.key(), Done: func(a *aside.Answer) {
			l.detached(ln, s, SocketFilter, a)
			if !l.has(ln, s) || s.revival.busy {
				s.probing = false
				return
			}
			l.askHelper(aside.Request{Call: aside.DetachReuseport, FD: s.fd, Key: s.key(), Done: func(a *aside.Answer) {
				s.probing = false
				l.detached(ln, s, ReuseportProgram, a)
			}})
		}})
	}
}

func (l *loop) detached(ln *listener, s *socket, kind FilterKind, a *aside.Answer) {
	switch {
	case !a.Known || !l.has(ln, s):
	case a.Errno == 0:
		l.countFilter(ln, kind)
	case a.Errno == syscall.EPERM && kind == SocketFilter:
		// SO_LOCK_FILTER: no process can remove the filter, and ours could not be attached.
		if s.revival.retryAt <= l.now {
			l.countFilter(ln, kind)
			l.renounce(ln, s)
		}
	}
}

func (l *loop) countFilter(ln *listener, kind FilterKind) {
	ln.stats.Filters[kind]++
	ln.filters.times[kind]++
	l.tellFilters(ln)
}

// tellFilters is like tellRearmed.
func (l *loop) tellFilters(ln *listener) {
	f := &ln.filters
	for kind, n := range f.times {
		if n == 0 || f.toldAt[kind] != 0 && l.now-f.toldAt[kind] < rearmEvery {
			continue
		}
		f.times[kind], f.toldAt[kind] = 0, max(l.now, 1)
		if hook := l.cfg.Hooks.Filtered; hook != nil {
			told := Filter{ln.info(), FilterKind(kind), n}
			l.event(func() { hook(told) })
		}
	}
}

// renounce replaces a socket that listens but cannot be used. It shuts the socket down
// first, so that its address can be bound.
func (l *loop) renounce(ln *listener, s *socket) {
	if s.packet() || ln.inherited() {
		s.revival.retryAt = l.now + reviveRetry
		l.setUnreachable(ln, causeDead, fmt.Errorf("%w: restart rrd, or the service that has opened it", errLocked))
		return
	}
	l.beginRevival(s)
	s.revival.asked = true
	l.askHelper(aside.Request{Call: aside.Shutdown, FD: s.fd, Key: s.key(), Done: func(a *aside.Answer) {
		l.endRevival(s)
		if a.Known && l.has(ln, s) {
			l.rebind(ln, s, errLocked)
		}
	}})
}
