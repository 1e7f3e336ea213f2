package worker

import (
	"fmt"
	"net"
	"strings"
)

// Active reports whether this process was started by rrd. It says nothing to the
// master yet: the first Listen does.
//
// The first call of any function of this package reads the variables that rrd
// has set and removes RRD_CHANNEL_FD and RRD_PROTOCOL from the environment, so
// that this program's own children are not taken for workers. RRD_SLOT and
// RRD_GENERATION stay for the program to read.
func Active() bool {
	ch, err := process()
	return ch != nil || err != nil
}

// Listen returns the listener that this worker serves for address. network is
// "tcp", "tcp4", "tcp6" or "unix". Where the master was given --listen, it is
// that which decides what is served; address then only chooses among several, by
// name or by being equal. A relative path of a unix socket is the master's to
// resolve, against the directory that this worker was started in.
//
// Accept returns a *Conn for tcp and a *UnixConn for unix, under every policy
// and also outside rrd. When the worker drains, Accept blocks. Closing the
// listener means that this program leaves it: connections that arrive late go
// back to the master, and those already accepted stay open. Two listeners of one
// address are one to the master: each connection goes to whichever is in Accept,
// and the last Close leaves.
//
// Errors are *net.OpError as those of net.Listen; errors.Is finds the errno, for
// instance syscall.EADDRINUSE.
func Listen(network, address string) (net.Listener, error) {
	switch network {
	case "tcp", "tcp4", "tcp6", "unix":
	default:
		return nil, listenError(network, address, net.UnknownNetworkError(network))
	}
	ch, err := process()
	if err != nil {
		return nil, err
	}
	if ch == nil {
		return listenAlone(network, address)
	}
	return ch.listen(network, address)
}

// ListenPacket is Listen for datagrams; network is "udp", "udp4" or "udp6". The
// socket is shared by all workers under every policy, and each datagram goes to
// one of them. The result embeds a *net.UDPConn. It has no connections that could
// be counted: when the worker drains, a program that must answer what it has
// read watches Draining, stops reading and answers.
func ListenPacket(network, address string) (net.PacketConn, error) {
	switch network {
	case "udp", "udp4", "udp6":
	default:
		return nil, listenError(network, address, net.UnknownNetworkError(network))
	}
	ch, err := process()
	if err != nil {
		return nil, err
	}
	if ch == nil {
		return listenPacketAlone(network, address)
	}
	return ch.listenPacket(network, address)
}

// Draining is closed when the master has asked this worker to finish, or is gone.
// A program with long connections then ends those that are idle, and websockets;
// without that they hold the worker until the drain timeout. Outside rrd it is
// never closed.
func Draining() <-chan struct{} {
	ch, err := process()
	if ch == nil || err != nil {
		return neverC
	}
	ch.start()
	return ch.drainC
}

var neverC = make(chan struct{})

// address is an address that was asked for, as text.
type address struct{ network, text string }

func (a address) Network() string { return a.network }
func (a address) String() string  { return a.text }

func listenError(network, addr string, err error) error {
	return &net.OpError{Op: "listen", Net: network, Addr: address{network, addr}, Err: err}
}

// refusal is an errno that the master has sent together with advice.
type refusal struct {
	text  string
	errno error
}

func (r *refusal) Error() string {
	if errno := r.errno.Error(); !strings.HasSuffix(r.text, errno) { // rrd's own ends with it
		return fmt.Sprintf("%s (%s)", r.text, errno)
	}
	return r.text
}
func (r *refusal) Unwrap() error { return r.errno }
