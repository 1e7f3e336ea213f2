//go:build unix

package main

import (
	"encoding/binary"
	"math/rand/v2"

	"rrd/handoff"
)

// hostile says much that is legal in form and state and senseless in all else, then
// breaks the protocol and waits to be killed. A LISTEN ends each volley: the master
// answers it when it has read all that came before, so only what it has read is
// noted.
func (w *worker) hostile(f *handoff.Frame) error {
	w.serving.Wait() // what was acked before is to be served, and is CLOSED
	listeners := []uint32{f.Listener, f.Listener, 0, 1, 1 << 20, ^uint32(0)}
	var owed []handoff.Frame // handoffs that came meanwhile
	for seq := uint64(2); seq < 2+4; seq++ {
		n := 0
		for range 1 + w.chance.IntN(24) {
			size := 1 + w.chance.IntN(handoff.MaxFrames)
			var b []byte
			for range size {
				fr := nonsense(listeners, w.chance)
				if len(owed) > 0 {
					fr = handoff.Frame{Type: handoff.Reject, Seq: owed[0].Seq, Arg: w.chance.Uint32()}
					owed = owed[1:]
				}
				b = litter(fr.Append(b), w.chance)
			}
			if err := w.raw(b, nil); err != nil {
				return err
			}
			n += size
		}
		if err := w.say(handoff.Frame{Type: handoff.Listen, Seq: seq, Payload: []byte(w.asked)}); err != nil {
			return err
		}
		more, err := w.listening(seq)
		if err != nil {
			return err
		}
		owed = append(owed, more...)
		w.book.note("frames", n+1)
	}
	for _, o := range owed { // its clients are to see nothing of the end
		if err := w.say(handoff.Frame{Type: handoff.Reject, Seq: o.Seq, Arg: uint32(handoff.ReasonBusy)}); err != nil {
			return err
		}
	}
	w.violate(f)
	return nil
}

// listening waits for the answer to a LISTEN, and returns the handoffs that came
// before it.
func (w *worker) listening(seq uint64) (owed []handoff.Frame, err error) {
	var m handoff.Message
	for {
		if err := w.port.Receive(&m); err != nil {
			return owed, err
		}
		m.Close()
		for i := range m.N {
			switch f := m.Frames[i]; {
			case f.Type == handoff.Handoff:
				owed = append(owed, f)
			case f.Type == handoff.Ping:
				if err := w.say(handoff.Frame{Type: handoff.Pong, Seq: f.Seq}); err != nil {
					return owed, err
				}
			case f.Type == handoff.Listening && f.Seq == seq:
				return owed, nil
			}
		}
	}
}

// nonsense is a frame that a serving worker may say, of something that it has no
// reason to speak of.
func nonsense(listeners []uint32, chance *rand.Rand) handoff.Frame {
	seq := chance.Uint64() >> chance.IntN(64)
	listener := listeners[chance.IntN(len(listeners))]
	switch chance.IntN(8) {
	case 0:
		return handoff.Frame{Type: handoff.Leave, Seq: seq, Listener: listener}
	case 1:
		return handoff.Frame{Type: handoff.Health, Seq: seq, Arg: uint32(chance.IntN(2))}
	case 2:
		return handoff.Frame{Type: handoff.Health, Seq: seq}
	case 3:
		return handoff.Frame{Type: handoff.Closed, Seq: seq}
	case 4, 5:
		return handoff.Frame{Type: handoff.Touched, Seq: seq, Arg: chance.Uint32()}
	default:
		return handoff.Frame{Type: handoff.Again, Seq: seq, Listener: listener}
	}
}

// litter fills all of the last frame in b that has no meaning, and claims that it is
// of a version to come.
func litter(b []byte, chance *rand.Rand) []byte {
	f := b[len(b)-handoff.FrameSize:]
	f[3] = 1 + byte(chance.IntN(255))
	f[5] = byte(chance.Uint32())
	binary.LittleEndian.PutUint16(f[6:], uint16(chance.Uint32()))
	for i := 28; i < handoff.FrameSize; i++ {
		f[i] = byte(chance.Uint32())
	}
	return b
}
