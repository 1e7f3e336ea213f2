package handoff

import (
	"encoding/binary"
	"errors"
)

// Sizes of the protocol. docs/protocol.md, "Messages".
const (
	// FrameSize is the length of every frame in bytes.
	FrameSize = 64
	// MaxFrames is how many frames one message may hold.
	MaxFrames = 16
	// MaxPayload is how many bytes may follow a HELLO, LISTEN, LISTENING or TICKETS frame.
	MaxPayload = 4096
	// MaxMessage is the longest legal message in bytes.
	MaxMessage = FrameSize + MaxPayload
	// MaxTicketKeys is how many keys a TICKETS frame may bring.
	MaxTicketKeys = 3
	// TicketKeySize is the length of each in bytes.
	TicketKeySize = 32
)

// Type is what a frame says.
type Type uint8

// The frames. The master says those below 16, the worker the others.
const (
	Hello     Type = 1 // first: Arg version, Flags HelloTouches, Seq drain timeout in ms (0: none)
	Handoff   Type = 2 // Seq, Listener; one descriptor; Arg deaths of workers so far
	Listening Type = 3 // answer to Listen: Seq as asked, Arg errno, Listener, Flags; payload
	Drain     Type = 4 // nothing new; finish, then Drained
	Ping      Type = 5 // Seq; answered by Pong
	Dump      Type = 6 // what the process is doing, to its stderr; no answer
	Tickets   Type = 8 // after AskTickets: Seq serial of the rotation, Arg number of keys; payload the keys, newest first

	Ready   Type = 16 // once: the first Accept; handoffs may come; Flags ReadyTouches
	Ack     Type = 17 // Seq: this worker serves it; before its first byte is read or written
	Reject  Type = 18 // Seq, Arg Reason: not me; no byte was read or written
	Again   Type = 19 // Listener: after a reject, can take again
	Listen  Type = 20 // Seq of the worker's own, Arg backlog, Listener ordinal, Flags; payload network NUL address
	Leave   Type = 21 // Listener: this program closed its listener
	Drained Type = 22 // after Drain: no connection is open any more
	Pong    Type = 23 // Seq as in Ping
	Bye     Type = 24 // the worker closes its end and lives on; nothing follows
	Touched Type = 25 // Seq, acked: read from, written to or closed; the master's copy may go
	Closed  Type = 26 // Arg: so many acked connections were closed since the last Closed
	Health  Type = 27 // Arg 0: the program's own check passes again; 1: it fails

	AskTickets Type = 31 // now and at each rotation: Tickets
)

func (t Type) String() string {
	if int(t) < len(typeNames) && typeNames[t] != "" {
		return typeNames[t]
	}
	return "UNKNOWN"
}

var typeNames = [...]string{
	Hello: "HELLO", Handoff: "HANDOFF", Listening: "LISTENING", Drain: "DRAIN", Ping: "PING", Dump: "DUMP", Tickets: "TICKETS",
	Ready: "READY", Ack: "ACK", Reject: "REJECT", Again: "AGAIN", Listen: "LISTEN", Leave: "LEAVE",
	Drained: "DRAINED", Pong: "PONG", Bye: "BYE", Touched: "TOUCHED", Closed: "CLOSED", Health: "HEALTH", AskTickets: "ASK_TICKETS",
}

// Reason says why a worker rejects. A reject speaks of the worker, never of the
// connection.
type Reason uint32

const (
	ReasonBusy     Reason = 1 // nobody took it for 20 ms; Again follows
	ReasonDraining Reason = 2 // this worker has been told to drain
	ReasonFDLimit  Reason = 3 // the descriptor did not arrive: too many open files; Again follows
	ReasonClosed   Reason = 4 // this program has closed that listener
	ReasonOther    Reason = 5
)

func (r Reason) String() string {
	switch r {
	case ReasonBusy:
		return "busy"
	case ReasonDraining:
		return "draining"
	case ReasonFDLimit:
		return "fd_limit"
	case ReasonClosed:
		return "closed"
	}
	return "other"
}

// Flags of single frames.
const (
	// HelloTouches asks the worker for a Touched per acked connection.
	HelloTouches uint16 = 1
	// HelloCloses asks for Closed as soon as a connection is closed: the master
	// limits how many a worker has.
	HelloCloses uint16 = 2
	// HelloTickets says that the master has keys for TLS session tickets. Only a worker
	// that has read it may say AskTickets.
	HelloTickets uint16 = 8
	// ReadyTouches says that the worker will say Touched of every connection that
	// it acks. Only then does the master keep copies of acked connections.
	ReadyTouches uint16 = 1
	// ListeningShared says that a listening descriptor rides along: the worker
	// accepts by itself.
	ListeningShared uint16 = 1
	// ListeningPacket says that the descriptor is a datagram socket.
	ListeningPacket uint16 = 2
	// ListenExact asks for just that address, also where the master has only one
	// listener to offer.
	ListenExact uint16 = 1
	// ListenReadable and ListenWritable ask for a socket file that everyone may
	// read, or write.
	ListenReadable uint16 = 2
	ListenWritable uint16 = 4
	// ListenReuse asks for SO_REUSEADDR on a datagram socket.
	ListenReuse uint16 = 8
	// ListenPrivate marks a socket that a Node tool has made for itself. Package node sets
	// it. On the wire of this package's own dialect it means nothing.
	ListenPrivate uint16 = 1 << 15
)

// Frame is one decoded frame. What a field means depends on Type.
type Frame struct {
	Type     Type
	Flags    uint16
	Seq      uint64
	Listener uint32
	Arg      uint32
	// Payload follows a Hello, Listen, Listening or Tickets frame, which is then alone in
	// its message. After Decode it points into the message.
	Payload []byte
	// Data goes with Listen and Listening: what the first who asks for a listener
	// leaves with it, and everyone who asks gets. It is a secret of the workers.
	// rrd's own protocol does not carry it.
	Data []byte
	// Version is the version in which the frame is written; 0: ProtocolVersion. Decode
	// leaves it 0.
	Version uint8 `json:",omitempty"`
}

// Why a message is refused.
var (
	// ErrMagic: a frame that does not begin with "RRD" and a version from 1.
	ErrMagic = errors.New("frame without the magic bytes")
	// ErrLength: a message that is not 1 to 16 whole frames, or whose payload is
	// not as long as its frame says.
	ErrLength = errors.New("message of a wrong length")
	// ErrPayload: a payload on a frame that has none, or beside other frames.
	ErrPayload = errors.New("payload where none is allowed")
)

// Layout, little-endian: 0 "RRD", 3 version, 4 type, 5 zero, 6 flags, 8 seq,
// 16 listener, 20 arg, 24 payload length, 28 to 63 zero (ignored by readers, so
// that a later version may use them).

// Put encodes f into b, which holds at least FrameSize bytes. The payload is not
// copied, only its length is written.
func (f *Frame) Put(b []byte) {
	_ = b[FrameSize-1]
	le := binary.LittleEndian
	version := f.Version
	if version == 0 {
		version = ProtocolVersion
	}
	le.PutUint32(b[0:], 'R'|'R'<<8|'D'<<16|uint32(version)<<24)
	le.PutUint32(b[4:], uint32(f.Type)|uint32(f.Flags)<<16)
	le.PutUint64(b[8:], f.Seq)
	le.PutUint32(b[16:], f.Listener)
	le.PutUint32(b[20:], f.Arg)
	le.PutUint32(b[24:], uint32(len(f.Payload)))
	clear(b[28:FrameSize])
}

// Append appends the encoded frame and its payload to b.
func (f *Frame) Append(b []byte) []byte {
	var raw [FrameSize]byte
	f.Put(raw[:])
	return append(append(b, raw[:]...), f.Payload...)
}

// Decode reads the first frame of message b into f and returns what follows it.
// first says that no frame of this message came before; only such a frame may
// have a payload. It checks the form, not whether the frame is legal now.
func Decode(f *Frame, b []byte, first bool) (rest []byte, err error) {
	if len(b) < FrameSize {
		return nil, ErrLength
	}
	le := binary.LittleEndian
	if b[0] != 'R' || b[1] != 'R' || b[2] != 'D' || b[3] == 0 {
		return nil, ErrMagic
	}
	f.Type = Type(b[4])
	f.Flags = le.Uint16(b[6:])
	f.Seq = le.Uint64(b[8:])
	f.Listener = le.Uint32(b[16:])
	f.Arg = le.Uint32(b[20:])
	f.Payload, f.Data, f.Version = nil, nil, 0
	rest = b[FrameSize:]
	n := le.Uint32(b[24:])
	if n == 0 {
		return rest, nil
	}
	if !hasPayload(f.Type) || !first {
		return nil, ErrPayload
	}
	if n > MaxPayload || int(n) != len(rest) {
		return nil, ErrLength
	}
	f.Payload = rest
	return nil, nil
}

func hasPayload(t Type) bool { return t == Hello || t == Listen || t == Listening || t == Tickets }

// messageLen returns how long the message is that begins with the frame in b,
// for a stream, where nothing else marks its end: a frame and its payload.
func messageLen(b []byte) int {
	n := binary.LittleEndian.Uint32(b[24:])
	if n > MaxPayload {
		return FrameSize
	}
	return FrameSize + int(n)
}
