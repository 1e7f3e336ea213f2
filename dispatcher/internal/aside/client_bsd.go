//go:build darwin || freebsd

package aside

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// maxDiscard is how many descriptors one message to a helper may carry on Linux.
const maxDiscard = 64

// MaxHelpers is 0: the calls are made on the loop.
const MaxHelpers = 0

// Client makes each call itself when Flush is called.
type Client struct {
	queue []*Request
}

// NewClient makes a Client.
func NewClient(Config) *Client { return &Client{} }

// Ask queues a request. Flush makes the call.
func (c *Client) Ask(_ int64, r Request) { c.queue = append(c.queue, &r) }

// Discard takes nothing: a socket that does not block does not linger here (soclose).
func (c *Client) Discard(*handoff.FD) bool { return false }

// Forget drops the requests about d. Their Done is not called.
func (c *Client) Forget(d handoff.FD) {
	kept := c.queue[:0]
	for _, r := range c.queue {
		if r.FD != d {
			kept = append(kept, r)
		}
	}
	c.queue = kept
}

// Add refuses a helper: there are none.
func (c *Client) Add(int64, int, handoff.FD, uint64) error { return errors.ErrUnsupported }

// Failed does nothing.
func (c *Client) Failed(int64) {}

// Flush makes all calls, and those that a Done asks for.
func (c *Client) Flush(int64) {
	for len(c.queue) > 0 {
		r := c.queue[0]
		c.queue = c.queue[1:]
		a := perform(r)
		if r.Given {
			_ = r.FD.Close()
		}
		r.done(a)
	}
}

func perform(r *Request) *Answer {
	a := &Answer{Known: true}
	switch r.Call {
	case Accept:
		a.FDs, a.Errno = acceptSome(r.FD.Num(), r.Arg)
	case Listen:
		a.Errno = errnoOf(unix.Listen(r.FD.Num(), r.Arg))
	case Reuseport:
		a.Errno = ReuseportInline(r.FD, r.Arg)
	case Shutdown:
		a.Errno = errnoOf(unix.Shutdown(r.FD.Num(), unix.SHUT_RD))
	default:
		a.Errno = unix.ENOTSUP
	}
	return a
}

// ReuseportInline is Reuseport for a socket that no worker has.
func ReuseportInline(d handoff.FD, on int) syscall.Errno {
	return errnoOf(unix.SetsockoptInt(d.Num(), unix.SOL_SOCKET, unix.SO_REUSEPORT, on))
}

func acceptSome(fd, n int) (out []handoff.FD, errno syscall.Errno) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errnoOf(err)
	}
	for len(out) < min(n, MaxAccept) {
		syscall.ForkLock.RLock()
		c, _, err := unix.Accept(fd)
		if err == nil {
			unix.CloseOnExec(c)
		}
		syscall.ForkLock.RUnlock()
		if err == nil {
			err = unix.SetNonblock(c, true)
			out = append(out, handoff.Own(c))
		}
		if err != nil {
			if len(out) > 0 {
				return out, 0
			}
			return nil, errnoOf(err)
		}
	}
	return out, 0
}

// Next returns 0: nothing waits after Flush.
func (c *Client) Next() int64 { return 0 }

// Quiet reports whether no request waits.
func (c *Client) Quiet() bool { return len(c.queue) == 0 }

// Fresh reports false.
func (c *Client) Fresh(int64) bool { return false }

// Processes is empty.
func (c *Client) Processes(int64) []Process { return nil }

// Postpone does nothing.
func (c *Client) Postpone(int64) {}

// Receive does nothing.
func (c *Client) Receive(uint64) {}

// Close forgets all requests.
func (c *Client) Close() { c.queue = nil }

// Pair refuses: there are no helpers.
func Pair() (master handoff.FD, child *os.File, err error) {
	return master, nil, errors.ErrUnsupported
}

// QueueInline reports that the kernel does not tell.
func QueueInline(handoff.FD) (QueueFacts, syscall.Errno) { return QueueFacts{}, unix.ENOTSUP }

// RefuseNewInline reports that there is no such filter: what arrives between the last
// accept and the close is reset.
func RefuseNewInline(handoff.FD) syscall.Errno { return unix.ENOTSUP }

// DetachFilterInline does nothing.
func DetachFilterInline(handoff.FD) syscall.Errno { return unix.ENOTSUP }
