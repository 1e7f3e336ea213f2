package main

import (
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// printComparison writes the table of docs/performance.md.
func (b *bench) printComparison(out io.Writer, about string) error {
	var s strings.Builder
	fmt.Fprintf(&s, "%s\n%s, rounds of %v: %d.\n%s p99.9 is of all rounds together.\n",
		about, b.at[0].words(), b.load, b.rounds, ofRounds)
	b.printBase(&s)
	b.printFigures(&s)
	b.printRatios(&s)
	_, err := io.WriteString(out, s.String())
	return err
}

func (s setting) words() string { return fmt.Sprintf("%d workers, window %d", s.workers, s.window) }

func (b *bench) printBase(s *strings.Builder) {
	for _, g := range b.groups {
		if len(g.contestants[0].turns["70"]) == 0 {
			continue
		}
		fmt.Fprintf(s, "Open loops with %s: 30 %% and 70 %% of %s connections/s, the lowest peak there, for all.\n", g.name, thousands(g.base()))
	}
}

func (b *bench) printFigures(s *strings.Builder) {
	s.WriteString("\n| load | workers | through | connections/s | p50 ms | p99 ms | p99.9 ms | master us | workers us | spread % | MB | failed |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, phase := range b.phases {
		for _, g := range b.groups {
			for _, c := range g.contestants {
				if len(c.turns[phase]) > 0 {
					fmt.Fprintf(s, "| %s | %s | %s | %s |\n", b.title(phase, g), g.name, c.name, strings.Join(c.cells(phase), " | "))
				}
			}
		}
	}
	s.WriteString("\nmaster us, workers us: CPU per connection. spread: from the worker that served least to the one that served most, of their mean.\n")
}

// cells are the figures of a row.
func (c *contestant) cells(phase string) []string {
	of := func(f func(result) float64) string { return spreadOf(c.figures(phase, f)).significant() }
	p99, p999 := "–", "–"
	all, each := c.merged(phase)
	if each >= 100 {
		p99 = of(tail)
	}
	if all.count() >= 1000 {
		p999 = significant(all.percentile(0.999))
	}
	spread := "–"
	if served := c.turns[phase][0].served; len(served) > 0 && phase != "long" {
		spread = of(unevenness)
	}
	return []string{of(rate), of(half), p99, p999, of(cpu), of(workerCPU), spread,
		fmt.Sprintf("%.1f", float64(c.rss)/1024), c.failures(phase)}
}

// merged puts the times of all rounds together; each is how many the smallest round has.
func (c *contestant) merged(phase string) (all histogram, each int) {
	all, each = make(histogram), math.MaxInt
	for _, r := range c.turns[phase] {
		all.merge(r.times)
		each = min(each, r.times.count())
	}
	return all, each
}

// failures are all of the rounds, and what they were.
func (c *contestant) failures(phase string) string {
	total, classes := 0, make(map[string]int)
	for _, r := range c.turns[phase] {
		total += r.failed
		for class, n := range r.failures {
			classes[class] += n
		}
	}
	text := strconv.Itoa(total)
	for _, class := range slices.Sorted(maps.Keys(classes)) {
		text += fmt.Sprintf(", %d %s", classes[class], class)
	}
	return text
}

// compared are the ratios that another run must find again. Of open loops that is the
// median: what the machine does beside makes their p99, which is among the figures, and
// runs of two days had 0.89 and 1.90 for the same code.
var compared = []struct {
	title, phase string
	of           func(result) float64
}{
	{"connections/s, peak", "peak", rate},
	{"master's CPU, peak", "peak", meaningful(cpu)},
	{"all CPU, peak", "peak", allCPU},
	{"p99, peak", "peak", tail},
	{"p50, 30 %", "30", half},
	{"p99, slow", "slow", tail},
	{"all CPU, long", "long", allCPU},
	{"bytes/s, long", "long", rate},
}

// meaningful takes less than a microsecond of CPU for none at all: the master of
// none and reuseport does nothing for a connection, and has no ratio.
func meaningful(of func(result) float64) func(result) float64 {
	return func(r result) float64 {
		if v := of(r); v >= 1 {
			return v
		}
		return 0
	}
}

// printRatios puts rrd beside each of the others.
func (b *bench) printRatios(s *strings.Builder) {
	s.WriteString("\n| ratio |")
	for _, r := range compared {
		fmt.Fprintf(s, " %s |", r.title)
	}
	s.WriteString("\n|---|" + strings.Repeat("---|", len(compared)) + "\n")
	for _, g := range b.groups {
		ours := g.ours()
		for _, c := range g.contestants {
			if ours == nil || c == ours {
				continue
			}
			fmt.Fprintf(s, "| %s to %s, %s |", ours.name, c.name, g.name)
			for _, r := range compared {
				fmt.Fprintf(s, " %s |", ours.to(c, r.phase, r.of))
			}
			s.WriteString("\n")
		}
	}
}

// ours is the round robin of rrd; nil if it was not measured.
func (g *group) ours() *contestant {
	for _, c := range g.contestants {
		if c.name == "rr" || c.name == "rrd" {
			return c
		}
	}
	return nil
}

// to is the ratio of a figure to that of another contestant in the same rounds.
func (c *contestant) to(other *contestant, phase string, of func(result) float64) string {
	mine, theirs := c.figures(phase, of), other.figures(phase, of)
	if len(mine) == 0 || slices.Contains(theirs, 0) {
		return "–"
	}
	return ratios(mine, theirs)
}
