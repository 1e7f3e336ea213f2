package dispatcher

import (
	"slices"
	"time"

	"rrd/handoff"
)

// A worker that has spoken is asked for a sign of life every now and then. Its
// library answers, not its program, so a busy program is not taken for a dead
// one; a stopped or wedged process is.

// beatsPerHang is how often in HangTimeout every worker is looked at.
const beatsPerHang = 10

func (l *loop) beatEvery() int64 {
	return max(int64(l.cfg.HangTimeout)/beatsPerHang, int64(time.Millisecond))
}

// heartbeat judges who owes an answer to a PING and asks the others.
func (l *loop) heartbeat() {
	l.beatAt = l.now + l.beatEvery()
	for _, k := range l.links {
		if k == nil || !k.spoke || k.gone {
			continue
		}
		if k.pinged == 0 {
			l.ping(k)
			continue
		}
		if l.now-k.pinged < int64(l.cfg.HangTimeout) || k.hung {
			continue
		}
		for n := 0; n < allMessages && !k.gone && l.readMessage(k); n++ {
		}
		if k.pinged != 0 && !k.gone {
			l.reportHung(k, k.pinged)
		}
	}
}

// ping asks for a sign of life, unless an answer is owed already.
func (l *loop) ping(k *link) {
	if k.pinged != 0 || k.traits.NoPong {
		return
	}
	k.pings++
	k.pinged = max(l.now, 1)
	l.say(k, handoff.Frame{Type: handoff.Ping, Seq: k.pings}, handoff.FD{})
}

// pong is the answer.
func (l *loop) pong(k *link, seq uint64) {
	if k.pinged == 0 || seq != k.pings {
		l.broke(k, "PONG without its PING")
		return
	}
	k.pinged = 0
}

// healthEvery is how often a worker's health is told to the hook: one that
// changes its mind with every frame is heeded each time, and told of rarely.
const healthEvery = int64(100 * time.Millisecond)

// health: the program's own check has changed its mind.
func (l *loop) health(k *link, failing bool) {
	if k.unhealthy == failing {
		return
	}
	k.unhealthy = failing
	l.review(k)
	if !slices.Contains(l.healths, k) {
		l.healths = append(l.healths, k)
	}
}

// tellHealth calls the hook for those that may be told of now and are not as
// they were told to be.
func (l *loop) tellHealth() {
	l.healths = slices.DeleteFunc(l.healths, func(k *link) bool {
		if k.healthAt > l.now {
			return false
		}
		if hook := l.cfg.Hooks.Health; hook != nil && k.unhealthy != k.toldUnhealthy && !k.gone {
			k.toldUnhealthy, k.healthAt = k.unhealthy, l.now+healthEvery
			id, ok := k.id, !k.unhealthy
			l.event(func() { hook(id, ok) })
		}
		return true
	})
}

// reportHung has a worker killed that has owed something since then.
func (l *loop) reportHung(k *link, since int64) {
	k.hung = true
	if hook := l.cfg.Hooks.Hung; hook != nil {
		id, owed := k.id, time.Duration(l.now-since)
		l.event(func() { hook(id, owed) })
	}
}
