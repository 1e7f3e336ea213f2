//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"io"
	"sync"
	"sync/atomic"

	"github.com/rs/zerolog"

	"rrd/metrics"
)

const (
	// keptEvents is how many records rrdctl events shows without --follow.
	keptEvents = 256
	// savedEvents bounds the bytes of events that cross an upgrade in place.
	savedEvents = 512 << 10
	// followQueue is how many records may wait for one follower.
	followQueue = 256
)

// logGate stands between the loggers and the sink: its level can change while
// rrd runs, and whoever follows the events sees them whatever the level.
type logGate struct {
	level   atomic.Int32 // of zerolog
	journal bool         // the sink is the journal, which takes priorities. Set before the loggers are made
	counter *metrics.LogCounter
	events  eventHub
}

func newLogGate(level zerolog.Level, counter *metrics.LogCounter) *logGate {
	g := &logGate{counter: counter}
	g.set(level)
	return g
}

func (g *logGate) set(level zerolog.Level) { g.level.Store(int32(level)) }
func (g *logGate) get() zerolog.Level      { return zerolog.Level(g.level.Load()) }

// Run is the hook of the loggers: it counts what will be written, and spares the
// rest its way. Below info nothing is an event that anybody follows.
func (g *logGate) Run(e *zerolog.Event, level zerolog.Level, _ string) {
	switch {
	case level >= g.get():
		if g.counter != nil {
			g.counter.Inc(level.String())
		}
	case level < zerolog.InfoLevel:
		e.Discard()
	}
}

// gatedWriter is one sink behind the gate. Records that are kept are those of
// rrd itself: the lines of workers would push them out.
type gatedWriter struct {
	io.Writer
	byLevel map[zerolog.Level]io.Writer // in place of Writer where the sink takes priorities
	gate    *logGate
	keep    bool
}

func (w gatedWriter) WriteLevel(level zerolog.Level, p []byte) (int, error) {
	if w.keep && level >= zerolog.InfoLevel {
		w.gate.events.publish(p)
	}
	if level < w.gate.get() {
		return len(p), nil
	}
	if to := w.byLevel[level]; to != nil {
		return to.Write(p)
	}
	return w.Write(p)
}

// eventHub gives each record to everybody who follows. It never waits for them.
type eventHub struct {
	mu        sync.Mutex
	recent    [][]byte // a ring, of which next is the oldest once it is full
	next      int
	followers map[*follower]struct{}
}

// follower gets the records from its begin on. What it does not take in time it
// loses, and is told how many.
type follower struct {
	hub    *eventHub
	events chan json.RawMessage
	lost   atomic.Uint64 // since it was told
}

// publish takes one line, with its line feed, which it copies. What is no JSON
// would end the conversation of those who follow.
func (h *eventHub) publish(line []byte) {
	record := bytes.Clone(bytes.TrimRight(line, "\n"))
	if !json.Valid(record) {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.recent) < keptEvents {
		h.recent = append(h.recent, record)
	} else {
		h.recent[h.next] = record
		h.next = (h.next + 1) % keptEvents
	}
	for f := range h.followers {
		select {
		case f.events <- record:
		default:
			f.lost.Add(1)
		}
	}
}

// follow returns the last n records, oldest first, and a follower of those to
// come, of which none is missing and none is both.
func (h *eventHub) follow(n int) ([]json.RawMessage, *follower) {
	f := &follower{hub: h, events: make(chan json.RawMessage, followQueue)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.followers == nil {
		h.followers = make(map[*follower]struct{})
	}
	h.followers[f] = struct{}{}
	return h.lastLocked(n), f
}

func (h *eventHub) last(n int) []json.RawMessage {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lastLocked(n)
}

func (h *eventHub) lastLocked(n int) []json.RawMessage {
	n = min(max(n, 0), len(h.recent))
	last := make([]json.RawMessage, 0, n)
	for i := len(h.recent) - n; i < len(h.recent); i++ {
		last = append(last, h.recent[(h.next+i)%len(h.recent)])
	}
	return last
}

// saved returns the last records for the next image, as many as fit into savedEvents.
func (h *eventHub) saved() []json.RawMessage {
	last := h.last(keptEvents)
	first, size := len(last), 0
	for first > 0 && size+len(last[first-1]) <= savedEvents {
		first--
		size += len(last[first])
	}
	return last[first:]
}

// restore puts the records of the previous image into the history for rrdctl events.
func (h *eventHub) restore(records []json.RawMessage) {
	for _, record := range records {
		h.publish(record)
	}
}

// close ends the following.
func (f *follower) close() {
	f.hub.mu.Lock()
	defer f.hub.mu.Unlock()
	delete(f.hub.followers, f)
}
