//go:build unix

package main

import (
	"sync"
	"time"
)

// floodgate limits the records that a worker can cause as often as it likes. It reports the
// number of records left out after a second, and then once a second while more are left out.
type floodgate struct {
	tell func(f flood, records int)

	mu     sync.Mutex
	floods map[flood]*floodState
	over   bool
}

// flood names one limit: for an event, of the worker in one slot or of all workers.
type flood struct {
	event string
	slot  int // allSlots: of all
}

const (
	allSlots = -1
	// floodBurst is the number of records of one event and worker that pass at once.
	// floodRate is the number that pass in each second after that. The limits for all
	// workers together are floodBurstAll and floodRateAll.
	floodBurst    = 20
	floodRate     = 1
	floodBurstAll = 100
	floodRateAll  = 20
	floodTell     = time.Second
)

func (f flood) limits() (burst, rate float64) {
	if f.slot == allSlots {
		return floodBurstAll, floodRateAll
	}
	return floodBurst, floodRate
}

type floodState struct {
	tokens float64
	at     time.Time // time of tokens
	left   int       // records left out and not reported yet
	timer  *time.Timer
}

func newFloodgate(tell func(f flood, records int)) *floodgate {
	return &floodgate{tell: tell, floods: make(map[flood]*floodState)}
}

// passes reports whether a record may be written, and counts it if not.
func (g *floodgate) passes(event string, slot int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	f := flood{event, slot}
	now := time.Now()
	burst, rate := f.limits()
	s := g.floods[f]
	if s == nil {
		s = &floodState{tokens: burst, at: now}
		g.floods[f] = s
	}
	s.tokens = min(s.tokens+now.Sub(s.at).Seconds()*rate, burst)
	s.at = now
	if s.tokens >= 1 {
		s.tokens--
		return true
	}
	s.left++
	if s.timer == nil && !g.over {
		s.timer = time.AfterFunc(floodTell, func() { g.report(f) })
	}
	return false
}

// report reports the records that were left out.
func (g *floodgate) report(f flood) {
	g.mu.Lock()
	s := g.floods[f]
	left := s.left
	s.left, s.timer = 0, nil
	g.mu.Unlock()
	if left > 0 {
		g.tell(f, left)
	}
}

// close makes a last report, and no timer starts after it.
func (g *floodgate) close() {
	g.mu.Lock()
	g.over = true
	var last []flood
	for f, s := range g.floods {
		if s.timer != nil {
			s.timer.Stop()
			last = append(last, f)
		}
	}
	g.mu.Unlock()
	for _, f := range last {
		g.report(f)
	}
}
