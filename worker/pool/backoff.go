package pool

import "time"

// spawnRetry is the pause before a spawn that made no process is tried again. It
// does not grow: the cause is outside of the worker (no memory, no pid, a file
// being replaced) and its end should be noticed soon.
const spawnRetry = time.Second

// backoff decides how long a slot waits before its next start.
type backoff struct {
	min, max time.Duration
	// failures counts the unhealthy runs since the last healthy one.
	failures int
}

// next notes the end of a run and returns the pause before the next start: none
// after a healthy run, else min doubling to max. jitter is in [0, 1) and spreads
// the pause by a tenth either way, so that slots that died together do not
// come back together for ever; it stays within min and max.
func (b *backoff) next(healthy bool, jitter float64) time.Duration {
	if healthy {
		b.failures = 0
		return 0
	}
	d := b.min
	for range b.failures {
		if d > b.max/2 {
			d = b.max
			break
		}
		d *= 2
	}
	b.failures++
	spread := time.Duration((jitter - 0.5) / 5 * float64(d))
	return min(max(d+spread, b.min), b.max)
}
