//go:build unix

package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// plain replaces what a terminal would take for more than a character: names and
// reasons come from configuration and programs.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) && r != ' ' {
			return '?'
		}
		return r
	}, s)
}

// age is a time in seconds as people read it: two units, and none for nothing.
func age(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < 0:
		return "-"
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}

// short is a duration of a histogram's bound.
func short(seconds float64) string {
	switch {
	case seconds < 1e-3:
		return strconv.FormatFloat(seconds*1e6, 'g', 4, 64) + "us"
	case seconds < 1:
		return strconv.FormatFloat(seconds*1e3, 'g', 4, 64) + "ms"
	}
	return strconv.FormatFloat(seconds, 'g', 4, 64) + "s"
}

// size is a number of bytes with three digits and the unit.
func size(bytes uint64) string {
	const units = "KMGTPE"
	if bytes < 1024 {
		return strconv.FormatUint(bytes, 10) + "B"
	}
	v, i := float64(bytes)/1024, 0
	for v >= 1000 && i < len(units)-1 {
		v /= 1024
		i++
	}
	if v < 10 {
		return fmt.Sprintf("%.1f%c", v, units[i])
	}
	return fmt.Sprintf("%.0f%c", v, units[i])
}

// count is a number that does not grow beyond six characters.
func count(n uint64) string {
	switch {
	case n < 1_000_000:
		return strconv.FormatUint(n, 10)
	case n < 1_000_000_000:
		return scaled(float64(n)/1e6, "M")
	}
	return scaled(float64(n)/1e9, "G")
}

func scaled(v float64, unit string) string {
	if v < 100 {
		return fmt.Sprintf("%.1f%s", v, unit)
	}
	return fmt.Sprintf("%.0f%s", v, unit)
}

// rate is a number a second.
func rate(v float64) string {
	if v > 0 && v < 9.95 {
		return fmt.Sprintf("%.1f", v)
	}
	return count(uint64(math.Round(max(v, 0))))
}

func number(n int) string { return strconv.Itoa(n) }

// quantile is the bound that a share q of the observations does not exceed.
func quantile(bounds []float64, counts []uint64, q float64) string {
	var total, sum uint64
	for _, n := range counts {
		total += n
	}
	if total == 0 {
		return "-"
	}
	for i, n := range counts {
		sum += n
		if float64(sum) >= q*float64(total) {
			if i < len(bounds) {
				return "<=" + short(bounds[i])
			}
			break
		}
	}
	return ">" + short(bounds[len(bounds)-1])
}
