package dispatcher

import (
	"errors"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Some programs try ports: they listen, close, and listen again at once, at another
// address, or at the port that listen(0) has given. A listener of ours takes a moment to
// close, and the other workers may be a step behind. So a bind waits while it only
// collides with a listener of ours that is about to close.

// stepWait is how long a bind waits for other workers to close a listener.
const stepWait = int64(time.Second)

// waitsForPort reports whether a's bind is tried again later: a listener of ours has its
// port, and is closing, has closed since the bind began, or may soon be closed by the
// workers that have it. err is why the bind failed.
func (l *loop) waitsForPort(a *askedListener, closes uint64, err error) bool {
	if !errors.Is(err, syscall.EADDRINUSE) {
		return false
	}
	if closes != l.closes {
		l.bindAgain(a)
		return true
	}
	closing, open := false, false
	for _, ln := range l.listeners {
		if ln == nil || len(ln.sockets()) == 0 || !samePort(a, ln) {
			continue
		}
		closing = closing || ln.closing
		open = open || ln.asked != nil && !a.isAskedBy(ln)
	}
	switch {
	case closing:
		a.giveUpAt = 0
	case open && a.giveUpAt == 0:
		a.giveUpAt = l.now + stepWait
		l.giveUpAt = earlier(l.giveUpAt, a.giveUpAt)
	case open && a.giveUpAt > l.now:
	default:
		return false
	}
	a.refused = err
	return true
}

// isAskedBy reports whether a worker that waits for a has ln: such a worker collides with
// itself.
func (a *askedListener) isAskedBy(ln *listener) bool {
	return slices.ContainsFunc(a.waiting, func(w asker) bool { return slices.Contains(w.k.joined, ln.wire) })
}

// samePort reports whether a's address may exclude that of ln.
func samePort(a *askedListener, ln *listener) bool {
	family := strings.TrimRight(a.network, "46")
	if family != strings.TrimRight(ln.network, "46") {
		return false
	}
	if family == "unix" {
		return a.address == ln.addr
	}
	asked, err := parseInet(a.address)
	has, herr := parseInet(ln.addr)
	return err == nil && herr == nil && asked.Port() != 0 && asked.Port() == has.Port()
}

// portFreed tries the binds again that wait for the port of ln, which has closed.
func (l *loop) portFreed(ln *listener) {
	l.closes++
	for _, a := range l.asked {
		if a.refused != nil && samePort(a, ln) {
			a.refused = nil
			l.bindAgain(a)
		}
	}
}

// giveUpBinds refuses the workers whose bind has waited too long for other workers.
func (l *loop) giveUpBinds() {
	l.giveUpAt = 0
	for _, a := range l.asked {
		switch {
		case a.refused == nil || a.giveUpAt == 0:
		case a.giveUpAt <= l.now:
			err := a.refused
			a.refused, a.giveUpAt = nil, 0
			l.answerAskers(a, err)
		default:
			l.giveUpAt = earlier(l.giveUpAt, a.giveUpAt)
		}
	}
}

// earlier returns the earlier of two times of which 0 means never.
func earlier(a, b int64) int64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// askedAs returns the open listener with the address of key that workers got by asking for
// port 0. It returns nil if there is none, or if k has it already. A program may ask for a
// port that it was given before. If other workers still have that port, it shares theirs.
func (l *loop) askedAs(k *link, key string) *askedListener {
	for _, a := range l.asked {
		if a.ln != nil && !a.closing && a.key != key && addressKey(a.network, a.ln.addr) == key && !slices.Contains(k.joined, a.ln.wire) {
			return a
		}
	}
	return nil
}
