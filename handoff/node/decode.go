package node

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"unicode/utf8"

	"rrd/handoff"
)

// maxText is how much of a program's message is passed on.
const maxText = 1 << 10

var (
	internal   = []byte(`"NODE_`) // in every message that is not the program's own
	ackBegin   = []byte(cluster + `"ack":`)
	ackYes     = []byte(`,"accepted":true,"seq":`)
	ackNo      = []byte(`,"accepted":false,"seq":`)
	beginOfOwn = []byte(`{"cmd":"NODE_`)
	handleOwn  = []byte(`{"cmd":"NODE_HANDLE",`)
	clusterOwn = []byte(`{"cmd":"NODE_CLUSTER"`)
	jsonReady  = []byte(`"ready"`)
)

// heed acts on one line. It reports whether that was a frame.
func (c *Conn) heed(f *handoff.Frame, line []byte) (bool, error) {
	// The two that come with every connection, as Node writes them.
	if string(line) == handleAck[:len(handleAck)-1] {
		c.heedArrived()
		return false, nil
	}
	if n, yes, ok := quickAnswer(line); ok {
		return c.answered(f, n, yes), nil
	}
	if !bytes.Contains(line, internal) {
		return c.userMessage(f, line), nil
	}
	var m message
	if json.Unmarshal(line, &m) != nil {
		if bytes.HasPrefix(line, clusterOwn) {
			return false, ErrLine
		}
		if bytes.HasPrefix(line, beginOfOwn) {
			return false, nil
		}
		return c.userMessage(f, line), nil
	}
	cmd, _ := m.text("cmd")
	switch cmd {
	case "NODE_CLUSTER":
		return c.heedCluster(f, m)
	case "NODE_HANDLE":
		return false, c.tell([]byte(handleAck))
	case "NODE_HANDLE_ACK":
		c.heedArrived()
		return false, nil
	case "NODE_HANDLE_NACK":
		return c.heedLost(f), nil
	case "NODE_SOCKET_GET_COUNT", "NODE_SOCKET_NOTIFY_CLOSE":
		if _, ok := m.text("key"); !ok {
			return false, nil
		}
		return false, c.tell(appendAboutConnections(nil, cmd == "NODE_SOCKET_GET_COUNT", m["key"]))
	}
	if len(cmd) > len("NODE_") && cmd[:len("NODE_")] == "NODE_" {
		return false, nil // a word of a later Node
	}
	return c.userMessage(f, line), nil
}

// quickAnswer reads {"cmd":"NODE_CLUSTER","ack":N,"accepted":true,"seq":M}; what
// is written in any other way is not its business.
func quickAnswer(line []byte) (n uint64, yes, ok bool) {
	rest, ok := bytes.CutPrefix(line, ackBegin)
	if !ok {
		return 0, false, false
	}
	n, rest, ok = number(rest)
	if !ok {
		return 0, false, false
	}
	if after, found := bytes.CutPrefix(rest, ackYes); found {
		rest, yes = after, true
	} else if rest, found = bytes.CutPrefix(rest, ackNo); !found {
		return 0, false, false
	}
	_, rest, ok = number(rest)
	return n, yes, ok && len(rest) == 1 && rest[0] == '}'
}

// number reads the decimal number at the beginning of b, of at most 18 digits.
func number(b []byte) (n uint64, rest []byte, ok bool) {
	i := 0
	for i < len(b) && i < 18 && b[i] >= '0' && b[i] <= '9' {
		n = n*10 + uint64(b[i]-'0')
		i++
	}
	return n, b[i:], i > 0
}

// answered is the worker's answer to the handoff that it knows as n.
func (c *Conn) answered(f *handoff.Frame, n uint64, yes bool) bool {
	h, ok := c.window.answer(n)
	if !ok {
		return false
	}
	if h.fence {
		c.passedFence()
		return false
	}
	*f = handoff.Frame{Type: handoff.Ack, Seq: h.seq}
	if !yes {
		f.Type, f.Arg = handoff.Reject, uint32(handoff.ReasonBusy)
		if !slices.Contains(c.open, h.wire) {
			f.Arg = uint32(handoff.ReasonClosed)
		}
	}
	c.advanceDrain()
	return true
}

// heedArrived: the oldest handle under way is in the worker.
func (c *Conn) heedArrived() {
	if h, ok := c.window.arrive(false); ok && h.share != nil {
		_ = h.share.fd.Close()
	}
	if len(c.mayLeave) > 0 {
		_ = c.letLeave() // one that does not read is not let go either
	}
}

// heedLost: the message of the oldest handle under way has come without its
// descriptor.
func (c *Conn) heedLost(f *handoff.Frame) bool {
	h, ok := c.window.arrive(true)
	if len(c.mayLeave) > 0 {
		_ = c.letLeave()
	}
	switch {
	case !ok || h.done:
		return false
	case h.fence:
		c.passedFence()
		return false
	case h.share == nil:
		*f = handoff.Frame{Type: handoff.Reject, Seq: h.seq, Arg: uint32(handoff.ReasonFDLimit)}
		c.advanceDrain()
		return true
	}
	s := h.share
	s.tries++
	if !c.mute() && s.fd.Valid() && s.tries <= maxLost {
		c.again = append(c.again, s) // and Unsent says so
		return false
	}
	c.giveUp(s)
	return c.tookAway(f)
}

// tookAway says that the worker is no longer of a listener that it never got.
func (c *Conn) tookAway(f *handoff.Frame) bool {
	if len(c.left) == 0 {
		return false
	}
	*f = handoff.Frame{Type: handoff.Leave, Listener: c.left[0]}
	c.left = c.left[1:]
	return true
}

// heedCluster acts on a NODE_CLUSTER message.
func (c *Conn) heedCluster(f *handoff.Frame, m message) (bool, error) {
	if n, ok := m.uint("ack"); ok {
		switch string(m["accepted"]) {
		case "true", "false":
			return c.answered(f, n, m["accepted"][0] == 't'), nil
		}
		return false, nil
	}
	act, _ := m.text("act")
	switch act {
	case "queryServer":
		return c.heedQuery(f, m)
	case "listening":
		c.listening = c.listening || !c.isPrivate(m)
		return c.becomeReady(f), nil
	case "close":
		return c.heedClose(f, m), nil
	case "exitedAfterDisconnect":
		return c.heedLeaving(f, m)
	}
	return false, nil
}

// heedQuery passes a request on, or refuses what nobody could grant.
func (c *Conn) heedQuery(f *handoff.Frame, m message) (bool, error) {
	seq, ok := m.uint("seq")
	if !ok {
		return false, ErrLine
	}
	if c.mute() {
		return false, nil // Node does not answer it either
	}
	port, ok := parseQuery(f, m)
	if !ok {
		err := c.tell(appendFailure(nil, invalid, seq, m.data(), c.next))
		c.next++
		return false, err
	}
	if len(c.asked) == maxAsked {
		err := c.tell(appendFailure(nil, tooManyOpened, seq, m.data(), c.next))
		c.next++
		return false, err
	}
	f.Seq = seq
	if c.isPrivate(m) {
		f.Flags |= handoff.ListenPrivate
	}
	c.asked = append(c.asked, ask{seq: seq, port: port, mapped: isMapped(m)})
	return true, nil
}

// isPrivate reports whether a request or its "listening" is about a socket that a tool has
// made for itself.
func (c *Conn) isPrivate(m message) bool {
	if c.conf.Private == nil || string(m["addressType"]) != "-1" {
		return false
	}
	path, _ := m.text("address")
	return c.conf.Private(path, c.sender.PID())
}

// heedClose: the program has closed a server.
func (c *Conn) heedClose(f *handoff.Frame, m message) bool {
	key, _ := m.text("key")
	wire, err := strconv.ParseUint(key, 10, 32)
	if err != nil {
		return false
	}
	i := slices.Index(c.open, uint32(wire))
	if i < 0 {
		return false
	}
	c.open = slices.Delete(c.open, i, i+1)
	*f = handoff.Frame{Type: handoff.Leave, Listener: uint32(wire)}
	return true
}

// heedLeaving: the worker leaves by itself, and waits to hear that it may.
func (c *Conn) heedLeaving(f *handoff.Frame, m message) (bool, error) {
	seq, ok := m.uint("seq")
	if !ok {
		return false, ErrLine
	}
	if len(c.mayLeave) == maxAsked {
		return false, ErrAsks
	}
	c.mayLeave = append(c.mayLeave, seq)
	if err := c.letLeave(); c.bye || err != nil {
		return false, err
	}
	c.bye = true
	*f = handoff.Frame{Type: handoff.Bye}
	return true, nil
}

// letLeave answers exitedAfterDisconnect once every handle that was sent before has
// arrived: the worker handles a plain message before a handle that it reads in the same
// go, and one that comes after it has left kills it.
func (c *Conn) letLeave() error {
	if c.window.arrived < len(c.window.under) {
		return nil
	}
	for _, seq := range c.mayLeave {
		if err := c.tell(appendMayLeave(nil, seq, c.next)); err != nil {
			return err
		}
		c.next++
	}
	c.mayLeave = nil
	return nil
}

// userMessage is what the program sent by process.send.
func (c *Conn) userMessage(f *handoff.Frame, line []byte) bool {
	if c.conf.Message != nil && len(line) > 0 {
		c.conf.Message(cut(line))
	}
	if !bytes.Equal(line, jsonReady) {
		return false
	}
	c.ready = true
	return c.becomeReady(f)
}

// becomeReady says Ready once: the program listens, and has said "ready" if it
// was to.
func (c *Conn) becomeReady(f *handoff.Frame) bool {
	if c.saidReady || !c.listening || c.conf.ReadyOnMessage && !c.ready || c.bye {
		return false
	}
	c.saidReady = true
	*f = handoff.Frame{Type: handoff.Ready}
	return true
}

// heedLong acts on a line of which only the beginning has been kept.
func (c *Conn) heedLong(begin []byte) error {
	switch {
	case bytes.HasPrefix(begin, handleOwn):
		return c.tell([]byte(handleAck))
	case bytes.HasPrefix(begin, clusterOwn):
		return ErrLine
	case bytes.HasPrefix(begin, beginOfOwn):
		return nil
	}
	if c.conf.Message != nil {
		c.conf.Message(cut(begin))
	}
	return nil
}

// cut shortens a text for Config.Message, between two characters.
func cut(b []byte) []byte {
	if len(b) <= maxText {
		return b
	}
	n := maxText
	for n > maxText-utf8.UTFMax && !utf8.RuneStart(b[n]) {
		n--
	}
	return b[:n]
}
