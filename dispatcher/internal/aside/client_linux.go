package aside

import (
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

const (
	// slow is the age of a request from which its helper counts as hanging. If other
	// requests wait, the Client then asks for one more helper.
	slow = int64(100 * time.Millisecond)
	// MaxHelpers bounds the helpers, those that hang included.
	MaxHelpers = 8
	// retryIn is the pause after a helper could not be started, and refsPause the
	// one after ETOOMANYREFS: too many descriptors of this user are under way
	// (unix(7)).
	retryIn   = int64(time.Second)
	refsPause = int64(10 * time.Millisecond)
	// maxTries bounds the attempts at a request whose helpers die.
	maxTries = 3
	// maxDiscard is how many descriptors one message to a helper may carry.
	maxDiscard = 64
	// maxDiscards bounds the descriptors that wait for a helper to close them.
	maxDiscards = 1024
)

// Client is the loop's end of the conversations with all helpers. It never waits.
type Client struct {
	conf     Config
	helpers  []*helper
	queue    []*Request
	discards []handoff.FD // owned
	ids      uint64
	starting bool  // Want was called, and neither Add nor Failed since
	startAt  int64 // no helper is wanted before
	sendAt   int64 // nothing is sent before
	buf, oob []byte
}

// helper is one process, with the request that it has.
type helper struct {
	pid    int
	fd     handoff.FD
	token  uint64
	req    *Request // nil: idle
	sentAt int64
}

// NewClient makes a Client that has no helper yet.
func NewClient(conf Config) *Client {
	return &Client{conf: conf, buf: make([]byte, headerSize+handoff.MaxMessage), oob: make([]byte, unix.CmsgSpace(maxDiscard*4))}
}

// Ask queues a request. Flush sends it.
func (c *Client) Ask(now int64, r Request) {
	c.ids++
	r.id, r.deadline = c.ids, now+int64(c.conf.Limit())
	c.queue = append(c.queue, &r)
}

// Discard closes a connection that may linger, and takes its descriptor. It reports
// false, and takes nothing, if too many wait for a helper.
func (c *Client) Discard(d *handoff.FD) bool {
	if len(c.discards) >= maxDiscards {
		return false
	}
	c.discards = append(c.discards, handoff.Own(d.Release()))
	return true
}

// Forget drops the requests about d that no helper has yet. Their Done is not
// called. Call it before d is closed.
func (c *Client) Forget(d handoff.FD) {
	c.queue = slices.DeleteFunc(c.queue, func(r *Request) bool { return r.FD == d })
}

// Add takes the socket to a helper that was started. token is what the poller
// reports for it.
func (c *Client) Add(now int64, pid int, socket handoff.FD, token uint64) error {
	c.starting = false
	if err := c.conf.Watch(socket.Num(), token); err != nil {
		c.startAt = now + retryIn
		return err
	}
	c.helpers = append(c.helpers, &helper{pid: pid, fd: socket, token: token})
	return nil
}

// Failed tells the Client that a helper could not be started. The Client asks again later.
func (c *Client) Failed(now int64) {
	c.starting = false
	c.startAt = now + retryIn
}

// Flush sends what can be sent, gives up what is overdue, and asks for a helper if
// one more is needed. The loop calls it at the end of each turn.
func (c *Client) Flush(now int64) {
	for {
		c.giveUp(now)
		if c.sendAt <= now {
			c.sendAt = 0
			c.sendDiscards(now)
			c.send(now)
		}
		if !c.overdue(now) { // what Done has asked may be sent as well
			break
		}
	}
	c.ask(now)
	c.endSurplus()
}

// release closes a descriptor that was given.
func (r *Request) release() {
	if r.Given {
		_ = r.FD.Close()
		r.tries = maxTries // it cannot be asked again
	}
}

// Next returns when Flush must be called at the latest; 0: not for a time.
func (c *Client) Next() int64 {
	next := int64(0)
	sooner := func(at int64) {
		if next == 0 || at < next {
			next = max(at, 1)
		}
	}
	for _, h := range c.helpers {
		if h.req != nil {
			sooner(h.req.deadline)
		}
	}
	for _, r := range c.queue {
		sooner(r.deadline)
	}
	if c.blocked() == nil && len(c.discards) == 0 {
		return next
	}
	switch at := c.wantAt(); {
	case c.sendAt != 0 && c.idle() != nil:
		sooner(c.sendAt)
	case at != 0:
		sooner(at)
	}
	return next
}

// Quiet reports whether no request is under way or waits.
func (c *Client) Quiet() bool {
	return len(c.queue) == 0 && len(c.discards) == 0 &&
		!slices.ContainsFunc(c.helpers, func(h *helper) bool { return h.req != nil })
}

// Fresh reports whether a request is so young that its answer is likely on its way.
func (c *Client) Fresh(now int64) bool {
	return slices.ContainsFunc(c.helpers, func(h *helper) bool { return h.req != nil && now-h.sentAt < slow })
}

// Processes lists the helpers.
func (c *Client) Processes(now int64) (out []Process) {
	for _, h := range c.helpers {
		p := Process{PID: h.pid}
		if h.req != nil {
			p.Out = time.Duration(max(now-h.sentAt, 1))
		}
		out = append(out, p)
	}
	return out
}

// Postpone moves all deadlines, after the master itself stood still.
func (c *Client) Postpone(by int64) {
	for _, h := range c.helpers {
		if h.req != nil {
			h.req.deadline += by
			h.sentAt += by
		}
	}
	for _, r := range c.queue {
		r.deadline += by
	}
}

// Close ends all helpers and forgets all requests. No Done is called.
func (c *Client) Close() {
	if c.idle() != nil {
		c.sendDiscards(0)
	}
	for len(c.helpers) > 0 {
		c.remove(c.helpers[0])
	}
	if len(c.discards) > 0 {
		go closeAll(c.discards) // the program is about to end: no one waits
	}
	for _, r := range c.queue {
		r.release()
	}
	c.discards, c.queue = nil, nil
}

// idle finds a helper without a request.
func (c *Client) idle() *helper {
	for _, h := range c.helpers {
		if h.req == nil {
			return h
		}
	}
	return nil
}

// blocked finds a request that only waits for a helper.
func (c *Client) blocked() *Request {
	for _, r := range c.queue {
		if !c.isOut(r.Key) {
			return r
		}
	}
	return nil
}

// isOut reports whether a helper has a request of that key.
func (c *Client) isOut(key uint64) bool {
	return slices.ContainsFunc(c.helpers, func(h *helper) bool { return h.req != nil && h.req.Key == key })
}

// wantAt returns the time to ask for one more helper; 0: do not ask.
// Preconditions: something waits for a helper.
func (c *Client) wantAt() int64 {
	if c.starting || c.idle() != nil || len(c.helpers) >= MaxHelpers {
		return 0
	}
	at := max(c.startAt, 1)
	for _, h := range c.helpers {
		at = max(at, h.sentAt+slow)
	}
	return at
}

func (c *Client) ask(now int64) {
	if c.blocked() == nil && len(c.discards) == 0 {
		return
	}
	if at := c.wantAt(); at != 0 && at <= now {
		c.starting = true
		c.conf.Want()
	}
}

// overdue reports whether giveUp has something to do.
func (c *Client) overdue(now int64) bool {
	return slices.ContainsFunc(c.queue, func(r *Request) bool { return r.deadline <= now }) ||
		slices.ContainsFunc(c.helpers, func(h *helper) bool { return h.req != nil && h.req.deadline <= now })
}

// giveUp answers what is overdue. A helper that hangs for so long is killed.
func (c *Client) giveUp(now int64) {
	if !c.overdue(now) {
		return
	}
	var late []*Request
	for _, h := range slices.Clone(c.helpers) {
		if h.req != nil && h.req.deadline <= now {
			late = append(late, h.req)
			h.req = nil
			c.conf.Kill(h.pid)
			c.remove(h)
		}
	}
	c.queue = slices.DeleteFunc(c.queue, func(r *Request) bool {
		if r.deadline <= now {
			late = append(late, r)
		}
		return r.deadline <= now
	})
	for _, r := range late {
		r.release()
		r.done(&Answer{})
	}
}

// send gives waiting requests to idle helpers.
func (c *Client) send(now int64) {
	for i := 0; i < len(c.queue); {
		h := c.idle()
		if h == nil {
			return
		}
		r := c.queue[i]
		if c.isOut(r.Key) {
			i++
			continue
		}
		switch errno := c.sendTo(h, header{call: r.Call, id: r.id, arg: uint64(r.Arg)}, []int{r.FD.Num()}); {
		case errno == 0:
			h.req, h.sentAt = r, now
			c.queue = slices.Delete(c.queue, i, i+1)
			r.release()
		case errno == unix.ETOOMANYREFS || errno == unix.ENOBUFS || errno == unix.ENOMEM:
			c.sendAt = now + refsPause
			return
		case errno == unix.EBADF:
			// The descriptor was closed before its request was forgotten.
			c.queue = slices.Delete(c.queue, i, i+1)
			r.done(&Answer{Known: true, Errno: errno})
		default: // that helper is gone
			c.lose(h)
		}
	}
}

// sendDiscards gives an idle helper connections to close. While the message is under way,
// our own copy is not the last, so closing it does not wait.
func (c *Client) sendDiscards(now int64) {
	for len(c.discards) > 0 {
		h := c.idle()
		if h == nil {
			return
		}
		n := min(len(c.discards), maxDiscard)
		fds := make([]int, n)
		for i := range fds {
			fds[i] = c.discards[i].Num()
		}
		c.ids++
		r := &Request{Call: discard, id: c.ids, deadline: now + int64(c.conf.Limit()), tries: maxTries}
		switch errno := c.sendTo(h, header{call: discard, id: r.id}, fds); errno {
		case 0:
			h.req, h.sentAt = r, now
		case unix.ETOOMANYREFS, unix.ENOBUFS, unix.ENOMEM:
			c.sendAt = now + refsPause
			return
		default:
			c.lose(h)
			continue
		}
		for i := range n {
			_ = c.discards[i].Close()
		}
		c.discards = slices.Delete(c.discards, 0, n)
	}
}

func (c *Client) sendTo(h *helper, head header, fds []int) syscall.Errno {
	return errnoOf(unix.Sendmsg(h.fd.Num(), head.append(c.buf[:0]), unix.UnixRights(fds...), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL))
}

// Receive reads the answers of the helper with that token.
func (c *Client) Receive(token uint64) {
	i := slices.IndexFunc(c.helpers, func(h *helper) bool { return h.token == token })
	if i < 0 {
		return
	}
	h := c.helpers[i]
	for {
		n, oobn, flags, _, err := unix.Recvmsg(h.fd.Num(), c.buf, c.oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		switch errno := errnoOf(err); {
		case errno == unix.EAGAIN:
			return
		case errno == unix.EINTR:
			continue
		case errno != 0 || n == 0:
			c.lose(h)
			return
		}
		fds := takeRights(c.oob[:oobn])
		if !c.handle(h, c.buf[:n], fds, flags) {
			closeAll(fds)
			c.conf.Kill(h.pid)
			c.lose(h)
			return
		}
		if !slices.Contains(c.helpers, h) {
			return // Part or Done has closed everything
		}
	}
}

// handle acts on one message. It reports false if no helper sends such a message.
func (c *Client) handle(h *helper, msg []byte, fds []handoff.FD, flags int) bool {
	r := h.req
	if r == nil || flags&unix.MSG_TRUNC != 0 {
		return false
	}
	var a Answer
	got := len(fds)
	if flags&unix.MSG_CTRUNC != 0 && r.Call == Accept {
		// We are out of descriptors, and the kernel has closed those that did not fit.
		if head, _, err := decodeHeader(msg); err != nil || head.id != r.id || head.arg > MaxAccept {
			return false
		}
		h.req = nil
		r.done(&Answer{Known: true, Errno: unix.EMFILE, FDs: fds})
		return true
	}
	head, payload, err := decodeAnswer(msg, r.Call, got, &a)
	if err != nil || head.id != r.id {
		return false
	}
	if head.part {
		if r.Part != nil {
			r.Part(payload)
		}
		return true
	}
	h.req = nil
	a.FDs = fds
	r.done(&a)
	return true
}

// lose forgets a helper that has ended. Its unanswered request is asked again.
func (c *Client) lose(h *helper) {
	r := h.req
	h.req = nil
	c.remove(h)
	if r == nil || r.Call == discard {
		return
	}
	if r.tries++; r.tries < maxTries {
		c.queue = slices.Insert(c.queue, 0, r)
		return
	}
	r.done(&Answer{})
}

// endSurplus keeps one idle helper. The others are told to end by the end of their
// socket.
func (c *Client) endSurplus() {
	if len(c.helpers) < 2 || len(c.queue) > 0 || len(c.discards) > 0 {
		return
	}
	kept := false
	for _, h := range slices.Clone(c.helpers) {
		if h.req == nil && kept {
			c.remove(h)
		}
		kept = kept || h.req == nil
	}
}

// remove closes the socket to a helper, on which it ends.
func (c *Client) remove(h *helper) {
	c.conf.Unwatch(h.fd.Num())
	_ = h.fd.Close()
	c.helpers = slices.DeleteFunc(c.helpers, func(o *helper) bool { return o == h })
}

// Pair makes the socket between a Client and a helper. child is the helper's end.
func Pair() (master handoff.FD, child *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return master, nil, os.NewSyscallError("socketpair", err)
	}
	return handoff.Own(fds[0]), os.NewFile(uintptr(fds[1]), "rrd-helper"), nil
}
