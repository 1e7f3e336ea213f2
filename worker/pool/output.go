package pool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// OutputMode says what becomes of the workers' stdout and stderr.
type OutputMode string

const (
	// OutputRaw lets workers write to the master's own stdout and stderr.
	OutputRaw OutputMode = "raw"
	// OutputPrefix writes each line to Output.Writer behind "[slot N] ".
	OutputPrefix OutputMode = "prefix"
	// OutputJSON gives each line to Output.Record.
	OutputJSON OutputMode = "json"
)

const (
	maxLine  = 16 << 10 // longer lines are given out in pieces
	maxWords = 4 << 10  // of last words
	// lastOutput is how long a reaped worker's pipes are still waited for. They end
	// by themselves unless a descendant that left the group holds them.
	lastOutput = 500 * time.Millisecond
)

// Output says where captured lines go. The zero value is OutputRaw.
type Output struct {
	Mode   OutputMode
	Writer io.Writer  // OutputPrefix: gets one Write for each line
	Record func(Line) // OutputJSON
	// Accepted, if set, returns how many bytes the sink has taken. It shows that a sink
	// works at a long line.
	Accepted func() uint64
	// Lost, if set, is called at most once a second with the number of lines of all workers
	// that were dropped since the last call, because the sink took nothing.
	Lost func(lines uint64)
}

// Line is a line of output, or a piece of one that is very long.
type Line struct {
	Worker Worker
	Stream string // "stdout" or "stderr"
	// Text is the line without its end: any bytes, as the worker wrote them. It
	// belongs to the receiver.
	Text []byte
	// More says that the next Line of this stream continues this one.
	More bool
	// Lost counts the lines, of all workers, that were dropped before this one
	// because the receiver was too slow.
	Lost uint64
}

func (o *Output) check() error {
	switch {
	case o.Mode == OutputPrefix && o.Writer == nil:
		return errors.New("output prefix: no Writer")
	case o.Mode == OutputJSON && o.Record == nil:
		return errors.New("output json: no Record")
	}
	return oneOf("output", o.Mode, []OutputMode{OutputRaw, OutputPrefix, OutputJSON})
}

// capture reads the output of one process. It owns the reading ends of its pipes. The
// methods of a nil capture do nothing: there is none in raw mode.
type capture struct {
	out            *printer // or nil, see adoptCapture
	stdout, stderr *stream
	readers        sync.WaitGroup
	ended          atomic.Bool // the process was reaped

	mu    sync.Mutex
	words []byte
}

// stream is one of a process.
type stream struct {
	name string
	f    *os.File
	lull lull
	half []byte // what was read of a line, while lull holds
}

func (s *stream) hold() error { return s.lull.hold(s.f.SetReadDeadline) }

// newCapture makes the pipes. The writing ends belong to the caller.
func newCapture(out *printer) (c *capture, stdout, stderr *os.File, err error) {
	outR, stdout, err := os.Pipe()
	if err != nil {
		return nil, nil, nil, fmt.Errorf("make output pipe: %w", err)
	}
	errR, stderr, err := os.Pipe()
	if err != nil {
		stdout.Close()
		outR.Close()
		return nil, nil, nil, fmt.Errorf("make output pipe: %w", err)
	}
	c = &capture{out: out, stdout: &stream{name: "stdout", f: outR}, stderr: &stream{name: "stderr", f: errR}}
	return c, stdout, stderr, nil
}

// start begins to read; finish waits for the readers.
func (c *capture) start(w Worker) {
	if c != nil {
		c.readers.Go(func() { c.read(w, c.stdout, c.stdout.f) })
		c.readers.Go(func() { c.read(w, c.stderr, c.stderr.f) })
	}
}

// finish is called when the process is reaped. It reads what is left, closes the pipes
// and returns the last words.
func (c *capture) finish() string {
	if c == nil {
		return ""
	}
	c.ended.Store(true)
	if c.out != nil {
		c.out.poke()
	}
	deadline := time.Now().Add(lastOutput)
	_ = c.stdout.f.SetReadDeadline(deadline)
	_ = c.stderr.f.SetReadDeadline(deadline)
	c.readers.Wait()
	c.discard()
	return string(lastBytes(c.words))
}

// discard closes the pipes of a process that was never there.
func (c *capture) discard() {
	if c != nil {
		c.stdout.f.Close()
		c.stderr.f.Close()
	}
}

// read splits a stream into lines until it ends or its deadline is over. r is s.f.
func (c *capture) read(w Worker, s *stream, r io.Reader) {
	defer s.lull.end()
	buf := make([]byte, maxLine)
	n := copy(buf, s.half)
	for {
		k, err := r.Read(buf[n:])
		n = c.split(w, s, buf, n, n+k)
		if err == nil {
			continue
		}
		s.half = buf[:n]
		if s.lull.rest() {
			continue
		}
		if n > 0 {
			c.put(w, s, buf[:n], false)
		}
		return
	}
}

// split gives out the lines in buf[:n], of which those before from have no end, moves
// the rest to the front and returns its length, which is less than buf's.
func (c *capture) split(w Worker, s *stream, buf []byte, from, n int) int {
	start := 0
	for {
		i := bytes.IndexByte(buf[from:n], '\n')
		if i < 0 {
			break
		}
		from += i + 1
		c.put(w, s, buf[start:from], false)
		start = from
	}
	if start == 0 && n == len(buf) {
		c.put(w, s, buf, true)
		return 0
	}
	return copy(buf, buf[start:n])
}

func (c *capture) put(w Worker, s *stream, text []byte, more bool) {
	c.remember(text)
	if c.out == nil {
		return
	}
	c.out.put(Line{Worker: w, Stream: s.name, Text: bytes.Clone(bytes.TrimSuffix(text, []byte("\n"))), More: more}, &c.ended)
}

// remember keeps the end of both streams, in the order they were read.
func (c *capture) remember(text []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.words = append(c.words, text...)
	if len(c.words) > 8*maxWords { // seldom, as short lines are many
		c.words = append(c.words[:0], lastBytes(c.words)...)
	}
}

func lastBytes(b []byte) []byte { return b[max(0, len(b)-maxWords):] }
