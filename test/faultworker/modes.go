//go:build unix

package main

import (
	"os"

	"rrd/handoff"
)

// decision is what to do with one connection that the master has handed over.
type decision int

const (
	take       decision = iota // ack and serve it
	busy                       // reject it, and say again at once
	busySilent                 // reject it, and say again when the gate opens
	keep                       // answer nothing until the gate opens
	dieUnacked                 // die before the answer
	dieAcked                   // ack, then die before the first byte
)

// modes decide about connection n, from 1, of this process. open: the gate is.
var modes = map[string]func(n int, f *handoff.Frame, open bool) decision{
	"serve": func(int, *handoff.Frame, bool) decision { return take },
	// Every second one is for somebody else.
	"reject-second": func(n int, _ *handoff.Frame, _ bool) decision {
		if n%2 == 0 {
			return busy
		}
		return take
	},
	// Says busy, and that it can take more, as fast as it is asked.
	"reject-again": func(_ int, _ *handoff.Frame, open bool) decision {
		if open {
			return take
		}
		return busy
	},
	// Says busy, and nothing more until the gate opens.
	"reject": func(_ int, _ *handoff.Frame, open bool) decision {
		if open {
			return take
		}
		return busySilent
	},
	// Receives and says nothing.
	"keep": func(_ int, _ *handoff.Frame, open bool) decision {
		if open {
			return take
		}
		return keep
	},
	// Dies with the connection in hand; a connection that has had one death is served.
	"die-unacked": func(_ int, f *handoff.Frame, _ bool) decision {
		if f.Arg > 0 {
			return take
		}
		return dieUnacked
	},
	// Each connection is the death of whoever gets it.
	"poisoned": func(int, *handoff.Frame, bool) decision { return dieUnacked },
	"die-acked": func(n int, _ *handoff.Frame, _ bool) decision {
		if n%10 == 0 {
			return dieAcked
		}
		return take
	},
}

// die ends this process as a crash does, without a word. (A signal of its own
// would be one from outside, or be caught by Go's runtime.)
func die() { os.Exit(70) }
