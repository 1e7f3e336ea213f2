package dispatcher

import (
	"context"
	"slices"

	"rrd/handoff"
)

// A roll keeps the workers that it has replaced until it has succeeded. A replaced
// worker gets no new connection of a listener that a successor in its slot serves. It
// goes on with a listener that its successors do not have: the roll closes that one
// last. The worker still answers the handoffs that it owes. A shared listener is the worker's own
// to accept from.

// Replace stops giving a worker the connections that a successor in its slot can take.
// The worker is not asked to drain.
func (d *Dispatcher) Replace(worker uint64) error {
	return d.do(context.Background(), func(l *loop) { l.setReplaced(worker, true) })
}

// Reinstate undoes Replace: the worker gets its place back.
func (d *Dispatcher) Reinstate(worker uint64) error {
	return d.do(context.Background(), func(l *loop) { l.setReplaced(worker, false) })
}

func (l *loop) setReplaced(worker uint64, replaced bool) {
	k := l.byID[worker]
	if k == nil || k.replaced == replaced {
		return
	}
	k.replaced = replaced
	if replaced {
		l.replaced = append(l.replaced, k)
	} else {
		l.forgetReplaced(k)
		for _, ln := range l.listeners {
			if ln != nil {
				l.table.hold(k.idx, ln.id, false)
			}
		}
	}
	l.review(k)
}

func (l *loop) forgetReplaced(k *link) {
	l.replaced = slices.DeleteFunc(l.replaced, func(o *link) bool { return o == k })
}

// reviewReplaced looks again which listeners a slot's replaced workers go on with.
func (l *loop) reviewReplaced(slot int) {
	for _, k := range l.replaced {
		if k.slot != slot || k.gone {
			continue
		}
		for _, ln := range l.listeners {
			if ln != nil {
				l.table.hold(k.idx, ln.id, l.hasSuccessor(k, ln))
			}
		}
	}
}

// hasSuccessor reports whether another worker of k's slot has taken k's place at ln, and
// may get its connections.
func (l *loop) hasSuccessor(k *link, ln *listener) bool {
	return slices.ContainsFunc(l.links, func(o *link) bool {
		return o != nil && o != k && o.slot == k.slot && !o.replaced && o.ready && !o.gone && !o.unhealthy &&
			o.state == handoff.Serving && l.table.serves(o.idx, ln.id)
	})
}
