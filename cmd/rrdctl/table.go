//go:build unix

package main

import (
	"strings"
	"text/tabwriter"
	"unicode/utf8"
)

// column is one of a table. When the table is too wide those with the highest
// drop go first; 0 stays.
type column struct {
	title string
	drop  int
	right bool // aligned, as numbers are
	least int  // width that it has at least
	rare  bool // left out when no row has anything in it
}

// table is laid out for a width by leaving columns out.
type table struct {
	columns []column
	rows    [][]string
}

const gap = 2 // between columns

// lines returns the heading and a line for each row, at most width wide; 0 is
// any width.
func (t *table) lines(width int) []string {
	keep := make([]bool, len(t.columns))
	wide := make([]int, len(t.columns))
	for i, c := range t.columns {
		wide[i] = max(utf8.RuneCountInString(c.title), c.least)
		filled := false
		for _, r := range t.rows {
			wide[i] = max(wide[i], utf8.RuneCountInString(r[i]))
			filled = filled || r[i] != "" && r[i] != "-"
		}
		keep[i] = filled || !c.rare
	}
	for width > 0 {
		total, worst := -gap, -1
		for i, c := range t.columns {
			if !keep[i] {
				continue
			}
			total += wide[i] + gap
			if c.drop > 0 && (worst < 0 || c.drop > t.columns[worst].drop) {
				worst = i
			}
		}
		if total <= width || worst < 0 {
			break
		}
		keep[worst] = false
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, gap, ' ', 0)
	line := func(cell func(i int) string) {
		var cells []string
		for i, c := range t.columns {
			if !keep[i] {
				continue
			}
			text := cell(i)
			if c.right {
				text = strings.Repeat(" ", wide[i]-utf8.RuneCountInString(text)) + text
			} else if c.least > 0 {
				text += strings.Repeat(" ", wide[i]-utf8.RuneCountInString(text))
			}
			cells = append(cells, text)
		}
		_, _ = w.Write([]byte(strings.Join(cells, "\t") + "\n")) // into memory
	}
	line(func(i int) string { return t.columns[i].title })
	for _, r := range t.rows {
		line(func(i int) string { return r[i] })
	}
	_ = w.Flush()
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	for i, l := range lines {
		lines[i] = cut(strings.TrimRight(l, " "), width)
	}
	return lines
}

// cut shortens a line to width, and shows that it did.
func cut(line string, width int) string {
	if width <= 0 || utf8.RuneCountInString(line) <= width {
		return line
	}
	runes := []rune(line)
	return string(runes[:max(width-1, 0)]) + "~"
}

// Colours by what a row tells: red is trouble, yellow passes.
const (
	red    = "\x1b[31m"
	yellow = "\x1b[33m"
	bold   = "\x1b[1m"
	invert = "\x1b[7m"
	reset  = "\x1b[0m"
)

func colorOf(state string) string {
	switch state {
	case "stuck", "backoff", "down", "orphan", "failed":
		return red
	case "starting", "draining", "unhealthy", "late", "rolling back", "rolled back":
		return yellow
	}
	return ""
}

// paint colours a line by a state, on a terminal.
func (a *app) paint(line, state string) string {
	if c := colorOf(state); c != "" && a.color {
		return c + line + reset
	}
	return line
}
