package aside

import (
	"encoding/binary"
	"errors"
	"syscall"
)

// The messages of both directions begin with the same header, little-endian:
//
//	0  "RRDA"
//	4  call
//	5  flags: 1 = a part, more follows
//	6  errno of an answer
//	8  id of the request
//	16 argument of a request, or how many descriptors an answer carries
//	24 payload of an answer
//
// A request has no payload. Both ends are the same program, so there is no version.
const (
	headerSize = 24
	flagPart   = 1

	connSize  = 32
	queueSize = 16
)

var magic = [4]byte{'R', 'R', 'D', 'A'}

// errMessage is the error for a message that this protocol does not have.
var errMessage = errors.New("malformed message of a helper")

type header struct {
	call  Call
	part  bool
	errno syscall.Errno
	id    uint64
	arg   uint64
}

func (h header) append(b []byte) []byte {
	flags := byte(0)
	if h.part {
		flags = flagPart
	}
	b = append(b, magic[:]...)
	b = append(b, byte(h.call), flags)
	b = binary.LittleEndian.AppendUint16(b, uint16(h.errno))
	b = binary.LittleEndian.AppendUint64(b, h.id)
	return binary.LittleEndian.AppendUint64(b, h.arg)
}

func decodeHeader(b []byte) (h header, payload []byte, err error) {
	if len(b) < headerSize || [4]byte(b) != magic {
		return h, nil, errMessage
	}
	h = header{
		call: Call(b[4]), part: b[5]&flagPart != 0, errno: syscall.Errno(binary.LittleEndian.Uint16(b[6:])),
		id: binary.LittleEndian.Uint64(b[8:]), arg: binary.LittleEndian.Uint64(b[16:]),
	}
	if h.call == 0 || h.call > lastCall || b[5] > flagPart {
		return h, nil, errMessage
	}
	return h, b[headerSize:], nil
}

// decodeRequest checks a request that came with fds descriptors.
func decodeRequest(b []byte, fds int) (header, error) {
	h, payload, err := decodeHeader(b)
	switch {
	case err != nil:
		return h, err
	case len(payload) > 0 || h.part || h.errno != 0 || h.arg > 1<<31-1:
		return h, errMessage
	case fds != 1 && h.call != discard || fds < 1 || fds > maxDiscard:
		return h, errMessage
	}
	return h, nil
}

// decodeAnswer checks an answer to call, which came with fds descriptors, and fills
// in what it tells.
func decodeAnswer(b []byte, call Call, fds int, a *Answer) (h header, payload []byte, err error) {
	h, payload, err = decodeHeader(b)
	want := 0
	switch {
	case err != nil:
		return h, nil, err
	case h.call != call || h.arg != uint64(fds) || fds > MaxAccept || fds > 0 && h.call != Accept:
		return h, nil, errMessage
	case h.part:
		if call != Recall || h.errno != 0 || len(payload) == 0 {
			return h, nil, errMessage
		}
		return h, payload, nil
	case h.errno == 0 && call == Conn:
		want = connSize
	case h.errno == 0 && call == Queue:
		want = queueSize
	}
	if len(payload) != want {
		return h, nil, errMessage
	}
	a.Known, a.Errno = true, h.errno
	switch want {
	case connSize:
		a.conn = ConnFacts{
			Received: binary.LittleEndian.Uint64(payload), Sent: binary.LittleEndian.Uint64(payload[8:]),
			Unread: binary.LittleEndian.Uint32(payload[16:]), Unsent: binary.LittleEndian.Uint32(payload[20:]),
			State: payload[24],
		}
	case queueSize:
		a.queue = QueueFacts{Length: binary.LittleEndian.Uint32(payload), Limit: binary.LittleEndian.Uint32(payload[4:]),
			Drops: binary.LittleEndian.Uint64(payload[8:])}
	}
	return h, payload, nil
}

func (f *ConnFacts) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, f.Received)
	b = binary.LittleEndian.AppendUint64(b, f.Sent)
	b = binary.LittleEndian.AppendUint32(b, f.Unread)
	b = binary.LittleEndian.AppendUint32(b, f.Unsent)
	return append(b, f.State, 0, 0, 0, 0, 0, 0, 0)
}

func (f *QueueFacts) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, f.Length)
	b = binary.LittleEndian.AppendUint32(b, f.Limit)
	return binary.LittleEndian.AppendUint64(b, f.Drops)
}
