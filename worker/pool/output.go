package pool

import (
	"bufio"
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
	maxLine    = 16 << 10 // longer lines are given out in pieces
	maxWords   = 4 << 10  // of last words
	queueLines = 512      // captured and not yet written, of all workers
	// lastOutput is how long a reaped worker's pipes are still read. They end
	// by themselves unless a descendant that left the group holds them.
	lastOutput = 500 * time.Millisecond
	// lastFlush is how long Run waits for a sink that does not take what is left.
	lastFlush = time.Second
)

// Output says where captured lines go. The zero value is OutputRaw.
type Output struct {
	Mode   OutputMode
	Writer io.Writer  // OutputPrefix: gets one Write for each line
	Record func(Line) // OutputJSON
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

// printer hands captured lines to the sink. A sink that blocks costs lines, never a
// worker's progress.
type printer struct {
	sink  func(Line)
	lineC chan Line
	doneC chan struct{}
	lost  atomic.Uint64
}

func newPrinter(o Output) *printer {
	sink := o.Record
	if o.Mode == OutputPrefix {
		sink = func(l Line) { printPrefixed(o.Writer, l) }
	}
	return &printer{sink: sink, lineC: make(chan Line, queueLines), doneC: make(chan struct{})}
}

// start starts the goroutine that writes; close waits for it.
func (p *printer) start() { go p.print() }

func (p *printer) print() {
	defer close(p.doneC)
	var told uint64
	for l := range p.lineC {
		lost := p.lost.Load()
		l.Lost, told = lost-told, lost
		p.sink(l)
	}
}

// put queues a line or drops it. Preconditions: close was not called.
func (p *printer) put(l Line) {
	select {
	case p.lineC <- l:
	default:
		p.lost.Add(1)
	}
}

// close waits until what is queued is written, but not for long: a goroutine that is
// stuck in the sink is left behind.
func (p *printer) close() {
	close(p.lineC)
	timer := time.NewTimer(lastFlush)
	defer timer.Stop()
	select {
	case <-p.doneC:
	case <-timer.C:
	}
}

// printPrefixed writes a line; a "+" marks one that continues in the next. A sink that
// cannot be written has no better place to be reported than itself.
func printPrefixed(w io.Writer, l Line) {
	var b []byte
	if l.Lost > 0 {
		b = fmt.Appendf(b, "[rrd] %d lines of workers were lost, their output was not taken\n", l.Lost)
	}
	b = fmt.Appendf(b, "[slot %d] ", l.Worker.Slot)
	b = append(b, l.Text...)
	if l.More {
		b = append(b, '+')
	}
	_, _ = w.Write(append(b, '\n'))
}

// capture reads the output of one process. It owns the reading ends of its pipes. The
// methods of a nil capture do nothing: there is none in raw mode.
type capture struct {
	out            *printer
	stdout, stderr *os.File
	readers        sync.WaitGroup

	mu    sync.Mutex
	words []byte
}

// newCapture makes the pipes. The writing ends belong to the caller.
func newCapture(out *printer) (c *capture, stdout, stderr *os.File, err error) {
	c = &capture{out: out}
	if c.stdout, stdout, err = os.Pipe(); err != nil {
		return nil, nil, nil, fmt.Errorf("make output pipe: %w", err)
	}
	if c.stderr, stderr, err = os.Pipe(); err != nil {
		stdout.Close()
		c.stdout.Close()
		return nil, nil, nil, fmt.Errorf("make output pipe: %w", err)
	}
	return c, stdout, stderr, nil
}

// start begins to read; finish waits for the readers.
func (c *capture) start(w Worker) {
	c.readers.Go(func() { c.read(w, "stdout", c.stdout) })
	c.readers.Go(func() { c.read(w, "stderr", c.stderr) })
}

// finish is called when the process is reaped. It reads what is left, closes the pipes
// and returns the last words.
func (c *capture) finish() string {
	if c == nil {
		return ""
	}
	deadline := time.Now().Add(lastOutput)
	_ = c.stdout.SetReadDeadline(deadline)
	_ = c.stderr.SetReadDeadline(deadline)
	c.readers.Wait()
	c.discard()
	return string(lastBytes(c.words))
}

// discard closes the pipes of a process that was never there.
func (c *capture) discard() {
	if c != nil {
		c.stdout.Close()
		c.stderr.Close()
	}
}

// read splits a stream into lines until it ends or its deadline is over.
func (c *capture) read(w Worker, stream string, r io.Reader) {
	br := bufio.NewReaderSize(r, maxLine)
	for {
		text, err := br.ReadSlice('\n')
		if n := len(text); n > 0 {
			more := errors.Is(err, bufio.ErrBufferFull)
			c.remember(text)
			if text[n-1] == '\n' {
				text = text[:n-1]
			}
			c.out.put(Line{Worker: w, Stream: stream, Text: append([]byte(nil), text...), More: more})
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
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
