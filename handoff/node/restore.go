package node

import (
	"fmt"

	"rrd/handoff"
	"rrd/handoff/internal/unixmsg"
)

// State is a Conn as it crosses exec(2) in one process: descriptors keep their
// numbers, and what the kernel holds of the conversation stays there. It is
// written as JSON. Fields may be added, none is ever used for something else.
//
// The whole of it is a secret: Input, Unsent and the texts of shared sockets may
// hold the keys of TLS tickets. It is in no log and no error.
//
// The batch is not in it.
type State struct {
	FD handoff.FD `json:"fd"`
	// Watched: WatchSender is on. The socket's own option is kept by the socket.
	Watched bool `json:"watched,omitempty"`
	Sender  int  `json:"sender,omitempty"` // as Sender returns it

	// Input is what was received and not taken by Next: complete lines, and the
	// beginning of one.
	Input    []byte `json:"input,omitempty"`
	Skipping bool   `json:"skipping,omitempty"` // until the end of a line that was too long

	Next   uint64 `json:"next,omitempty"`   // seq of the next message to the worker
	Unsent []byte `json:"unsent,omitempty"` // what is to be written before anything else

	Under   []Handle `json:"under,omitempty"`   // the handles under way, oldest first
	Arrived int      `json:"arrived,omitempty"` // so many of them are acknowledged
	Pos     uint64   `json:"pos,omitempty"`     // bytes committed to the channel so far
	Acked   uint64   `json:"acked,omitempty"`   // where the last message ended whose handle was acknowledged
	Again   []Share  `json:"again,omitempty"`   // to be sent again

	Asked []Ask    `json:"asked,omitempty"` // unanswered requests
	Open  []uint32 `json:"open,omitempty"`  // the listeners that the worker has, by wire
	Left  []uint32 `json:"left,omitempty"`  // those taken from it, for Next to say so

	Listening bool `json:"listening,omitempty"` // the worker listens
	Ready     bool `json:"ready,omitempty"`     // its program sent "ready"
	SaidReady bool `json:"said_ready,omitempty"`
	Bye       bool `json:"bye,omitempty"` // it leaves by itself

	Drain      string   `json:"drain,omitempty"`       // "", "waiting", "fencing" or "told"
	FenceWaits bool     `json:"fence_waits,omitempty"` // for room
	MayLeave   []uint64 `json:"may_leave,omitempty"`   // farewells that wait for an answer
}

// Handle is a handoff that is not answered, or a shared socket that has not
// arrived.
type Handle struct {
	N     uint64 `json:"n"`             // the seq that the worker's answer names
	Seq   uint64 `json:"seq,omitempty"` // the caller's name for it
	End   uint64 `json:"end"`           // where its message ends, as Pos counts
	Wire  uint32 `json:"wire"`
	Share *Share `json:"share,omitempty"` // nil: a handoff
	Fence bool   `json:"fence,omitempty"`
	Done  bool   `json:"done,omitempty"` // answered before it was acknowledged
}

// Share is a shared socket on its way to a worker.
type Share struct {
	FD    handoff.FD `json:"fd"`  // our duplicate; there may be none
	Seq   uint64     `json:"seq"` // of the worker's request
	Wire  uint32     `json:"wire"`
	Text  []byte     `json:"text"` // the message; a secret
	Tries int        `json:"tries,omitempty"`
}

// Ask is a queryServer that was not answered.
type Ask struct {
	Seq  uint64 `json:"seq"`
	Port uint16 `json:"port,omitempty"`
	// Mapped: an IPv4 address was asked for as an IPv6 one.
	Mapped bool `json:"mapped,omitempty"`
}

var drainNames = [...]string{notDraining: "", waiting: "waiting", fencing: "fencing", told: "told"}

// State returns what Restore makes the same Conn of. It changes nothing: the Conn
// may go on, and stays the owner of the descriptors, which the state names. The
// state shares no memory with the Conn.
//
// It is called between two turns of the loop. A handoff that was added and not
// flushed is left out: to flush it before is the caller's duty, or it is the
// caller's to place again.
func (c *Conn) State() State {
	s := State{
		FD: c.fd, Watched: c.sender.Watched(), Sender: c.sender.PID(),
		Input: copied(c.in.buf[c.in.start:c.in.end]), Skipping: c.in.skipping,
		Next: c.next, Unsent: copied(c.unsent),
		Arrived: c.window.arrived, Pos: c.window.pos, Acked: c.window.acked,
		Open: copied(c.open), Left: copied(c.left),
		Listening: c.listening, Ready: c.ready, SaidReady: c.saidReady, Bye: c.bye,
		Drain: drainNames[c.draining], FenceWaits: c.fenceWaits, MayLeave: copied(c.mayLeave),
	}
	for i := range c.window.under {
		h := &c.window.under[i]
		e := Handle{N: h.n, Seq: h.seq, End: h.end, Wire: h.wire, Fence: h.fence, Done: h.done}
		if h.share != nil {
			share := h.share.state()
			e.Share = &share
		}
		s.Under = append(s.Under, e)
	}
	for _, a := range c.again {
		s.Again = append(s.Again, a.state())
	}
	for _, a := range c.asked {
		s.Asked = append(s.Asked, Ask{Seq: a.seq, Port: a.port, Mapped: a.mapped})
	}
	return s
}

// copied returns a copy; nil if there is nothing, as JSON has it.
func copied[T any](s []T) []T { return append([]T(nil), s...) }

func (s *share) state() Share {
	return Share{FD: s.fd, Seq: s.seq, Wire: s.wire, Text: copied(s.text), Tries: s.tries}
}

// restored makes the owner of the share's descriptor.
func (s *Share) restored() *share {
	return &share{fd: s.FD, seq: s.Seq, wire: s.Wire, text: copied(s.Text), tries: s.Tries}
}

// FDs lends all descriptors in the state.
func (s State) FDs() []handoff.FD {
	var fds []handoff.FD
	add := func(d handoff.FD) {
		if d.Valid() {
			fds = append(fds, d)
		}
	}
	add(s.FD)
	for _, h := range s.Under {
		if h.Share != nil {
			add(h.Share.FD)
		}
	}
	for _, a := range s.Again {
		add(a.FD)
	}
	return fds
}

// Restore makes a Conn that goes on where the one of the state was, if it gets
// the same Config. It takes ownership of the descriptors, and asks the kernel
// nothing about them: one that is not open shows at the first call. On an error,
// which names a field of the JSON, the descriptors are the caller's.
func Restore(s State, conf Config) (*Conn, error) {
	step, err := s.check()
	if err != nil {
		return nil, fmt.Errorf("restore node channel: %w", err)
	}
	c := newConn(conf, s.FD)
	c.sender = unixmsg.RestoreSender(s.Watched, s.Sender)
	c.in.end = copy(c.in.buf[:], s.Input)
	c.in.skipping = s.Skipping
	c.next, c.unsent = s.Next, copied(s.Unsent)
	c.window = window{arrived: s.Arrived, pos: s.Pos, acked: s.Acked}
	for _, e := range s.Under {
		h := handle{n: e.N, seq: e.Seq, end: e.End, wire: e.Wire, fence: e.Fence, done: e.Done}
		if e.Share != nil {
			h.share = e.Share.restored()
		}
		c.window.push(h)
	}
	for i := range s.Again {
		c.again = append(c.again, s.Again[i].restored())
	}
	for _, a := range s.Asked {
		c.asked = append(c.asked, ask{seq: a.Seq, port: a.Port, mapped: a.Mapped})
	}
	c.open, c.left = copied(s.Open), copied(s.Left)
	c.listening, c.ready, c.saidReady, c.bye = s.Listening, s.Ready, s.SaidReady, s.Bye
	c.draining, c.fenceWaits, c.mayLeave = step, s.FenceWaits, copied(s.MayLeave)
	return c, nil
}
