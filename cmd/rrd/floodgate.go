//go:build unix

package main

import (
	"sync"
	"time"
)

// floodgate limits the records that a worker can cause as often as it likes. The number of
// records that were left out is told, a second later and once a second while it goes on.
type floodgate struct {
	tell func(f flood, records int)

	mu     sync.Mutex
	floods map[flood]*floodState
	over   bool
}

// flood is what is limited on its own: an event, of the worker in a slot or of all.
type flood struct {
	event string
	slot  int // allSlots: of all
}

const (
	allSlots = -1
	// floodBurst is how many records of an event about one worker come at once, floodRate
	// how many a second after that. Of events of all workers there are more.
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
	at     time.Time // when tokens was right
	left   int       // records left out and not told of
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

// report tells of what was left out.
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

// close tells of what is left, and starts no timer any more.
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
