package dispatcher

import (
	"crypto/rand"
	"fmt"
	"slices"
	"time"

	"rrd/handoff"
)

// ticketKeys are the keys with which workers encrypt TLS session tickets, so that a
// client's session resumes on any worker. They belong to the master. A worker that asks gets
// them at once and at each rotation. No log has them, and they cross an upgrade in place.
type ticketKeys struct {
	serial   uint64 // of the rotation; 0: there are no keys yet
	keys     []byte // newest first, each of handoff.TicketKeySize
	rotateAt int64
}

// askedTickets handles ASK_TICKETS of k. The first request makes the keys. If a worker asks
// again and does not read, nothing grows.
func (l *loop) askedTickets(k *link) {
	if k.tickets {
		return
	}
	k.tickets = true
	if l.cfg.TicketRotate <= 0 {
		return // a reload has switched them off since HELLO
	}
	if l.tickets.serial == 0 {
		l.rotateTickets()
		return
	}
	l.sayTickets(k)
}

// rotateTickets makes a new key and sends the keys to all workers that have asked.
func (l *loop) rotateTickets() {
	t := &l.tickets
	key := make([]byte, handoff.TicketKeySize, handoff.MaxTicketKeys*handoff.TicketKeySize)
	_, _ = rand.Read(key) // never fails
	t.keys = append(key, t.keys[:min(len(t.keys), (handoff.MaxTicketKeys-1)*handoff.TicketKeySize)]...)
	t.serial++
	t.rotateAt = l.now + int64(l.cfg.TicketRotate)
	workers := 0
	for _, k := range l.links {
		if k != nil && k.tickets && !k.gone {
			l.sayTickets(k)
			workers++
		}
	}
	if hook := l.cfg.Hooks.TicketsRotated; hook != nil {
		serial := t.serial
		l.event(func() { hook(serial, workers) })
	}
}

// sayTickets sends the keys to k. Older keys that are still unsent are left out.
func (l *loop) sayTickets(k *link) {
	f := handoff.Frame{Type: handoff.Tickets, Seq: l.tickets.serial,
		Arg: uint32(len(l.tickets.keys) / handoff.TicketKeySize), Payload: slices.Clone(l.tickets.keys)}
	for i := range k.unsent {
		if k.unsent[i].frame.Type == handoff.Tickets {
			k.unsent[i].frame = f
			return
		}
	}
	l.say(k, f, handoff.FD{})
}

// ticketsDue returns the time of the next rotation; 0: never.
func (l *loop) ticketsDue() int64 {
	if l.tickets.serial == 0 {
		return 0
	}
	return l.tickets.rotateAt
}

// setTicketRotate changes the interval. Without an interval the keys are forgotten.
func (l *loop) setTicketRotate(d time.Duration) {
	switch l.cfg.TicketRotate = d; {
	case d <= 0:
		clear(l.tickets.keys)
		l.tickets = ticketKeys{}
	case l.tickets.serial > 0:
		l.tickets.rotateAt = min(l.tickets.rotateAt, l.now+int64(d))
	}
}

// savedTickets is the form of ticketKeys in a State.
type savedTickets struct {
	Serial   uint64
	Keys     []byte
	RotateIn int64
}

// OffersTickets reports whether a worker in the State may ask for ticket keys, or has them.
func (s *State) OffersTickets() bool {
	return slices.ContainsFunc(s.Links, func(k savedLink) bool { return k.Offered&handoff.HelloTickets != 0 })
}

func (l *loop) saveTickets() *savedTickets {
	if l.tickets.serial == 0 {
		return nil
	}
	return &savedTickets{l.tickets.serial, l.tickets.keys, l.in(l.tickets.rotateAt)}
}

func (l *loop) restoreTickets(s *State) error {
	in := s.Tickets
	if in == nil {
		return nil
	}
	if err := in.check(); err != nil {
		return err
	}
	l.tickets = ticketKeys{in.Serial, in.Keys, l.now + max(in.RotateIn, 0)}
	return nil
}

func (s *savedTickets) check() error {
	n := len(s.Keys)
	if s.Serial == 0 || n == 0 || n%handoff.TicketKeySize != 0 || n > handoff.MaxTicketKeys*handoff.TicketKeySize {
		return fmt.Errorf("ticket keys of %d bytes, serial %d", n, s.Serial)
	}
	return nil
}
