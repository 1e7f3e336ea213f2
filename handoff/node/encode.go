package node

import (
	"bytes"
	"encoding/json"
	"net"
	"net/netip"
	"strconv"

	"rrd/handoff"
)

// The texts. Order and spelling are those of Node's own primary; a worker reads
// any order.
const (
	newconn       = `{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"cmd":"NODE_CLUSTER","act":"newconn","key":"`
	handleAck     = `{"cmd":"NODE_HANDLE_ACK"}` + "\n"
	nativeStream  = `{"cmd":"NODE_HANDLE","type":"net.Native","msg":`
	nativeDgram   = `{"cmd":"NODE_HANDLE","type":"dgram.Native","msg":`
	disconnect    = `{"cmd":"NODE_CLUSTER","act":"disconnect","seq":`
	cluster       = `{"cmd":"NODE_CLUSTER",`
	noKey         = "0" // of an answer that names no server: it must not be empty
	addressInUse  = 98
	invalid       = 22
	tooManyOpened = 24
)

// appendNewconn appends what follows the prefix newconn.
func appendNewconn(b []byte, wire uint32, n uint64) []byte {
	b = strconv.AppendUint(b, uint64(wire), 10)
	b = append(b, `","seq":`...)
	b = strconv.AppendUint(b, n, 10)
	return append(b, '}', '}', '\n')
}

func appendDisconnect(b []byte, n uint64) []byte {
	b = append(b, disconnect...)
	b = strconv.AppendUint(b, n, 10)
	return append(b, '}', '\n')
}

// appendMayLeave appends the answer to exitedAfterDisconnect.
func appendMayLeave(b []byte, seq, n uint64) []byte {
	b = append(b, cluster...)
	b = appendField(b, "ack", seq)
	return appendEnd(b, n)
}

// appendFailure appends a queryServer's answer that the program gets as an error:
// errno is positive here, and must be negative in the text.
func appendFailure(b []byte, errno uint32, seq uint64, data []byte, n uint64) []byte {
	b = append(b, cluster...)
	b = append(b, `"errno":-`...)
	b = strconv.AppendUint(b, uint64(errno), 10)
	b = append(b, `,"key":"`+noKey+`",`...)
	b = appendField(b, "ack", seq)
	b = appendData(b, data)
	return appendEnd(b, n)
}

// appendOpened appends the answer by which the master keeps the listening socket
// (round robin). sockname is a JSON text or nil.
func appendOpened(b []byte, wire uint32, seq uint64, data, sockname []byte, n uint64) []byte {
	b = append(b, cluster...)
	b = append(b, `"errno":null,"key":"`...)
	b = strconv.AppendUint(b, uint64(wire), 10)
	b = append(b, `",`...)
	b = appendField(b, "ack", seq)
	b = appendData(b, data)
	if sockname != nil {
		b = append(b, `"sockname":`...)
		b = append(b, sockname...)
		b = append(b, ',')
	}
	return appendEnd(b, n)
}

// appendShared appends the answer that carries the listening socket itself.
func appendShared(b []byte, dgram bool, wire uint32, seq uint64, data []byte, n uint64) []byte {
	if dgram {
		b = append(b, nativeDgram...)
	} else {
		b = append(b, nativeStream...)
	}
	b = append(b, cluster...)
	b = append(b, `"errno":0,"key":"`...)
	b = strconv.AppendUint(b, uint64(wire), 10)
	b = append(b, `",`...)
	b = appendField(b, "ack", seq)
	b = appendData(b, data)
	b = appendEnd(b, n)
	b[len(b)-1] = '}' // of NODE_HANDLE, in the place of the newline
	return append(b, '\n')
}

func appendField(b []byte, name string, v uint64) []byte {
	b = append(b, '"')
	b = append(b, name...)
	b = append(b, `":`...)
	b = strconv.AppendUint(b, v, 10)
	return append(b, ',')
}

// appendData appends data, a JSON text of a worker's or nothing, as it came.
func appendData(b, data []byte) []byte {
	b = append(b, `"data":`...)
	if len(data) == 0 {
		b = append(b, "null"...)
	} else {
		b = append(b, data...)
	}
	return append(b, ',')
}

// appendEnd ends a cluster message whose last field ended with a comma.
func appendEnd(b []byte, n uint64) []byte {
	b = append(b, `"seq":`...)
	b = strconv.AppendUint(b, n, 10)
	return append(b, '}', '\n')
}

// sockname is what server.address() is to return for the listener that payload
// names (network NUL address): its address in the form and with the port that the program
// asked for. Node takes another port for EADDRINUSE. Nil: the listener has none, as a unix socket.
func sockname(payload []byte, asked ask) []byte {
	network, address, _ := bytes.Cut(payload, []byte{0})
	host, port, err := net.SplitHostPort(string(address))
	if err != nil || bytes.Equal(network, []byte("unix")) {
		return nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil
	}
	if asked.port != 0 {
		n = uint64(asked.port)
	}
	if host == "" {
		host = "::"
		if bytes.HasSuffix(network, []byte{'4'}) {
			host = "0.0.0.0"
		}
	}
	family := "IPv6"
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is4() {
		if asked.mapped {
			host = "::ffff:" + host
		} else {
			family = "IPv4"
		}
	}
	name, err := json.Marshal(host)
	if err != nil {
		return nil
	}
	b := append([]byte(`{"address":`), name...)
	b = append(b, `,"family":"`+family+`","port":`...)
	b = strconv.AppendUint(b, n, 10)
	return append(b, '}')
}

// appendAboutConnections appends the answer to what a worker asks about
// connections that it has sent away: there are none.
func appendAboutConnections(b []byte, count bool, key []byte) []byte {
	if count {
		b = append(b, `{"cmd":"NODE_SOCKET_COUNT","key":`...)
		b = append(b, key...)
		return append(b, `,"count":0}`+"\n"...)
	}
	b = append(b, `{"cmd":"NODE_SOCKET_ALL_CLOSED","key":`...)
	b = append(b, key...)
	return append(b, '}', '\n')
}

// textOf is what a frame that carries no descriptor says to the worker; nil:
// nothing.
func (c *Conn) textOf(f *handoff.Frame, a ask) []byte {
	if f.Arg != 0 {
		return appendFailure(nil, f.Arg, a.seq, f.Data, c.next)
	}
	return appendOpened(nil, f.Listener, a.seq, f.Data, sockname(f.Payload, a), c.next)
}
