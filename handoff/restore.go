package handoff

import (
	"errors"
	"fmt"

	"rrd/handoff/internal/unixmsg"
)

// ConnState is a Conn as it crosses exec(2) in one process: descriptors keep
// their numbers, and what the kernel holds of the conversation stays there. It is
// written as JSON. Fields may be added, none is ever used for something else.
//
// The batch is not in it.
type ConnState struct {
	FD   FD `json:"fd"`
	Peer FD `json:"peer"` // the duplicate of the worker's end; none on a stream of BSD
	// Stream: SOCK_STREAM, not SOCK_SEQPACKET.
	Stream bool `json:"stream,omitempty"`
	// Watched: WatchSender is on. The socket's own option is kept by the socket.
	Watched bool `json:"watched,omitempty"`
	Sender  int  `json:"sender,omitempty"` // as Sender returns it
	// Input is the message that was received last, if Next has not taken all of
	// it, and on a stream also one of which only the beginning has come.
	Input []byte `json:"input,omitempty"`
	// Next is where in Input Next goes on.
	Next int `json:"next,omitempty"`
	// Unsent is the rest of a message that a stream took in part.
	Unsent []byte `json:"unsent,omitempty"`
}

// State returns what RestoreConn makes the same Conn of. It changes nothing: the
// Conn may go on, and stays the owner of the descriptors, which the state names.
//
// It is called between two turns of the loop. A batch that was not flushed is
// left out: to flush it before is the caller's duty, or its handoffs are the
// caller's to place again.
func (c *Conn) State() ConnState {
	s := ConnState{
		FD: c.fd, Peer: c.peer, Stream: c.stream,
		Watched: c.sender.Watched(), Sender: c.sender.PID(),
		Unsent: append([]byte(nil), c.unsent...),
	}
	switch {
	case c.next < c.end:
		s.Input, s.Next = append([]byte(nil), c.in[:c.end]...), c.next
	case c.stream && c.end == 0:
		s.Input = append([]byte(nil), c.in[:c.have]...)
	}
	return s
}

// FDs lends all descriptors in the state.
func (s ConnState) FDs() []FD {
	var fds []FD
	for _, d := range []FD{s.FD, s.Peer} {
		if d.Valid() {
			fds = append(fds, d)
		}
	}
	return fds
}

// RestoreConn makes a Conn that goes on where the one of the state was. It takes
// ownership of both descriptors, and asks the kernel nothing about them: one that
// is not open shows at the first call. On an error, which names a field of the
// JSON, the descriptors are the caller's.
func RestoreConn(s ConnState) (*Conn, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("restore channel: %w", err)
	}
	c := newConn(s.FD, s.Peer, s.Stream)
	c.sender = unixmsg.RestoreSender(s.Watched, s.Sender)
	c.unsent = append(c.unsent, s.Unsent...)
	n := copy(c.in[:], s.Input)
	c.first = s.Next == 0
	if s.Stream {
		c.have = n
	}
	if !s.Stream || s.whole() {
		c.next, c.end = s.Next, n
	}
	return c, nil
}

// whole reports whether all of a stream's message has come.
func (s *ConnState) whole() bool {
	return len(s.Input) >= FrameSize && len(s.Input) == messageLen(s.Input)
}

// check reports what no Conn can be in.
func (s *ConnState) check() error {
	switch {
	case !s.FD.Valid():
		return errors.New("fd: none")
	case s.FD == s.Peer:
		return fmt.Errorf("peer: descriptor %d is fd already", s.Peer.Num())
	case !s.Peer.Valid() && !s.Stream:
		return errors.New("peer: none, on a channel that is no stream")
	case s.Sender < 0:
		return fmt.Errorf("sender: %d is no process", s.Sender)
	case len(s.Unsent) > 0 && !s.Stream:
		return errors.New("unsent: on a channel that is no stream")
	case len(s.Unsent) > MaxMessage:
		return fmt.Errorf("unsent: %d bytes, messages have %d at most", len(s.Unsent), MaxMessage)
	case len(s.Input) > MaxMessage:
		return fmt.Errorf("input: %d bytes, messages have %d at most", len(s.Input), MaxMessage)
	}
	return s.checkInput()
}

func (s *ConnState) checkInput() error {
	n := len(s.Input)
	switch {
	case s.Stream && n >= FrameSize && n > messageLen(s.Input):
		return fmt.Errorf("input: %d bytes, the message has %d", n, messageLen(s.Input))
	case s.Next == 0:
		return nil
	case s.Stream:
		return fmt.Errorf("next: %d, a message of a stream is taken whole", s.Next)
	case s.Next < 0 || s.Next >= n || s.Next%FrameSize != 0:
		return fmt.Errorf("next: %d is not the beginning of a frame in %d bytes", s.Next, n)
	case n > MaxFrames*FrameSize:
		return fmt.Errorf("next: %d, a message of %d bytes is taken whole", s.Next, n)
	}
	return nil
}
