package main

import (
	"context"
	"fmt"
	"io"
	"strings"
)

// Scale: the reference and rrd with more and more workers, rrd's memory with more and
// more connections queued, and both at rates from 100/s to what they can.

// sweepAt is the setting of the rates: the default one.
var sweepAt = setting{4, 4}

// sweepRates are tried as far as all can serve them.
var sweepRates = []float64{100, 300, 1000, 3000, 10_000, 30_000}

func (b *bench) scale(ctx context.Context) error {
	for _, s := range b.at {
		b.groups = append(b.groups, newGroup("", s, reference(), rescuing()))
	}
	if err := b.run(ctx, b.peak()); err != nil {
		return err
	}
	workers := b.groups
	b.groups = []*group{newGroup("", sweepAt, reference(), rescuing())}
	if err := b.sweep(ctx); err != nil {
		return err
	}
	b.groups = append(workers, b.groups...)
	return b.measureQueues(ctx)
}

// sweep is a run of its own: more masters would only wait.
func (b *bench) sweep(ctx context.Context) error {
	phases := []phase{b.peak()}
	for _, perSecond := range sweepRates {
		phases = append(phases, phase{name: sweepName(perSecond), rounds: b.rounds, load: func(g *group) load {
			if perSecond > 0.9*g.base() {
				return load{}
			}
			return b.openLoad(perSecond)
		}})
	}
	return b.run(ctx, phases...)
}

func sweepName(perSecond float64) string { return thousands(perSecond) + "/s" }

// peak is what the masters alone are compared by.
func (b *bench) peak() phase {
	return phase{name: "peak", rounds: b.rounds, load: func(*group) load { return b.closedLoad() }}
}

func (b *bench) measureQueues(ctx context.Context) error {
	for _, n := range b.queue {
		m, err := b.measureMemory(ctx, n)
		if err != nil {
			return fmt.Errorf("measure memory: %w", err)
		}
		b.memory = append(b.memory, m)
	}
	return nil
}

// sweepGroup is the group with the rates: the last.
func (b *bench) sweepGroup() *group { return b.groups[len(b.groups)-1] }

// sweepPhases are those that had turns, from slow to fast.
func (b *bench) sweepPhases() (names []string) {
	for _, r := range sweepRates {
		if len(b.sweepGroup().contestants[0].turns[sweepName(r)]) > 0 {
			names = append(names, sweepName(r))
		}
	}
	return append(names, "peak")
}

func (b *bench) printScale(out io.Writer, about string) error {
	var s strings.Builder
	fmt.Fprintf(&s, "%s; rounds of %v: %d, clients: %d.\n%s\n", about, b.load, b.rounds, b.clients, ofRounds)
	b.printTurns(&s)
	b.printMemory(&s)
	fmt.Fprintf(&s, "\nRates, with %s:\n\n| connections/s | master | us of CPU per connection | p50 ms | p99 ms | failed |\n|---|---|---|---|---|---|\n", sweepAt.words())
	for _, name := range b.sweepPhases() {
		for _, c := range b.sweepGroup().contestants {
			fmt.Fprintf(&s, "| %s | %s | %s | %s | %s | %s |\n", rateTitle(c, name), c.name, spreadOf(c.figures(name, cpu)).significant(),
				spreadOf(c.figures(name, half)).significant(), c.tailOf(name), c.failures(name))
		}
	}
	_, err := io.WriteString(out, s.String())
	return err
}

// rateTitle has for the peak the rate that it was.
func rateTitle(c *contestant, phase string) string {
	if phase == "peak" {
		return "peak: " + thousands(spreadOf(c.figures(phase, rate)).median) + "/s"
	}
	return phase
}

// tailOf is the p99 of each round, or of all together if rounds have too few.
func (c *contestant) tailOf(phase string) string {
	all, each := c.merged(phase)
	switch {
	case each >= 100:
		return spreadOf(c.figures(phase, tail)).significant()
	case all.count() >= 100:
		return significant(all.percentile(0.99)) + " of all rounds"
	}
	return "–"
}
