package node

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"rrd/handoff"
	"rrd/handoff/internal/unixmsg"
)

// Config is what a channel does besides.
type Config struct {
	// ReadyOnMessage holds Ready back until the program has also sent the message
	// "ready".
	ReadyOnMessage bool
	// Private reports whether a unix socket at path belongs to the process pid alone and not
	// to the service. Such a socket makes no worker ready. pid may be 0. If Private is nil, no
	// socket is private.
	Private func(path string, pid int) bool
	// Message is called by Next, in its caller's goroutine, with every message of
	// the program's own (process.send): one JSON text, cut to 1 KiB, good during
	// the call only. It must not block.
	Message func(text []byte)
}

// Conn is the master's end of a channel to one Node worker. It never blocks. It
// is not safe for concurrent use: the dispatch loop owns it.
//
// What it has to say of its own accord (Unsent) leaves with Flush when the
// channel can be written to.
type Conn struct {
	conf   Config
	fd     handoff.FD
	sender unixmsg.Sender

	in   input
	next uint64 // seq of the next message to the worker, its own count

	// Of the batch, which is one handoff.
	line   []byte // prefix and rest of its text; keeps its memory
	batch  handle
	lent   int // its descriptor
	filled bool
	rights unixmsg.Rights

	unsent []byte   // what is to be written before anything else
	again  []*share // shared sockets that were lost on the way, to be sent again
	window window

	asked []ask    // the worker's unanswered requests
	open  []uint32 // the listeners that it has, by wire
	left  []uint32 // those taken from it, for Next to say so

	listening bool // it has said that it listens
	ready     bool // the program has sent "ready"
	saidReady bool
	draining  drainStep
	mayLeave  []uint64 // its exitedAfterDisconnect messages that wait for an answer
	// fenceWaits: the channel had no room for the fence.
	fenceWaits bool
	bye        bool // it said exitedAfterDisconnect: no handle any more
}

// Pair makes a channel. child is the worker's end, a blocking STREAM socket (Node
// sets its own end as it likes), to be inherited by the worker and closed by the
// caller once it was spawned: while it is open the worker's end is not seen.
func Pair(c Config) (master *Conn, child *os.File, err error) {
	fds, err := unixmsg.Socketpair(unix.SOCK_STREAM)
	if err != nil {
		return nil, nil, fmt.Errorf("make channel: %w", err)
	}
	master = newConn(c, handoff.Own(fds[0]))
	child = os.NewFile(uintptr(fds[1]), "node-channel")
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_, _ = master.Close(), child.Close()
		return nil, nil, fmt.Errorf("make channel: %w", os.NewSyscallError("fcntl", err))
	}
	return master, child, nil
}

// newConn takes ownership of fd.
func newConn(c Config, fd handoff.FD) *Conn {
	return &Conn{
		conf: c, fd: fd, rights: unixmsg.NewRights(1),
		line: append(make([]byte, 0, len(newconn)+64), newconn...),
	}
}

// Why a conversation is ended, besides the errnos of the kernel. All mean that
// this worker is to be ended, and nothing else.
var (
	// ErrLine: a message of Node's cluster that is no JSON, lacks what it must
	// have, or is longer than any real one.
	ErrLine = errors.New("broken NODE_CLUSTER message")
	// ErrAsks: more exitedAfterDisconnect under way than any program sends.
	ErrAsks = errors.New("too many unanswered exitedAfterDisconnect messages")
	// ErrUnread: the worker has us answer and does not read the answers.
	ErrUnread = errors.New("worker does not read its channel")
)

// Traits are those of Node's cluster.
func (c *Conn) Traits() handoff.Traits {
	return handoff.Traits{NoPong: true, NoAgain: true, NoClosed: true, HangsUp: true, Untouched: true}
}

// Num lends the number of the descriptor, for a poller.
func (c *Conn) Num() int { return c.fd.Num() }

// Close closes the master's end, on which a worker that was not told to
// disconnect exits at once, and the duplicates of shared sockets. Handoffs are
// the caller's still.
func (c *Conn) Close() error {
	c.window.forget()
	for _, s := range c.again {
		_ = s.fd.Close()
	}
	c.again = nil
	return c.fd.Close()
}

// Unread reports false: the worker may have read half of a message.
func (c *Conn) Unread() (end handoff.FD, some bool) { return handoff.FD{}, false }

// WatchSender makes Receive note who sent each message, until IgnoreSender.
func (c *Conn) WatchSender() error { return c.sender.Watch(c.fd.Num()) }

// IgnoreSender ends WatchSender.
func (c *Conn) IgnoreSender() error { return c.sender.Ignore(c.fd.Num()) }

// Sender returns the process that sent what Receive read last under WatchSender,
// as a pid in the master's namespace; 0 if it is not known.
func (c *Conn) Sender() int { return c.sender.PID() }

// mute reports whether the worker must be sent no handle any more: one that it
// reads together with our disconnect, or with the answer to its
// exitedAfterDisconnect, kills it.
func (c *Conn) mute() bool { return c.draining != notDraining || c.bye }
