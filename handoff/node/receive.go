package node

import (
	"bytes"
	"io"

	"golang.org/x/sys/unix"

	"rrd/handoff"
	"rrd/handoff/internal/unixmsg"
)

// maxLine is the longest line that is read as a whole. The longest that Node's
// cluster makes is a queryServer with a path of 4 KiB. The program's own may have
// any length: of those only the beginning is looked at.
const maxLine = 16 << 10

// input is what has come and was not taken by Next: buf[start:end], of which
// everything before scanned is known to hold no newline.
type input struct {
	buf                 [maxLine]byte
	start, scanned, end int
	skipping            bool // until the end of a line that was longer than buf
}

// line returns the next complete line without its newline; false: there is none.
func (in *input) line() ([]byte, bool) {
	i := bytes.IndexByte(in.buf[in.scanned:in.end], '\n')
	if i < 0 {
		in.scanned = in.end
		return nil, false
	}
	line := in.buf[in.start : in.scanned+i]
	in.start = in.scanned + i + 1
	in.scanned = in.start
	return line, true
}

// overlong takes the beginning of a line that is longer than the buffer; false:
// there may still come an end that fits.
func (in *input) overlong() ([]byte, bool) {
	if in.end-in.start < len(in.buf) {
		return nil, false
	}
	in.start, in.scanned, in.end = 0, 0, 0
	in.skipping = true
	return in.buf[:], true
}

// room makes room behind what is kept, and returns it.
func (in *input) room() []byte {
	if in.start > 0 {
		copy(in.buf[:], in.buf[in.start:in.end])
		in.end -= in.start
		in.scanned -= in.start
		in.start = 0
	}
	return in.buf[in.end:]
}

// Receive reads for Next what has come, at most 16 KiB. EAGAIN says that there is
// nothing, io.EOF that the worker's end is closed and everything that it had said
// was read.
func (c *Conn) Receive() error {
	room := c.in.room()
	if len(room) == 0 {
		return nil // Next was not called to its end
	}
	// Without a control buffer, or with room for credentials only, the kernel
	// closes descriptors that the worker sends.
	n, oobn, _, errno := unixmsg.Recv(c.fd.Num(), room, c.sender.Buf())
	switch {
	case errno == unix.ECONNRESET:
		return io.EOF // the worker has left unread what we said; a stream says it last
	case errno != 0:
		return errno
	case n == 0:
		return io.EOF
	}
	c.in.end += n
	c.sender.Note(oobn)
	return nil
}

// Next returns what the worker said next, or false if there is no more in what
// Receive has read. On an error the conversation is to be ended; what follows the
// offence can still be read. f.Payload and f.Data are the caller's.
func (c *Conn) Next(f *handoff.Frame) (bool, error) {
	if c.tookAway(f) {
		return true, nil
	}
	for {
		line, ok := c.in.line()
		switch {
		case ok && c.in.skipping:
			c.in.skipping = false
			continue
		case ok:
			if said, err := c.heed(f, line); said || err != nil {
				return said, err
			}
			continue
		case c.in.skipping:
			c.in.start, c.in.scanned, c.in.end = 0, 0, 0
			return false, nil
		}
		begin, long := c.in.overlong()
		if !long {
			return false, nil
		}
		return false, c.heedLong(begin)
	}
}
