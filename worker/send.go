package worker

import (
	"errors"
	"syscall"
	"time"

	"rrd/handoff"
)

// sayLocked writes a frame down that is prompt: it leaves with the next flush, before
// Accept blocks, and by the next tick at the latest.
func (ch *channel) sayLocked(f handoff.Frame) {
	if !ch.gone {
		ch.writeLocked(&f)
		ch.prompt = true
		ch.armTickLocked()
	}
}

// sayTouchedLocked writes down that a connection was touched. The master only goes on
// holding its copy until it hears of it, so that leaves with what comes next: a message
// of its own, for each connection, would wake the master and this process once more.
func (ch *channel) sayTouchedLocked(seq uint64) {
	if !ch.gone {
		ch.writeLocked(&handoff.Frame{Type: handoff.Touched, Seq: seq})
		ch.armLaterLocked(time.Now().Add(touchTime))
	}
}

func (ch *channel) writeLocked(f *handoff.Frame) {
	var raw [handoff.FrameSize]byte
	f.Version = ch.version
	f.Put(raw[:])
	ch.out = append(ch.out, raw[:]...)
}

// sayNowLocked is sayLocked for what leaves as soon as mu is released.
func (ch *channel) sayNowLocked(f handoff.Frame) {
	ch.sayLocked(f)
	ch.urgent = true
}

// hurryLocked has what is prompt leave when mu is released.
func (ch *channel) hurryLocked() {
	if ch.prompt {
		ch.urgent = true
	}
}

// ackLocked writes an ack down and returns its number, for ensureFlushed. The last of
// those that came together sends all of them when mu is released.
func (ch *channel) ackLocked(seq uint64, last bool) uint64 {
	f := handoff.Frame{Type: handoff.Ack, Seq: seq}
	switch {
	case !last:
		ch.sayLocked(f)
	case !ch.gone:
		ch.writeLocked(&f)
		ch.urgent = true
	}
	ch.acks++
	return ch.acks
}

func (ch *channel) rejectLocked(seq uint64, why handoff.Reason) {
	ch.sayLocked(handoff.Frame{Type: handoff.Reject, Seq: seq, Arg: uint32(why)})
}

// againLocked tells the master that ep is served again after a reject.
func (ch *channel) againLocked(ep *endpoint) {
	if ep.busy && !ch.draining {
		ep.busy = false
		ch.sayLocked(handoff.Frame{Type: handoff.Again, Listener: ep.id})
	}
}

// unlock releases mu and sends what is urgent.
func (ch *channel) unlock() {
	urgent := ch.urgent
	ch.urgent = false
	ch.mu.Unlock()
	if urgent {
		ch.flush()
	}
}

// ensureFlushed returns when the ack of that number has left. Numbers count from
// 1; 0 has always left.
func (ch *channel) ensureFlushed(ack uint64) {
	if ch.flushed.Load() < ack {
		ch.flush()
	}
}

// flush sends what is written down. If the master is gone nothing is sent and
// nothing can be redispatched any more: then an ack counts as said.
func (ch *channel) flush() {
	ch.sendMu.Lock()
	defer ch.sendMu.Unlock()
	ch.mu.Lock()
	if len(ch.out) > 0 {
		ch.tellClosedLocked()
	}
	b, acks := ch.out, ch.acks
	ch.out = ch.spare[:0]
	ch.prompt = false
	if ch.gone {
		b = b[:0]
	}
	ch.mu.Unlock()
	ch.spare = b
	for len(b) > 0 {
		n := min(len(b), handoff.MaxFrames*handoff.FrameSize)
		if ch.sendAll(b[:n]) != nil {
			break // the reader finds out, after what the master had still sent
		}
		b = b[n:]
	}
	ch.flushed.Store(acks)
}

// send sends one message that is not gathered with others.
func (ch *channel) send(f *handoff.Frame) error {
	ch.flush()
	ch.sendMu.Lock()
	defer ch.sendMu.Unlock()
	f.Version = ch.version
	return ch.sendAll(f.Append(nil))
}

// sendAll sends one message, later if the kernel is short of memory: an answer
// must not be lost. Preconditions: sendMu is held.
func (ch *channel) sendAll(b []byte) error {
	for {
		err := ch.port.Send(b)
		if !errors.Is(err, syscall.ENOBUFS) && !errors.Is(err, syscall.ENOMEM) {
			return err
		}
		time.Sleep(tickTime)
	}
}

// tellClosedLocked writes down how many acked connections were closed.
func (ch *channel) tellClosedLocked() {
	if ch.closed > 0 {
		ch.writeLocked(&handoff.Frame{Type: handoff.Closed, Arg: ch.closed})
		ch.closed = 0
	}
}

// closedLocked counts a close that the master will be told of, with other frames
// or by itself a little later: it only serves to count what is open.
func (ch *channel) closedLocked() {
	ch.closed++
	if ch.closes {
		ch.tellClosedLocked()
		ch.urgent = true
		return
	}
	if ch.closed == 1 {
		ch.closedAt = time.Now()
		ch.armLaterLocked(ch.closedAt.Add(closeTime))
	}
}

// armLaterLocked makes onLater run at t or before.
func (ch *channel) armLaterLocked(t time.Time) {
	if ch.due.IsZero() || t.Before(ch.due) {
		ch.due = t
		ch.later.Reset(time.Until(t))
	}
}

// onLater runs on the later timer's goroutine: it rejects what nobody took, asks
// for more after the limit of open files, tells closes and sends what was not prompt.
func (ch *channel) onLater() {
	ch.mu.Lock()
	now := time.Now()
	ch.due = time.Time{}
	for _, ep := range ch.endpoints {
		ch.expireLocked(ep, now)
	}
	if ch.starving {
		if now.Before(ch.starvedUntil) {
			ch.armLaterLocked(ch.starvedUntil)
		} else {
			ch.feedLocked()
		}
	}
	if ch.closed > 0 {
		if at := ch.closedAt.Add(closeTime); now.Before(at) {
			ch.armLaterLocked(at)
		} else {
			ch.tellClosedLocked()
		}
	}
	ch.urgent = ch.urgent || len(ch.out) > 0
	ch.exitIfDoneLocked()
	ch.unlock()
}
