package node

import "rrd/handoff"

// windowBytes: a worker reads at most 64 KiB at a time and keeps one descriptor
// for the next complete NODE_HANDLE. If a read cuts such a message in two while
// others are under way, its descriptor is overwritten by the next and lost. Under
// half a read between two acknowledgements no message can be cut (tried with
// 70 kB messages in between).
const windowBytes = 32 << 10

// handle is a NODE_HANDLE that was sent: a handoff until it is answered, a shared
// socket until it has arrived.
type handle struct {
	n     uint64 // the seq that the worker's answer names
	seq   uint64 // the caller's name for the handoff
	end   uint64 // where its message ends in the stream of all that was sent
	wire  uint32
	share *share // nil: a handoff
	fence bool   // no handoff, though it is answered like one; see drain.go
	done  bool   // answered before it was acknowledged; waits for that
}

// share is a shared socket on its way to a worker.
type share struct {
	fd    handoff.FD // our duplicate, to send it again; may be empty
	seq   uint64     // of the worker's request
	wire  uint32
	text  []byte // the message
	tries int    // how often it was lost
}

// window has the handles under way, oldest first. Acknowledgements come in the
// order of sending and carry no number.
//
//	under[:arrived] are acknowledged and not answered, under[arrived:] neither
type window struct {
	under   []handle
	arrived int
	pos     uint64 // bytes committed to the channel so far
	acked   uint64 // where the last message ended whose handle was acknowledged
}

// shut reports whether no further handle may be sent before an acknowledgement.
func (w *window) shut() bool {
	return w.pos-w.acked >= windowBytes && w.arrived < len(w.under)
}

func (w *window) push(h handle) { w.under = append(w.under, h) }

// arrive takes the oldest handle that was neither acknowledged nor lost; false:
// there is none. What has more to wait for stays under way.
func (w *window) arrive(lost bool) (handle, bool) {
	if w.arrived == len(w.under) {
		return handle{}, false
	}
	h := w.under[w.arrived]
	if !lost {
		w.acked = h.end
	}
	if lost || h.done || h.share != nil {
		w.remove(w.arrived)
	} else {
		w.arrived++
	}
	return h, true
}

// answer takes the handoff that the worker calls n; false: it is not under way.
func (w *window) answer(n uint64) (handle, bool) {
	for i := range w.under {
		h := &w.under[i]
		if h.n != n {
			continue
		}
		if h.share != nil || h.done {
			break
		}
		got := *h
		if i < w.arrived {
			w.remove(i)
			w.arrived--
		} else {
			h.done = true
		}
		return got, true
	}
	return handle{}, false
}

// hasHandoff reports whether a handoff is not answered.
func (w *window) hasHandoff() bool {
	for i := range w.under {
		if h := &w.under[i]; h.share == nil && !h.fence && !h.done {
			return true
		}
	}
	return false
}

func (w *window) remove(i int) {
	last := len(w.under) - 1
	copy(w.under[i:], w.under[i+1:])
	w.under[last] = handle{}
	w.under = w.under[:last]
}

func (w *window) forget() {
	for i := range w.under {
		if s := w.under[i].share; s != nil {
			_ = s.fd.Close()
		}
	}
	w.under, w.arrived = nil, 0
}
