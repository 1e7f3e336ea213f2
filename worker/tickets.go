package worker

import (
	"crypto/tls"
	"time"
	"weak"

	"rrd/handoff"
)

// TLSConfig returns a clone of cfg whose session ticket keys are those of the master. All
// workers then have the same keys, so the session of a client resumes on any of them, also
// after a reload. The master changes the keys now and then (--tls-ticket-rotate), and the
// clone follows, as do clones of the clone. TLSConfig waits for the first keys, for a
// second at most.
//
// GetConfigForClient of cfg goes on working. A Config that it returns uses the master's keys
// unless it has keys of its own. If cfg has WrapSession or UnwrapSession, tickets are the
// program's own affair.
//
// Outside rrd, under an rrd that hands out no keys, and with --tls-ticket-rotate off, the
// clone is nothing more than that.
func TLSConfig(cfg *tls.Config) *tls.Config {
	ch, err := process()
	if ch == nil || err != nil {
		return cloneConfig(cfg)
	}
	return ch.tlsConfig(cfg)
}

func cloneConfig(cfg *tls.Config) *tls.Config {
	if cfg == nil {
		return new(tls.Config)
	}
	return cfg.Clone()
}

// ticketWait is how long TLSConfig waits for the master.
const ticketWait = time.Second

// tickets are the session ticket keys of this process. channel.mu guards them.
type tickets struct {
	offered bool // by HELLO
	wanted  bool // TLSConfig was called
	asked   bool // ASK_TICKETS was said
	first   *ask // done when the first keys have come, or none will
	keys    [][handoff.TicketKeySize]byte
	// ring encrypts and decrypts tickets for clones of clones. The configs themselves have
	// the keys for Configs of the program's GetConfigForClient.
	ring    *tls.Config
	configs []weak.Pointer[tls.Config]
}

// tlsConfig makes a clone that follows the master's keys.
func (ch *channel) tlsConfig(cfg *tls.Config) *tls.Config {
	clone := cloneConfig(cfg)
	ch.mu.Lock()
	defer ch.unlock()
	t := &ch.tickets
	if !t.wanted {
		t.wanted, t.ring = true, new(tls.Config)
		ch.started = true
	}
	ch.awaitTicketsLocked()
	if ch.greeted && !t.offered || ch.gone && t.keys == nil {
		return clone
	}
	if clone.WrapSession == nil && clone.UnwrapSession == nil {
		clone.WrapSession, clone.UnwrapSession = t.ring.EncryptTicket, t.ring.DecryptTicket
	}
	if t.keys != nil {
		clone.SetSessionTicketKeys(t.keys)
	}
	t.configs = append(t.configs, weak.Make(clone))
	return clone
}

// awaitTicketsLocked asks for the keys, once, and waits until they are there or are not to
// be had. Preconditions: mu is held, and is again afterwards.
func (ch *channel) awaitTicketsLocked() {
	t := &ch.tickets
	if t.first == nil {
		t.first = new(ask)
		if ch.gone {
			t.first.done = true
		}
		ch.askTicketsLocked()
	}
	if t.first.done {
		return
	}
	late := time.AfterFunc(ch.keyTime, ch.onTicketsLate) // stopped below
	defer late.Stop()
	ch.awaitLocked(&waiter{ask: t.first})
}

// onTicketsLate runs on a timer's goroutine.
func (ch *channel) onTicketsLate() {
	ch.mu.Lock()
	defer ch.unlock()
	ch.noTicketsLocked()
}

// askTicketsLocked asks for the keys if the program wants them and the master has them.
func (ch *channel) askTicketsLocked() {
	t := &ch.tickets
	switch {
	case !t.wanted || !ch.greeted || t.asked:
	case t.offered:
		t.asked = true
		ch.sayNowLocked(handoff.Frame{Type: handoff.AskTickets})
	default:
		ch.noTicketsLocked()
	}
}

// noTicketsLocked ends the wait for the first keys.
func (ch *channel) noTicketsLocked() {
	first := ch.tickets.first
	if first == nil || first.done {
		return
	}
	first.done = true
	for ch.wakeLocked(func(w *waiter) bool { return w.ask == first }) {
	}
	ch.interruptLocked() // the one that reads may be the one that waits
}

// ticketsLocked takes keys from the master.
func (ch *channel) ticketsLocked(f *handoff.Frame) {
	t := &ch.tickets
	n := int(f.Arg)
	if !t.asked || n < 1 || n > handoff.MaxTicketKeys || len(f.Payload) != n*handoff.TicketKeySize {
		return
	}
	t.keys = make([][handoff.TicketKeySize]byte, n)
	for i := range t.keys {
		copy(t.keys[i][:], f.Payload[i*handoff.TicketKeySize:])
	}
	clear(f.Payload)
	t.ring.SetSessionTicketKeys(t.keys)
	living := t.configs[:0]
	for _, p := range t.configs {
		if config := p.Value(); config != nil {
			config.SetSessionTicketKeys(t.keys)
			living = append(living, p)
		}
	}
	clear(t.configs[len(living):])
	t.configs = living
	ch.noTicketsLocked()
}
