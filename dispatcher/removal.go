package dispatcher

import (
	"context"
	"fmt"
	"slices"

	"rrd/dispatcher/internal/aside"
	"rrd/handoff"
)

// removal is the rest of the work for a dead worker:
//
//	recall what it has not read --> read its last answers --> ask the kernel what was
//	touched --> forget it
//
// Each arrow may wait for a helper. Until then the unanswered connections of the worker
// stay held.
type removal struct {
	Removal
	questions int // not answered yet
	rescued   int64
}

// remove begins the removal of a dead worker.
func (l *loop) remove(worker uint64, how Removal) {
	k := l.byID[worker]
	if k == nil || k.removal != nil {
		return
	}
	k.removal = &removal{Removal: how}
	l.reviveAll() // the worker may have shut sockets down
	l.removing++
	l.silence(k)
	for c := l.table.workers[k.idx].flying.head; c != none; c = l.table.conns[c].next {
		l.flight.remove(l.socks, c)
	}
	l.forgetLate(k)
	l.healths = slices.DeleteFunc(l.healths, func(h *link) bool { return h == k })
	l.settling = slices.DeleteFunc(l.settling, func(o *link) bool { return o == k })
	l.releasing = slices.DeleteFunc(l.releasing, func(o *link) bool { return o == k })
	l.agains = slices.DeleteFunc(l.agains, func(p pendingAgain) bool { return p.k == k })
	l.forgetReplaced(k)
	l.reviewReplaced(k.slot)
	l.leaveAsked(k)
	if slices.ContainsFunc(l.links, func(o *link) bool {
		return o != nil && o.slot == k.slot && o.ready && !o.gone && o.state == handoff.Serving
	}) {
		l.releaseAsked(k.slot) // its successor has asked for its own listeners
	}
	if !k.recalling.failed { // a failed recall would only hang again
		l.recall(k, RedispatchWorkerExit, false)
	}
	l.afterRecall(k)
}

// afterRecall judges the connections of a dead worker, once the unread ones are back.
func (l *loop) afterRecall(k *link) {
	if k.recalling.under {
		return
	}
	l.lastAnswers(k)
	for _, c := range l.flyingOf(k) {
		if ln := l.listeners[l.table.conns[c].listener]; k.traits.Untouched && isTCP(ln.network) {
			l.askTouched(k, c)
			continue
		}
		l.leftUnanswered(k, c)
	}
	l.rescue(k)
	l.forget(k)
}

// flyingOf lists the connections that k has not answered, oldest first.
func (l *loop) flyingOf(k *link) (out []connID) {
	for c := l.table.workers[k.idx].flying.head; c != none; c = l.table.conns[c].next {
		out = append(out, c)
	}
	return out
}

// leftUnanswered redispatches a connection whose worker is dead.
func (l *loop) leftUnanswered(k *link, c connID) {
	k.stats.Failures[FailWorkerExit]++
	if k.removal.Blame && !k.traits.Untouched {
		l.socks[c].deaths++
	}
	poison := l.socks[c].deaths >= maxDeaths
	l.takeBack(c, RedispatchWorkerExit)
	if poison {
		l.drop(c, DropPoison)
	}
}

// askTouched asks whether the program has begun with a connection whose ack may have
// died behind a message of the program's own. One that was touched, or of which
// that is not known, counts as acked.
func (l *loop) askTouched(k *link, c connID) {
	l.askConn(k, c, func(a *aside.Answer) {
		if touchedOrUnknown(a) {
			l.acked(k, c)
		} else {
			l.leftUnanswered(k, c)
		}
	})
}

// askConn asks the kernel about a connection that k has left.
func (l *loop) askConn(k *link, c connID, judge func(*aside.Answer)) {
	k.removal.questions++
	l.askHelper(aside.Request{Call: aside.Conn, FD: l.socks[c].fd, Key: k.key(), Done: func(a *aside.Answer) {
		k.removal.questions--
		judge(a)
		l.forget(k)
	}})
}

// forget ends a removal when all questions are answered.
func (l *loop) forget(k *link) {
	if k.removal.questions > 0 {
		return
	}
	l.removing--
	k.stats.Lost += uint64(max(k.active()-k.removal.rescued, 0))
	l.closeChannel(k)
	l.table.removeWorker(k.idx)
	l.links[k.idx] = nil
	delete(l.byID, k.id)
	if l.cfg.Policy == SchedReuseport {
		l.reviewSlots()
	}
	if l.removing == 0 {
		for _, c := range l.judged {
			close(c)
		}
		l.judged = nil
	}
}

// AwaitRemovals returns when the counts have everything of the workers that Remove was
// called for, or ctx ends.
func (d *Dispatcher) AwaitRemovals(ctx context.Context) error {
	judged := make(chan struct{})
	err := d.do(ctx, func(l *loop) {
		if l.removing == 0 {
			close(judged)
			return
		}
		l.judged = append(l.judged, judged)
	})
	if err != nil {
		return fmt.Errorf("await removals: %w", err)
	}
	select {
	case <-judged:
		return nil
	case <-d.ended:
		return fmt.Errorf("await removals: %w", ErrClosed)
	case <-ctx.Done():
		return fmt.Errorf("await removals: %w", ctx.Err())
	}
}

// closeChannel closes a channel. Messages may lie there that a recall did not reach:
// their descriptors may be the last of connections that linger, so closing may wait.
func (l *loop) closeChannel(k *link) {
	if k.recalling.failed {
		l.d.lingering.later(k.ch)
		return
	}
	_ = k.ch.Close()
}
