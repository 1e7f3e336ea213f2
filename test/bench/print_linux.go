package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"regexp"
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

// significant is for figures of any size. One round has no least and most.
func (s spread) significant() string {
	if s.least == s.most {
		return significant(s.median)
	}
	return fmt.Sprintf("%s (%s–%s)", significant(s.median), significant(s.least), significant(s.most))
}

// significant has three digits, or all of a whole number.
func significant(v float64) string {
	switch {
	case v >= 100:
		return thousands(v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// thousands is a whole number as people write it.
func thousands(v float64) string {
	digits := fmt.Sprintf("%.0f", v)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// figures are of the rounds of a phase, in their order.
func (c *contestant) figures(phase string, of func(result) float64) []float64 {
	v := make([]float64, len(c.turns[phase]))
	for round, r := range c.turns[phase] {
		v[round] = of(r)
	}
	return v
}

// ratios divides figures of the same round and tells the median, with the interval in which
// that of endless rounds lies with 95 %: so far another run may be from it. Less than six rounds
// cannot tell; then it is all of them.
func ratios(a, b []float64) string {
	v := make([]float64, len(a))
	for i := range v {
		v[i] = a[i] / b[i]
	}
	slices.Sort(v)
	out := outside(len(v))
	return fmt.Sprintf("%.2f (%.2f–%.2f)", spreadOf(v).median, v[out], v[len(v)-1-out])
}

// outside is how many of n sorted values lie before such an interval, and after it. As each
// is below the true median with a probability of a half, it follows from how often a coin
// shows heads in n throws.
func outside(n int) (k int) {
	p := math.Ldexp(1, -n) // of k heads
	sum := p               // of at most so many
	for {
		p *= float64(n-k) / float64(k+1)
		if sum += p; sum > 0.025 {
			return k
		}
		k++
	}
}

func rate(r result) float64       { return r.rate }
func cpu(r result) float64        { return r.cpu }
func workerCPU(r result) float64  { return r.workerCPU }
func allCPU(r result) float64     { return r.cpu + r.workerCPU }
func half(r result) float64       { return r.p50 }
func tail(r result) float64       { return r.p99 }
func unevenness(r result) float64 { return r.unevenness }

// ofRounds says how tables are to be read.
const ofRounds = "Figures: median (least–most) of the rounds. Ratios, of two figures of the same round: median (its 95 % interval)."

// printMasters writes the tables of the masters alone.
func (b *bench) printMasters(out io.Writer, about string) error {
	var s strings.Builder
	fmt.Fprintf(&s, "%s; rounds of %v: %d, clients: %d.\n%s\n", about, b.load, b.rounds, b.clients, ofRounds)
	b.printTurns(&s)
	b.printMemory(&s)
	_, err := io.WriteString(out, s.String())
	return err
}

func (b *bench) printTurns(s *strings.Builder) {
	if len(b.groups) == 0 {
		return
	}
	s.WriteString("\n| workers | window | master | us of CPU per connection | to the first | connections/s | to the first | MB | failed |\n|---|---|---|---|---|---|---|---|---|\n")
	for _, g := range b.groups {
		first := g.contestants[0]
		for _, c := range g.contestants {
			toCPU, toRate := "", ""
			if c != first {
				toCPU = ratios(c.figures("peak", cpu), first.figures("peak", cpu))
				toRate = ratios(c.figures("peak", rate), first.figures("peak", rate))
			}
			fmt.Fprintf(s, "| %d | %d | %s | %s | %s | %s | %s | %.1f | %s |\n", c.at.workers, c.at.window, c.name,
				spreadOf(c.figures("peak", cpu)).text(2), toCPU, spreadOf(c.figures("peak", rate)).text(0), toRate,
				float64(c.rss)/1024, c.failures("peak"))
		}
	}
	b.printGrowth(s)
}

// printGrowth compares the most workers with the least at the same window.
func (b *bench) printGrowth(s *strings.Builder) {
	for _, most := range b.groups {
		for _, least := range b.groups {
			m, l := most.contestants[0].at, least.contestants[0].at
			if m.window != l.window || m.workers <= l.workers {
				continue
			}
			fmt.Fprintf(s, "\nCPU per connection, %d workers to %d at window %d:", m.workers, l.workers, m.window)
			for i, c := range most.contestants {
				if i > 0 {
					s.WriteByte(';')
				}
				fmt.Fprintf(s, " %s %s", c.name, ratios(c.figures("peak", cpu), least.contestants[i].figures("peak", cpu)))
			}
			s.WriteString(".\n")
		}
	}
}

func (b *bench) printMemory(s *strings.Builder) {
	for _, m := range b.memory {
		fmt.Fprintf(s, "\nMemory with %d workers and %d connections queued: %.1f MB resident, %.1f MB at most.\n",
			memoryWorkers, m.queued, float64(m.rss)/1024, float64(m.peak)/1024)
	}
}

// about says where and of what the figures are, and how busy the machine was before them.
func about(ctx context.Context, root string) string {
	kernel := "?"
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	loads, _ := os.ReadFile("/proc/loadavg")
	load, _, _ := strings.Cut(string(loads), " ")
	return fmt.Sprintf("%s, commit %s; Linux %s, %d CPUs (%s), load %s before; %s",
		time.Now().Format(time.DateOnly), commit(ctx, root), kernel, runtime.NumCPU(), cpuName(), load, runtime.Version())
}

// commit is what the sources are, if git knows it.
func commit(ctx context.Context, root string) string {
	out, err := exec.CommandContext(ctx, "git", "-C", root, "describe", "--always", "--dirty", "--exclude=*").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func cpuName() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range bytes.Lines(text) {
		if name, ok := bytes.CutPrefix(line, []byte("model name")); ok {
			return strings.TrimLeft(strings.TrimSpace(string(name)), ": \t")
		}
	}
	return runtime.GOARCH
}

// versions are of the peers.
func versions(ctx context.Context) string {
	var v []string
	for _, command := range [][]string{{"haproxy", "-v"}, {"nginx", "-v"}, {"node", "--version"}} {
		path, err := tool(command[0])
		if err != nil {
			continue
		}
		out, err := exec.CommandContext(ctx, path, command[1:]...).CombinedOutput()
		if err == nil {
			v = append(v, version(command[0], string(out)))
		}
	}
	return strings.Join(v, ", ")
}

var numbers = regexp.MustCompile(`[0-9]+(\.[0-9]+)+`)

// version is a program with the first number that it says of itself.
func version(program, said string) string { return program + " " + numbers.FindString(said) }
