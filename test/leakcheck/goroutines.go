package leakcheck

import (
	"runtime"
	"strings"
)

// forever are functions whose goroutine the standard library starts once, on
// first use, and never ends.
var forever = []string{
	"os/signal.loop",              // os/signal.Notify
	"os/signal.signal_recv",       // the same one, as seen while it waits
	"runtime.ensureSigM",          // the same call's other goroutine
	"runtime.runFinalizers",       // shown while it runs a finalizer
	"runtime.runCleanups",         // likewise, for runtime.AddCleanup
	"testing.(*M).startAlarm",     // the -timeout of go test
	"testing.runFuzzing",          // the fuzzing engine's own
	"internal/fuzz.runFuzzWorker", // likewise
}

// goroutines returns the stack of every goroutine but the caller's and those
// that last forever, by its number, which the runtime does not use again.
func goroutines() map[string]string {
	all := stacks()
	found := make(map[string]string, len(all))
	for i, stack := range all {
		id, ok := goroutineID(stack)
		if i == 0 || !ok || lastsForever(stack) { // the first is the caller's
			continue
		}
		found[id] = stack
	}
	return found
}

// stacks returns one text per goroutine, the caller's first (runtime.Stack).
func stacks() []string {
	for size := 64 << 10; ; size *= 2 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, true); n < size {
			return strings.Split(strings.TrimSpace(string(buf[:n])), "\n\n")
		}
	}
}

// goroutineID takes the number from the head of a stack:
// "goroutine 18 [chan receive]:".
func goroutineID(stack string) (id string, ok bool) {
	rest, ok := strings.CutPrefix(stack, "goroutine ")
	if !ok {
		return "", false
	}
	id, _, ok = strings.Cut(rest, " ")
	return id, ok
}

// lastsForever looks for a frame of forever at the start of a line, where the
// functions are; a mere mention, as in an argument, does not count.
func lastsForever(stack string) bool {
	for _, f := range forever {
		if strings.Contains(stack, "\n"+f+"(") {
			return true
		}
	}
	return false
}
