//go:build unix

package main

import (
	"math/rand/v2"
	"os"

	"rrd/handoff"
)

// decision is what to do with one connection that the master has handed over.
type decision int

const (
	take           decision = iota // ack and serve it
	busy                           // reject it, and say again at once
	busySilent                     // reject it, and say again when the gate opens
	keep                           // answer nothing until the gate opens
	hold                           // ack it, and do not touch it; die when the gate opens
	dieUnacked                     // die before the answer
	dieAcked                       // ack, then die before the first byte
	dieTouched                     // ack and touch, then die before the first byte
	dieRead                        // ack and read, then die before telling so
	stall                          // answer nothing any more, not even a PING
	violate                        // break the protocol, and wait for the end
	hostile                        // say much nonsense, then violate
	leave                          // close the channel and live on
	orphan                         // die, and leave the channel to another process
	bomb                           // send descriptors, then serve it
	flood                          // send much, then serve it
	lockConnection                 // ack it, have another process hold its lock for ever, and die
	fill                           // have descriptors in flight until the gate opens, and serve it
)

// turn is what a mode decides about.
type turn struct {
	n      int // of this process, from 1
	f      *handoff.Frame
	open   bool // the gate is
	armed  bool // this is not the time to be honest
	chance *rand.Rand
}

// fresh: nobody has died with it. What kills only such connections kills each
// once.
func (t turn) fresh() bool { return t.armed && t.f.Arg == 0 }

// once is a mode that does what when it has a connection that has had no death.
func once(what decision) func(turn) decision {
	return func(t turn) decision {
		if t.fresh() {
			return what
		}
		return take
	}
}

// every is a mode that does what with each n-th connection of a process.
func every(n int, what decision) func(turn) decision {
	return func(t turn) decision {
		if t.fresh() && t.n%n == 0 {
			return what
		}
		return take
	}
}

// until is a mode that does what until the gate opens.
func until(what decision) func(turn) decision {
	return func(t turn) decision {
		if t.open {
			return take
		}
		return what
	}
}

// modes decide about connection n, from 1, of this process. open: the gate is.
var modes = map[string]func(turn) decision{
	"serve": func(turn) decision { return take }, // serve:early acks before READY
	// Every second one is for somebody else.
	"reject-second": func(t turn) decision {
		if t.n%2 == 0 {
			return busy
		}
		return take
	},
	"reject-again": until(busy),       // says busy, and that it can take more, as fast as it is asked
	"reject":       until(busySilent), // says busy, and nothing more until the gate opens
	"keep":         until(keep),       // receives and says nothing
	"hold":         until(hold),       // acks, and dies when the gate opens

	// Dies with the connection in hand; a connection that has had one death is served.
	"die-unacked": once(dieUnacked),
	// Each connection is the death of whoever gets it.
	"poisoned":    func(turn) decision { return dieUnacked },
	"die-acked":   every(10, dieAcked),
	"die-touched": once(dieTouched),
	"die-read":    once(dieRead),
	"stall":       every(5, stall),
	"violate":     every(3, violate),
	"hostile":     every(3, hostile),
	"leave":       every(5, leave),
	"orphan":      every(2, orphan),
	"bomb":        every(3, bomb),
	"flood":       every(3, flood),
	// Its channel, or a connection, is locked for ever; see lock_linux.go.
	"lock-channel":    func(turn) decision { return take },
	"lock-connection": once(lockConnection),
	"trim":            func(turn) decision { return take }, // trim:N cuts what it is sent to N bytes, and reads nothing
	"block-accept":    func(turn) decision { return take }, // lends its listener to a process that clears O_NONBLOCK, and crashes
	"hog":             func(turn) decision { return take }, // uses up memory at SIGUSR2
	"in-flight": func(t turn) decision {
		if t.n == 1 && !t.open {
			return fill
		}
		return take
	},
	// Mostly honest.
	"chaos": func(t turn) decision {
		odds := t.chance.IntN(1000)
		if !t.armed {
			return take
		}
		if odds < 20 {
			return busy
		}
		if !t.fresh() {
			return take
		}
		for _, c := range []struct {
			below int
			what  decision
		}{
			{30, dieUnacked}, {40, dieAcked}, {43, dieTouched}, {46, dieRead}, {48, stall}, {58, violate},
			{60, leave}, {65, bomb}, {68, flood},
		} {
			if odds < c.below {
				return c.what
			}
		}
		return take
	},
}

// die ends this process as a crash does, without a word. (A signal of its own
// would be one from outside, or be caught by Go's runtime.)
func die() { os.Exit(70) }
