//go:build unix

package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// screen is what there is to draw on.
type screen struct {
	columns int
	blocks  bool // it has block characters; else # does
}

// plainScreen is for files and pipes.
var plainScreen = screen{columns: 80}

const maxColumns = 160 // bars longer than that tell nothing more

func screenOf(f *os.File, environ []string) screen {
	if !isTerminal(f) {
		return plainScreen
	}
	s := screen{columns: plainScreen.columns, blocks: wantsUTF8(environ)}
	if n := columnsOf(f); n > 0 {
		s.columns = min(n, maxColumns)
	}
	return s
}

// wantsUTF8 looks at the locale's character set: LC_ALL before LC_CTYPE before LANG
// (locale(7)).
func wantsUTF8(environ []string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v, _ := lookupVariable(environ, name); v != "" {
			v = strings.ToUpper(v)
			return strings.Contains(v, "UTF-8") || strings.Contains(v, "UTF8")
		}
	}
	return false
}

// eighths of a column, from one.
var eighths = []rune("▏▎▍▌▋▊▉")

// bar is n of most in so many columns. Whatever is not 0 shows.
func (s screen) bar(n, most, columns int) string {
	if n <= 0 || most <= 0 || columns <= 0 {
		return ""
	}
	if !s.blocks {
		return strings.Repeat("#", max(1, (n*columns+most/2)/most))
	}
	parts := max(1, (n*columns*8+most/2)/most)
	b := strings.Repeat("█", parts/8)
	if rest := parts % 8; rest > 0 {
		b += string(eighths[rest-1])
	}
	return b
}

// title is a phase as people read it.
func (p comparePhase) title(rate int) string {
	switch p.name {
	case "sequential":
		return "idle, one after the other"
	case "steady":
		return fmt.Sprintf("idle, %d/s", rate)
	case "saturated":
		return fmt.Sprintf("saturated, %d clients", compareClients)
	case "slow_steady":
		return fmt.Sprintf("worker %d slow, %d/s", slowWorker, rate)
	}
	return fmt.Sprintf("worker %d slow, %d clients", slowWorker, compareClients)
}

// writeText is what people read.
func (r *compareReport) writeText(w io.Writer, s screen) error {
	var b strings.Builder
	fmt.Fprintf(&b, "rrd compare: %d workers for each policy, %d CPUs, %s, %s\n", r.Workers, r.CPUs, r.Kernel, r.Began.Format("2006-01-02"))
	for _, l := range r.LeftOut {
		fmt.Fprintf(&b, "left out: %s: %s\n", l.Policy, l.Reason)
	}
	for _, p := range comparePhases {
		if p.name == "sequential" || p.name == "slow_steady" {
			fmt.Fprintf(&b, "\nwho served: %s\n", p.title(r.Rate))
			s.writeBars(&b, r.phase(p.name))
		}
	}
	fmt.Fprintf(&b, "\n%-14s%11s%9s%9s%9s%9s%8s%8s\n", "", "connections", "/s", "p50 ms", "p99 ms", "p99.9", "spread", "failed")
	for _, p := range comparePhases {
		fmt.Fprintf(&b, "%s\n", p.title(r.Rate))
		for _, found := range r.phase(p.name) {
			b.WriteString(found.row())
		}
	}
	b.WriteByte('\n')
	for _, note := range r.notes() {
		writeWrapped(&b, note, min(s.columns, plainScreen.columns))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// maxBars is how many workers have a bar.
const maxBars = 32

// writeBars has a row for each worker and a bar in it for each policy. All bars
// have one scale.
func (s screen) writeBars(b *strings.Builder, policies []policyReport) {
	if len(policies) == 0 {
		return
	}
	const margin = 8
	most := 1
	for _, p := range policies {
		most = max(most, slices.Max(p.ByWorker))
	}
	column := max((s.columns-margin)/len(policies), 8)
	widest := column - len(fmt.Sprint(most)) - 3 // a space before the number and two behind it
	row := func(head string, cell func(p *policyReport) string) {
		line := fmt.Sprintf("%6s  ", head)
		for i := range policies {
			text := cell(&policies[i])
			line += text + strings.Repeat(" ", max(column-utf8.RuneCountInString(text), 1))
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	row("worker", func(p *policyReport) string { return p.Policy })
	workers := len(policies[0].ByWorker)
	for slot := range min(workers, maxBars) {
		row(fmt.Sprint(slot), func(p *policyReport) string {
			n := p.ByWorker[slot]
			return strings.TrimLeft(fmt.Sprintf("%s %d", s.bar(n, most, widest), n), " ")
		})
	}
	if rest := workers - maxBars; rest > 0 {
		row("...", func(p *policyReport) string {
			others := p.ByWorker[maxBars:]
			return fmt.Sprintf("%d to %d", slices.Min(others), slices.Max(others))
		})
	}
	row("spread", func(p *policyReport) string { return fmt.Sprint(p.Spread) })
}

// row is a line of the table.
func (p *policyReport) row() string {
	p50, p99, tail := "-", "-", "-"
	if p.Connections > 0 {
		p50, p99 = milliseconds(p.P50), milliseconds(p.P99)
	}
	if p.P999 != nil {
		tail = milliseconds(*p.P999)
	}
	return fmt.Sprintf("  %-12s%11d%9.0f%9s%9s%9s%8d%8d\n", p.Policy, p.Connections, p.PerSecond, p50, p99, tail, p.Spread, p.Failed)
}

// milliseconds has three digits or more.
func milliseconds(seconds float64) string {
	switch ms := seconds * 1e3; {
	case ms < 9.995:
		return fmt.Sprintf("%.2f", ms)
	case ms < 99.95:
		return fmt.Sprintf("%.1f", ms)
	default:
		return fmt.Sprintf("%.0f", ms)
	}
}

// notes say how the figures were made, and what is wrong with them.
func (r *compareReport) notes() []string {
	notes := []string{
		"spread: connections of the busiest worker less those of the idlest.",
		fmt.Sprintf("/s: answered in time. p50 to p99.9: time to the end of the answer, at %d/s from the moment that the connection was due, else "+
			"from its start; p99.9 of %d connections or more.", r.Rate, compareTail),
		fmt.Sprintf("slow: worker %d is stopped for %v of every %v, whatever it has on hand.", r.SlowWorker, seconds(r.PauseFor), seconds(r.PauseEvery)),
		fmt.Sprintf("Client, masters and workers share %d CPUs; the policies took turns, %d of each kind. Differences are those of this machine at this time: run it again.",
			r.CPUs, r.Rounds),
	}
	if least := r.leastSaturated(); float64(r.Rate) > least/2 {
		notes = append(notes, fmt.Sprintf("--rate %d is more than half of the %.0f/s that a policy did at most: its latencies are those of a busy machine. Try --rate %d.",
			r.Rate, least, max(1, int(least/10))))
	}
	for _, phase := range r.Phases {
		for _, p := range phase.Policies {
			if p.Failed > 0 {
				notes = append(notes, fmt.Sprintf("failed: %s, %s: %d, the first by: %s", phase.Phase, p.Policy, p.Failed, p.Failure))
			}
		}
	}
	return notes
}

// leastSaturated is what the policy did that did least with all clients at once
// and no slow worker.
func (r *compareReport) leastSaturated() float64 {
	var rates []float64
	for _, p := range r.phase("saturated") {
		rates = append(rates, p.PerSecond)
	}
	if len(rates) == 0 {
		return 0
	}
	return slices.Min(rates)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// writeWrapped breaks text between words; lines after the first are indented.
func writeWrapped(b *strings.Builder, text string, columns int) {
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > columns {
			b.WriteString(line + "\n")
			line = " "
		}
		if line == "" {
			line = word
		} else {
			line += " " + word
		}
	}
	b.WriteString(line + "\n")
}
