//go:build unix

package main

import (
	"fmt"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// maxDuration keeps sums of durations far from overflow.
const maxDuration = 365 * 24 * time.Hour

// parseNumber accepts decimal digits only. or names what else is allowed.
func parseNumber(v string, low, high int, or string) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high || v[0] == '+' {
		return 0, badValue(v, "is not a number from %d to %d%s", low, high, or)
	}
	return n, nil
}

func parseDuration(v string) (time.Duration, error) { return parseDurationOr(v, "") }

// parseDurationOr accepts Go's syntax and never a bare number, of which nobody
// can say whether it is seconds or milliseconds.
func parseDurationOr(v, or string) (time.Duration, error) {
	d, err := time.ParseDuration(v)
	_, number := strconv.ParseFloat(v, 64)
	if seconds, unit := time.ParseDuration(v + "s"); number == nil && unit == nil && seconds > 0 {
		return 0, badValue(v, "has no unit: write %ss or %sms%s", v, v, or)
	}
	switch {
	case err != nil:
		return 0, badValue(v, "is not a duration: write one like 500ms, 5s or 1m30s%s", or)
	case d <= 0 && or != "":
		return 0, badValue(v, "is not above zero: write a longer one, or off for no limit")
	case d <= 0:
		return 0, badValue(v, "is not above zero: write one like 500ms or 5s")
	case d > maxDuration:
		return 0, badValue(v, "is longer than %v: write a shorter one%s", maxDuration, or)
	}
	return d, nil
}

// choice sets field to v if it is legal.
func choice[T ~string](field *T, v string, legal []T) error {
	names := make([]string, len(legal))
	for i, l := range legal {
		if string(l) == v {
			*field = l
			return nil
		}
		names[i] = string(l)
	}
	return badValue(v, "is not one of %s", strings.Join(names, ", "))
}

type namedSignal struct {
	name   string
	signal syscall.Signal
}

// stopSignals are those that a program may take as a request to stop. KILL is
// not a request, and STOP or CONT would never end a worker.
var stopSignals = []namedSignal{
	{"TERM", syscall.SIGTERM}, {"INT", syscall.SIGINT}, {"QUIT", syscall.SIGQUIT}, {"HUP", syscall.SIGHUP},
	{"USR1", syscall.SIGUSR1}, {"USR2", syscall.SIGUSR2}, {"WINCH", syscall.SIGWINCH}, {"ABRT", syscall.SIGABRT},
}

// hangSignals end a hung worker: at once, or with a trace of its stacks or a core dump.
var hangSignals = []namedSignal{{"KILL", syscall.SIGKILL}, {"ABRT", syscall.SIGABRT}}

// parseSignal accepts the legal names in any case, with or without SIG.
func parseSignal(v string, legal []namedSignal) (syscall.Signal, error) {
	names := make([]string, len(legal))
	for i, s := range legal {
		if strings.TrimPrefix(strings.ToUpper(v), "SIG") == s.name {
			return s.signal, nil
		}
		names[i] = s.name
	}
	return 0, badValue(v, "is not one of %s", strings.Join(names, ", "))
}

// suggestion is " (did you mean X?)" if one of names is close to v, else "".
func suggestion(v string, names []string, prefix string) string {
	best, bestDistance := "", 3
	for _, n := range names {
		if d := editDistance(v, n); d < bestDistance {
			best, bestDistance = n, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %s%s?)", prefix, best)
}

// editDistance is how many bytes must be changed, added or taken away.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
