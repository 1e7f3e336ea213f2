package dispatcher

import (
	"io"
	"slices"
	"time"

	"rrd/handoff"
)

// answers reads what a worker has said, at most messagesPerTurn messages: volume
// is no offence, it only waits for the next turn.
func (l *loop) answers(k *link, writable bool) {
	if k.gone {
		return
	}
	if writable && k.full {
		l.writable(k)
	}
	for range messagesPerTurn {
		if !l.readMessage(k) {
			break
		}
	}
}

// readMessage reads one message and acts on it; false: there is none, or the
// worker is gone.
func (l *loop) readMessage(k *link) bool {
	err := k.ch.Receive()
	if err != nil {
		if isAgain(err) {
			return false
		}
		if err == io.EOF && k.traits.HangsUp { //nolint:errorlint // Receive returns it bare
			l.hungUp(k)
		} else if err == io.EOF { //nolint:errorlint // as above
			l.broke(k, "channel closed")
		} else {
			l.broke(k, err.Error())
		}
		return false
	}
	for !k.gone {
		more, err := k.ch.Next(&l.frame)
		if err != nil {
			l.broke(k, err.Error())
			return false
		}
		if !more {
			break
		}
		l.heed(k, &l.frame)
	}
	k.alive, k.heard = true, l.now
	if k.late {
		l.recover(k)
	}
	if k.part != nil && !k.full && !k.gone && k.part.Unsent() {
		l.setFull(k, true) // the channel's own answers
	}
	if k.full && k.hold != nil && !k.gone && !k.held() {
		l.writable(k) // whoever reads: nothing else may end it
	}
	return !k.gone
}

// heed acts on one frame.
func (l *loop) heed(k *link, f *handoff.Frame) {
	if !handoff.Legal(k.state, f.Type) {
		l.broke(k, f.Type.String()+" is not legal while "+k.state.String())
		return
	}
	if !k.spoke && !k.asksPrivately(f) {
		k.spoke = true
		l.tell(k, l.cfg.Hooks.Spoke)
	}
	switch f.Type {
	case handoff.Ack:
		c, ok := l.flyingConn(k, f.Seq)
		if !ok {
			l.broke(k, "ACK of what is not in flight")
			return
		}
		l.acked(k, c)
	case handoff.Reject:
		c, ok := l.flyingConn(k, f.Seq)
		if !ok {
			l.broke(k, "REJECT of what is not in flight")
			return
		}
		l.rejected(k, c, rejectReason(f))
	case handoff.Again:
		l.again(k, f.Listener)
	case handoff.Ready:
		if k.ready {
			l.broke(k, "READY twice")
			return
		}
		k.ready = true
		k.touches = f.Flags&handoff.ReadyTouches != 0
		l.noteReader(k)
		if k.state == handoff.Starting {
			k.state = handoff.Serving
		}
		l.releaseSoon(k)
		l.sayReady(k)
		l.review(k)
	case handoff.Listen:
		l.listenAsked(k, f)
	case handoff.Leave:
		l.left(k, f.Listener)
	case handoff.Drained:
		if !k.drained {
			k.drained = true
			l.tell(k, l.cfg.Hooks.Drained)
		}
	case handoff.Closed:
		if uint64(f.Arg) > k.acks-k.closed {
			l.broke(k, "CLOSED of more than is open")
			return
		}
		k.closed += uint64(f.Arg)
		k.stats.Reported = true
		if l.cfg.MaxActive > 0 {
			l.limit(k)
		}
	case handoff.Bye:
		if k.traits.HangsUp {
			k.state = handoff.Draining
			l.review(k)
			l.tell(k, l.cfg.Hooks.Leaves)
			return
		}
		k.state = handoff.Over
		l.part(k, "BYE: it has left its channel")
	case handoff.Pong:
		l.pong(k, f.Seq)
	case handoff.Touched:
		l.touched(k, f.Seq)
	case handoff.Health:
		l.health(k, f.Arg != 0)
	case handoff.AskTickets:
		if k.offered&handoff.HelloTickets == 0 {
			l.broke(k, "ASK_TICKETS without an offer")
			return
		}
		l.askedTickets(k)
	default: // Legal has refused what the master says itself
	}
}

// hungUp: the worker has ended the conversation and is ending itself. What it
// has not answered is judged when it has.
func (l *loop) hungUp(k *link) {
	if k.gone {
		return
	}
	l.silence(k)
	l.tell(k, l.cfg.Hooks.HungUp)
}

func (l *loop) tell(k *link, hook func(uint64)) {
	if hook == nil {
		return
	}
	id := k.id
	l.event(func() { hook(id) })
}

// acked ends a connection: the worker serves it, our copy goes.
func (l *loop) acked(k *link, c connID) {
	s := &l.socks[c]
	l.stats.Dispatch.observe(l.now - s.accepted)
	l.stats.HandoffAck.observe(l.now - s.sent)
	k.stats.Acks++
	k.acks++
	l.listeners[l.table.conns[c].listener].stats.Acked++
	if ln := l.listeners[l.table.conns[c].listener]; l.keepable(k, ln) {
		l.keep(c)
	} else {
		l.unfly(c)
		l.table.ack(c)
		l.closeConn(s)
	}
	l.refsUntil = 0
	if k.pause > 0 {
		l.unhold(k)
	}
	if l.cfg.MaxActive > 0 {
		l.limit(k)
	}
}

// rejectReason is that of a REJECT. One that is not known counts as other.
func rejectReason(f *handoff.Frame) handoff.Reason {
	if f.Arg == 0 || f.Arg > uint32(handoff.ReasonOther) {
		return handoff.ReasonOther
	}
	return handoff.Reason(f.Arg)
}

func (l *loop) rejected(k *link, c connID, why handoff.Reason) {
	k.stats.Rejects[why]++
	l.stats.HandoffAck.observe(l.now - l.socks[c].sent)
	id := l.table.conns[c].listener
	// Sent before it has closed that listener, and has listened again since.
	former := l.socks[c].seq>>connBits <= k.joinedAfter(id)
	l.unfly(c)
	l.table.reject(c)
	if k.traits.NoAgain {
		l.pauseAfterReject(k, id)
	} else {
		l.agains = slices.DeleteFunc(l.agains, func(p pendingAgain) bool { return p.k == k && p.id == id })
	}
	l.stats.Redispatches[RedispatchRejected]++
	switch {
	case why != handoff.ReasonClosed:
	case former:
		l.again(k, l.listeners[id].wire) // no AGAIN follows
	default:
		l.table.leave(k.idx, id)
		l.reviewReplaced(k.slot)
	}
	l.refsUntil = 0
}

// Pauses of a worker that says no AGAIN: doubling while it only rejects, so that
// those which are all at their limit are asked some dozen times a second and not
// some ten thousand, as Node's own primary does.
const (
	rejectPause    = int64(5 * time.Millisecond)
	rejectPauseMax = int64(40 * time.Millisecond)
)

// pauseAfterReject leaves k alone for a moment, and then tries it with one
// connection at a time, until it takes one.
func (l *loop) pauseAfterReject(k *link, id listenerID) {
	if slices.ContainsFunc(l.agains, func(p pendingAgain) bool { return p.k == k && p.id == id }) {
		return // it was sent several before its first answer
	}
	if k.pause == 0 {
		l.table.setWindow(k.idx, 1)
	}
	k.pause = min(max(2*k.pause, rejectPause), rejectPauseMax)
	l.agains = append(l.agains, pendingAgain{k: k, id: id, at: l.now + k.pause})
}

// unhold: it has taken a connection again.
func (l *loop) unhold(k *link) {
	k.pause = 0
	l.table.setWindow(k.idx, l.cfg.Window)
}

type pendingAgain struct {
	k  *link
	id listenerID
	at int64
}

// again lets a worker that rejected be offered connections of a listener again,
// at most every 5 ms, so that one that always rejects cannot keep the master
// busy.
func (l *loop) again(k *link, listener uint32) {
	ln := l.byWire[listener]
	if ln == nil {
		return // it crossed the listener's closing
	}
	id := ln.id
	if !l.table.serves(k.idx, id) {
		return
	}
	for len(k.againAt) <= int(id) {
		k.againAt = append(k.againAt, -againEvery)
	}
	at := k.againAt[id] + againEvery
	if at <= l.now {
		k.againAt[id] = l.now
		l.serveAgain(k, ln)
		return
	}
	for _, p := range l.agains {
		if p.k == k && p.id == id {
			return
		}
	}
	l.agains = append(l.agains, pendingAgain{k: k, id: id, at: at})
}

func (l *loop) dueAgains() {
	kept := l.agains[:0]
	for _, p := range l.agains {
		switch {
		case l.links[p.k.idx] != p.k || l.listeners[p.id] == nil:
		case p.at > l.now:
			kept = append(kept, p)
		default:
			if int(p.id) < len(p.k.againAt) {
				p.k.againAt[p.id] = l.now
			}
			if l.table.serves(p.k.idx, p.id) {
				l.serveAgain(p.k, l.listeners[p.id])
			}
		}
	}
	clear(l.agains[len(kept):])
	l.agains = kept
}
