package dispatcher

import (
	"rrd/dispatcher/internal/aside"
	"rrd/handoff"
)

// recalling is a recall that a helper makes. The connections concerned stay in
// flight. Answers are read as ever: a message goes to one receiver, so no connection
// is both acked and recalled.
type recalling struct {
	under  bool // the answer is still missing
	why    Redispatch
	alive  bool // frames that are not handoffs are sent again
	again  []handoff.Frame
	broken error // a frame that cannot be decoded
	failed bool  // the last one was not answered in time
}

// recall takes back the frames that the worker has not read. If the worker lives, frames
// that are not handoffs are sent again. Usually the worker has read everything, and then
// recall asks no helper.
func (l *loop) recall(k *link, why Redispatch, alive bool) {
	r := &k.recalling
	r.why, r.alive = why, alive
	if r.under {
		return
	}
	end, some := k.ch.Unread()
	if !some {
		return
	}
	*r = recalling{under: true, why: why, alive: alive}
	l.review(k)
	l.askHelper(aside.Request{Call: aside.Recall, FD: end, Key: k.key(),
		Part: func(msg []byte) { l.recalledMessage(k, msg) },
		Done: func(a *aside.Answer) { l.recalled(k, a) }})
}

// recalledMessage acts on one message that the worker has not received.
func (l *loop) recalledMessage(k *link, msg []byte) {
	r := &k.recalling
	err := handoff.Frames(msg, func(f *handoff.Frame) {
		if f.Type != handoff.Handoff {
			g := *f
			g.Payload = append([]byte(nil), f.Payload...)
			r.again = append(r.again, g)
			return
		}
		if c, ok := l.flyingConn(k, f.Seq); ok {
			if r.alive {
				k.stats.Failures[FailAckTimeout]++
			} else {
				k.stats.Failures[FailWorkerExit]++
			}
			l.takeBack(c, r.why)
		}
	})
	if err != nil {
		r.broken = err
	}
}

// recalled ends a recall. A frame that cannot be decoded was trimmed by a filter of
// the worker's: it is a violation. The connection in it stays held until the worker is
// dead, like one that was received.
func (l *loop) recalled(k *link, a *aside.Answer) {
	r := &k.recalling
	again, alive := r.again, r.alive
	r.under, r.again, r.failed = false, nil, !a.Known
	if a.Errno != 0 {
		l.fatal("recall", a.Errno)
	}
	if r.broken != nil {
		l.broke(k, "what was sent to it cannot be read any more: "+r.broken.Error())
	}
	if alive {
		for _, f := range again {
			l.sayAgain(k, f)
		}
	}
	if k.removal != nil {
		l.afterRecall(k)
		return
	}
	if r.failed && k.late && !k.gone {
		l.recall(k, r.why, true)
	}
	if k.late {
		l.recover(k)
	}
	l.review(k)
}
