package worker

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"rrd/handoff"
)

// dispatchLocked acts on the message in msg. Preconditions: mu is held.
func (ch *channel) dispatchLocked() {
	var now time.Time
	m := &ch.msg
	k := 0 // the next descriptor: the k-th belongs to the k-th frame that carries one
	for i := range m.N {
		f := &m.Frames[i]
		switch f.Type {
		case handoff.Hello:
			ch.touches = f.Flags&handoff.HelloTouches != 0
			ch.closes = f.Flags&handoff.HelloCloses != 0
			ch.grace = time.Duration(f.Seq) * time.Millisecond
			ch.greeted = true
			ch.tickets.offered = f.Flags&handoff.HelloTickets != 0
			ch.askTicketsLocked()
		case handoff.Handoff:
			if now.IsZero() {
				now = time.Now()
			}
			h := handedOff{fd: handoff.Own(m.FDs[k].Release()), seq: f.Seq, at: now}
			ch.handedOffLocked(f.Listener, h)
			k++
		case handoff.Listening:
			ch.answeredLocked(f, &m.FDs[0])
		case handoff.Drain:
			ch.drainLocked()
		case handoff.Ping:
			ch.sayNowLocked(handoff.Frame{Type: handoff.Pong, Seq: f.Seq})
		case handoff.Tickets:
			ch.ticketsLocked(f)
		case handoff.Dump:
			go dumpStacks() // not waited for: it ends with its write
		}
		// A frame of a later version is none of ours.
	}
	m.Close() // surplus descriptors
}

// maxStacks bounds how much is written of a process with very many goroutines.
const maxStacks = 16 << 20

// dumpStacks writes the stacks of all goroutines to stderr.
func dumpStacks() {
	buf := make([]byte, 64<<10)
	for {
		n := runtime.Stack(buf, true)
		if n < len(buf) || len(buf) >= maxStacks {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	// Who reads it may be gone: nothing depends on it.
	_, _ = fmt.Fprintf(os.Stderr, "goroutines of process %d, asked for by rrd:\n%s\n", os.Getpid(), buf)
}

// handedOffLocked queues a connection or rejects it.
func (ch *channel) handedOffLocked(id uint32, h handedOff) {
	ep := ch.endpoints[id]
	switch {
	case ch.draining:
		ch.refuseLocked(h, handoff.ReasonDraining)
	case ep == nil || ep.listeners == 0:
		ch.refuseLocked(h, handoff.ReasonClosed)
	case !h.fd.Valid():
		ch.refuseLocked(h, handoff.ReasonFDLimit)
		ch.starveLocked(ep)
	default:
		ch.pushLocked(ep, h)
	}
}

// An ask is a LISTEN that waits for its answer.
type ask struct {
	done  bool
	err   error
	ep    *endpoint
	flags uint16
	fd    handoff.FD // the shared socket
	bound address
}

// answeredLocked notes the answer to a LISTEN. It makes the endpoint at once, as
// handoffs may follow before the asking goroutine runs.
func (ch *channel) answeredLocked(f *handoff.Frame, fd *handoff.FD) {
	a := ch.asks[f.Seq]
	if a == nil {
		return
	}
	delete(ch.asks, f.Seq)
	a.done = true
	text := string(f.Payload)
	if f.Arg != 0 {
		errno := syscall.Errno(f.Arg)
		if a.err = os.NewSyscallError("bind", errno); text != "" {
			a.err = &refusal{text, errno}
		}
	} else {
		a.flags = f.Flags
		a.bound.network, a.bound.text, _ = strings.Cut(text, "\x00")
		a.fd = handoff.Own(fd.Release())
		a.ep = ch.endpointLocked(f.Listener)
		a.ep.listeners++
	}
	ch.wakeLocked(func(w *waiter) bool { return w.ask == a })
}

// drainLocked stops accepting, for good. Who is in Accept stays there.
func (ch *channel) drainLocked() {
	if ch.draining {
		return
	}
	ch.draining = true
	for _, ep := range ch.endpoints {
		ch.refuseAllLocked(ep, handoff.ReasonDraining)
		interruptShared(ep)
	}
	ch.closeDrainC()
	ch.drainedLocked()
}

func (ch *channel) closeDrainC() {
	select {
	case <-ch.drainC:
	default:
		close(ch.drainC)
	}
}

// drainedLocked reports the end of a drain, once: nothing is open, and no accept
// of a shared listener is under way that could still open something.
func (ch *channel) drainedLocked() {
	if ch.draining && !ch.drained && ch.open == 0 && ch.accepting == 0 {
		ch.drained = true
		ch.sayNowLocked(handoff.Frame{Type: handoff.Drained})
	}
}
