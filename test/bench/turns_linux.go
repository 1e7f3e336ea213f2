package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"
)

type bench struct {
	*plan
	dir      string // holds what is built, and the proxies' configurations
	testdata string
	progress io.Writer // a line for each phase

	groups []*group
	memory []memory
}

// phase is a load that every contestant of some groups takes in turns.
type phase struct {
	name   string
	rounds int
	cold   bool // no round to warm up before the first
	// load is what a group is loaded with; a load without clients leaves it out.
	load func(*group) load
}

// run starts all contestants, lets them have their turns, phase by phase, and stops them.
func (b *bench) run(ctx context.Context, phases ...phase) (err error) {
	defer func() {
		for _, g := range b.groups {
			if serr := g.stop(); serr != nil && err == nil {
				err = serr
			}
		}
	}()
	for _, g := range b.groups {
		if err := g.start(ctx, b.dir); err != nil {
			return err
		}
	}
	for _, p := range phases {
		begun := time.Now()
		if err := b.phase(ctx, p); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		if !b.had(p) {
			continue
		}
		_, _ = fmt.Fprintf(b.progress, "bench: %s: %.0f s\n", p.name, time.Since(begun).Seconds())
	}
	for _, g := range b.groups {
		for _, c := range g.contestants {
			if c.rss, err = c.site.rss(); err != nil {
				return err
			}
		}
	}
	return nil
}

// phase is the one way in which anything is compared: in each round every
// contestant has a turn, and who is first in its group changes with the round.
func (b *bench) phase(ctx context.Context, p phase) error {
	first := -1 // a round that warms up
	if p.cold {
		first = 0
	}
	for round := first; round < p.rounds; round++ {
		for _, g := range b.groups {
			l := p.load(g)
			if l.clients == 0 {
				continue
			}
			for i := range g.contestants {
				c := g.contestants[(i+round+1)%len(g.contestants)]
				r, err := b.turn(ctx, c.site, l)
				if err != nil {
					return fmt.Errorf("%s at %s: %w", c.name, c.at, err)
				}
				if round >= 0 {
					c.turns[p.name] = append(c.turns[p.name], r)
				}
			}
		}
	}
	return nil
}

// had tells whether anybody had turns in a phase.
func (b *bench) had(p phase) bool {
	return slices.ContainsFunc(b.groups, func(g *group) bool { return len(g.contestants[0].turns[p.name]) > 0 })
}

func (g *group) start(ctx context.Context, dir string) (err error) {
	for _, c := range g.contestants {
		if c.site, err = c.kind.start(ctx, dir, c.at); err != nil {
			return fmt.Errorf("start %s at %s: %w", c.name, c.at, err)
		}
	}
	return nil
}

// stop stops those that were started; the first error is returned.
func (g *group) stop() (err error) {
	for _, c := range g.contestants {
		if c.site == nil {
			continue
		}
		if serr := c.site.stop(); serr != nil && err == nil {
			err = fmt.Errorf("stop %s at %s: %w", c.name, c.at, serr)
		}
	}
	return err
}

// closedLoad is as many connections as these clients get.
func (b *bench) closedLoad() load {
	return load{clients: b.clients, duration: b.load, path: "/"}
}

// openAtMost is how many connections of an open loop are open at a time. Who is
// behind by more than that has lost already.
const openAtMost = 1024

func (b *bench) openLoad(rate float64) load {
	return load{clients: openAtMost, duration: b.load, rate: rate, path: "/"}
}
