package metrics

import "sync/atomic"

// LogLevels are the values of the level label of rrd_log_messages_total.
var LogLevels = []string{"debug", "info", "warn", "error", "fatal", "panic"}

// LogCounter counts log messages by level. Its zero value is ready to use, and
// it may be used by several goroutines. It is the one thing that this package
// counts itself, because messages come from everywhere.
type LogCounter struct {
	counts [6]atomic.Uint64 // by the index in LogLevels
}

// Inc counts one message. Unknown levels are not counted.
func (c *LogCounter) Inc(level string) {
	for i, l := range LogLevels {
		if l == level {
			c.counts[i].Add(1)
			return
		}
	}
}

// Add counts n messages of level at once, for a master that goes on where another
// image of it has stopped.
func (c *LogCounter) Add(level string, n uint64) {
	for i, l := range LogLevels {
		if l == level {
			c.counts[i].Add(n)
			return
		}
	}
}

// Count returns how many messages of level there were.
func (c *LogCounter) Count(level string) uint64 {
	for i, l := range LogLevels {
		if l == level {
			return c.counts[i].Load()
		}
	}
	return 0
}
