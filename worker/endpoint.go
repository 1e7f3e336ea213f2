package worker

import (
	"net"
	"time"

	"rrd/handoff"
)

// An endpoint is one listener of the master, by its id. This process may have
// several net.Listeners of it.
type endpoint struct {
	id        uint32
	listeners int         // open ones; at 0 we leave
	shared    []*listener // those that accept by themselves
	packets   []*net.UDPConn
	queue     []handedOff // read but not taken, oldest first
	busy      bool        // a connection was rejected: AGAIN with the next Accept
	starved   bool        // a descriptor did not arrive
}

// handedOff is a connection whose handoff was read and not answered. It owns the
// descriptor.
type handedOff struct {
	fd  handoff.FD
	seq uint64
	at  time.Time
}

// endpointLocked returns the endpoint of that id, made if needed.
func (ch *channel) endpointLocked(id uint32) *endpoint {
	ep := ch.endpoints[id]
	if ep == nil {
		ep = &endpoint{id: id}
		ch.endpoints[id] = ep
	}
	return ep
}

// pushLocked queues a connection for whoever accepts from ep. The goroutine that
// reads for ep takes the first by itself; for every other someone is woken.
func (ch *channel) pushLocked(ep *endpoint, h handedOff) {
	ep.queue = append(ep.queue, h)
	ch.armLaterLocked(h.at.Add(ch.takeTime))
	if ch.readingFor == ep && len(ep.queue) == 1 {
		return
	}
	if !ch.wakeForLocked(ep) {
		interruptShared(ep)
	}
}

// popLocked takes the oldest connection off ep's queue, for good or to answer it.
// Preconditions: there is one.
func (ep *endpoint) popLocked() handedOff {
	h := ep.queue[0]
	n := copy(ep.queue, ep.queue[1:])
	ep.queue[n] = handedOff{}
	ep.queue = ep.queue[:n]
	return h
}

// expireLocked rejects what has been in ep's queue for too long. If somebody is in
// Accept all the same (a machine that is very busy), that one asks for more when
// it runs. Without a master these are the only copies: they wait for the program.
func (ch *channel) expireLocked(ep *endpoint, now time.Time) {
	if ch.gone {
		return
	}
	for len(ep.queue) > 0 {
		at := ep.queue[0].at.Add(ch.takeTime)
		if now.Before(at) {
			ch.armLaterLocked(at)
			return
		}
		ch.refuseLocked(ep.popLocked(), handoff.ReasonBusy)
		ep.busy = true
		ch.urgent = true
		ch.wakeForLocked(ep)
	}
}

// refuseLocked closes our reference of a connection and gives it back.
func (ch *channel) refuseLocked(h handedOff, why handoff.Reason) {
	_ = h.fd.Close()
	ch.rejectLocked(h.seq, why)
}

// refuseAllLocked empties ep's queue.
func (ch *channel) refuseAllLocked(ep *endpoint, why handoff.Reason) {
	for len(ep.queue) > 0 {
		ch.refuseLocked(ep.popLocked(), why)
	}
}

// starveLocked notes that ep's descriptors do not arrive: more are asked for when
// a connection of ours is closed, or after a while.
func (ch *channel) starveLocked(ep *endpoint) {
	ep.starved = true
	ch.starving = true
	now := time.Now()
	ch.eatAt, ch.starvedUntil = now.Add(againTime), now.Add(fdTime)
	ch.armLaterLocked(ch.starvedUntil)
}

// roomLocked notes that a descriptor has become free. Preconditions: starving.
func (ch *channel) roomLocked() {
	if time.Now().Before(ch.eatAt) {
		ch.starvedUntil = ch.eatAt
		ch.armLaterLocked(ch.eatAt)
		return
	}
	ch.feedLocked()
}

// feedLocked asks for more. Preconditions: starving.
func (ch *channel) feedLocked() {
	ch.starving = false
	for _, ep := range ch.endpoints {
		if ep.starved && !ch.draining {
			ch.sayNowLocked(handoff.Frame{Type: handoff.Again, Listener: ep.id})
		}
		ep.starved = false
	}
}

// sweepLocked leaves the endpoints that have no listener. While a Listen is under
// way it waits: the answer may be one of them, and a LEAVE that crosses it would
// leave the new listener too.
func (ch *channel) sweepLocked() {
	if len(ch.asks) > 0 {
		return
	}
	for id, ep := range ch.endpoints {
		if ep.listeners == 0 {
			delete(ch.endpoints, id)
			ch.sayNowLocked(handoff.Frame{Type: handoff.Leave, Listener: id})
		}
	}
}
