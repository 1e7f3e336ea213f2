package main

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// spread is a figure over the rounds.
type spread struct{ median, least, most float64 }

func spreadOf(v []float64) spread {
	v = slices.Clone(v)
	slices.Sort(v)
	n := len(v)
	return spread{(v[(n-1)/2] + v[n/2]) / 2, v[0], v[n-1]}
}

func (s spread) text(digits int) string {
	return fmt.Sprintf("%.*f (%.*f–%.*f)", digits, s.median, digits, s.least, digits, s.most)
}

func (b *bench) figures(at setting, name string, of func(result) float64) []float64 {
	v := make([]float64, b.rounds)
	for round := range v {
		v[round] = of(b.turns[turnID{at, name, round}])
	}
	return v
}

// ratios divides figures of the same round.
func ratios(a, b []float64) spread {
	v := make([]float64, len(a))
	for i := range v {
		v[i] = a[i] / b[i]
	}
	return spreadOf(v)
}

func rate(r result) float64 { return r.rate }
func cpu(r result) float64  { return r.cpu }

// print writes the tables that docs/performance.md holds.
func (b *bench) print(out io.Writer) error {
	var s strings.Builder
	fmt.Fprintf(&s, "%s; rounds of %v: %d, clients: %d.\nMedian (least–most); ratios are within a round.\n", machine(), b.load, b.rounds, b.clients)
	if len(b.at) > 0 {
		b.printTurns(&s)
		b.printGrowth(&s)
	}
	if b.memory.queued > 0 {
		fmt.Fprintf(&s, "\nMemory with %d workers and %d connections queued: %.1f MB resident, %.1f MB at most.\n",
			memoryWorkers, b.memory.queued, float64(b.memory.rss)/1024, float64(b.memory.peak)/1024)
	}
	_, err := io.WriteString(out, s.String())
	return err
}

func (b *bench) printTurns(s *strings.Builder) {
	s.WriteString("\n| workers | window | master | us of CPU per connection | to the first | connections/s | to the first | MB | failed |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, at := range b.at {
		refCPU, refRate := b.figures(at, b.masters[0].name, cpu), b.figures(at, b.masters[0].name, rate)
		for _, k := range b.masters {
			c, r := b.figures(at, k.name, cpu), b.figures(at, k.name, rate)
			toCPU, toRate := "", ""
			if k.name != b.masters[0].name {
				toCPU, toRate = ratios(c, refCPU).text(2), ratios(r, refRate).text(2)
			}
			failed := 0
			for round := range b.rounds {
				failed += b.turns[turnID{at, k.name, round}].failed
			}
			fmt.Fprintf(s, "| %d | %d | %s | %s | %s | %s | %s | %.1f | %d |\n", at.workers, at.window, k.name,
				spreadOf(c).text(2), toCPU, spreadOf(r).text(0), toRate, float64(b.rss[turnID{at, k.name, 0}])/1024, failed)
		}
	}
}

// printGrowth compares the most workers with the least at the same window.
func (b *bench) printGrowth(s *strings.Builder) {
	for _, most := range b.at {
		for _, least := range b.at {
			if most.window != least.window || most.workers <= least.workers {
				continue
			}
			fmt.Fprintf(s, "\nCPU per connection, %d workers to %d at window %d:", most.workers, least.workers, most.window)
			for i, k := range b.masters {
				if i > 0 {
					s.WriteByte(';')
				}
				fmt.Fprintf(s, " %s %s", k.name, ratios(b.figures(most, k.name, cpu), b.figures(least, k.name, cpu)).text(2))
			}
			s.WriteString(".\n")
		}
	}
}

func machine() string {
	kernel := "?"
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	return fmt.Sprintf("%s, Linux %s, %d CPUs, %s", time.Now().Format(time.DateOnly), kernel, runtime.NumCPU(), runtime.Version())
}
