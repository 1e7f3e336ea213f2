package node

import (
	"golang.org/x/sys/unix"

	"rrd/handoff"
	"rrd/handoff/internal/unixmsg"
)

// From Node 26 on, a worker that is told to disconnect also ends connections of
// which it has read nothing yet (http.Server.close; earlier ones only such as have
// had a request). So it is told when it has had the chance to read: after every
// handoff is answered comes a fence, a handoff of a socket of ours to a server that
// does not exist. By the time it is refused, the worker's event loop has polled all
// sockets that it had before, and requests that had arrived are read.

// drainStep is how far that has come.
type drainStep uint8

const (
	notDraining drainStep = iota
	waiting               // for answers to what was handed off
	fencing               // for the answer to the fence
	told                  // disconnect was sent
)

// noServer is the listener of the fence; real ones are counted from 1.
const noServer = 0

// advanceDrain says the next thing of a drain whose time has come. What finds the
// channel full is tried again with Flush; see Unsent.
func (c *Conn) advanceDrain() {
	if c.draining != waiting || c.window.hasHandoff() {
		return
	}
	err := c.sendFence()
	c.fenceWaits = err == unix.EAGAIN //nolint:errorlint // bare
	switch {
	case c.fenceWaits:
	case err != nil: // the worker is gone, or we have no descriptor left
		c.sayDisconnect()
	default:
		c.draining = fencing
	}
}

// passedFence: the worker has refused the fence, or lost it.
func (c *Conn) passedFence() {
	if c.draining == fencing {
		c.sayDisconnect()
	}
}

func (c *Conn) sayDisconnect() {
	c.draining = told
	// One that reads nothing is not told; its drain times out.
	_ = c.tell(appendDisconnect(nil, c.next))
	c.next++
}

// sendFence hands one end of a socket pair off; both ends are closed here.
func (c *Conn) sendFence() error {
	if c.bye {
		return unix.EPIPE // a handle would kill it
	}
	if err := c.writeRest(); err != nil {
		return err
	}
	fds, err := unixmsg.Socketpair(unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	ours, theirs := handoff.Own(fds[0]), handoff.Own(fds[1])
	defer ours.Close()   //nolint:errcheck // nothing was said on it
	defer theirs.Close() //nolint:errcheck // the message has a reference of its own
	text := appendNewconn(append([]byte(nil), newconn...), noServer, c.next)
	if err := c.writeHandle(text, theirs.Num(), handle{n: c.next, wire: noServer, fence: true}); err != nil {
		return err
	}
	c.next++
	return nil
}
