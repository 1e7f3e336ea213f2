//go:build unix

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"time"

	"rrd/dispatcher"
	"rrd/worker/pool"
)

// Workers that are well are replaced all the same when they have served long enough:
// --max-connections-per-worker, --max-age and --max-rss. One slot at a time, its
// successor first, so that there are never fewer; and each process has limits of its
// own, a tenth more or less, so that workers which were started together do not go
// together.

const (
	// recycleEvery is how often the workers are looked at.
	recycleEvery = time.Second
	// recycleJitter is how far a limit may be off, to either side.
	recycleJitter = 0.1
)

// sizeUnits are those of --max-rss. One letter alone would be anybody's guess.
var sizeUnits = []struct {
	name  string
	bytes uint64
}{
	{"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	{"KIB", 1 << 10}, {"MIB", 1 << 20}, {"GIB", 1 << 30}, {"TIB", 1 << 40},
}

// parseSize takes whole numbers of a unit.
func parseSize(v string) (uint64, error) {
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(strings.ToUpper(v), u.name)
		if !ok {
			continue
		}
		n, err := parseNumber(strings.TrimSpace(digits), 1, 1<<20, "")
		if err != nil {
			break
		}
		return uint64(n) * u.bytes, nil
	}
	if _, err := parseNumber(v, 1, 1<<30, ""); err == nil {
		return 0, badValue(v, "has no unit: write %sMB or %sMiB, or off", v, v)
	}
	return 0, badValue(v, "is not a size: write one like 512MB or 2GiB, or off")
}

// checkRecycling refuses limits of what cannot be seen.
func (c *config) checkRecycling() error {
	if c.MaxPerWorker > 0 && c.Policy != dispatcher.SchedRR {
		return c.bad("max-connections-per-worker", c.settings["max-connections-per-worker"].values[0],
			fmt.Sprintf("needs --policy rr: under %s rrd does not see the connections: use --max-age", c.Policy))
	}
	if c.MaxRSS > 0 && runtime.GOOS != "linux" {
		return c.bad("max-rss", c.settings["max-rss"].values[0], "is for Linux: this system does not tell the size of a process")
	}
	return nil
}

func (c *config) recycles() bool { return c.MaxPerWorker > 0 || c.MaxAge != off || c.MaxRSS > 0 }

// candidate is a worker as the recycler sees it.
type candidate struct {
	id    uint64
	slot  int
	age   time.Duration
	acks  uint64
	rss   func() (uint64, bool) // is asked last
	ready bool
}

// recycler decides who is replaced. One goroutine owns it.
type recycler struct {
	jitter func() float64 // in [0, 1)
	factor map[uint64]float64
	// retry is when a slot whose successor failed is tried again, and pause what that
	// pause was.
	retry map[int]time.Time
	pause map[int]time.Duration
}

func newRecycler(jitter func() float64) *recycler {
	return &recycler{jitter: jitter, factor: make(map[uint64]float64), retry: make(map[int]time.Time), pause: make(map[int]time.Duration)}
}

// next returns the worker that has had enough, and of what; "": none has. Of several it
// is the one that was started first, so that none has to wait for ever.
func (r *recycler) next(now time.Time, c *config, list []candidate) (slot int, reason string) {
	slices.SortFunc(list, func(a, b candidate) int { return cmp.Compare(a.id, b.id) })
	known := make(map[uint64]float64, len(list))
	for _, w := range list {
		f, ok := r.factor[w.id]
		if !ok {
			f = 1 + recycleJitter*(2*r.jitter()-1)
		}
		known[w.id] = f
	}
	r.factor = known // those that are gone are forgotten
	for _, w := range list {
		if !w.ready || now.Before(r.retry[w.slot]) {
			continue
		}
		if reason := w.enough(c, known[w.id]); reason != "" {
			return w.slot, reason
		}
	}
	return 0, ""
}

// enough says what the worker has had enough of.
func (w *candidate) enough(c *config, factor float64) string {
	switch {
	case c.MaxPerWorker > 0 && float64(w.acks) >= max(float64(c.MaxPerWorker)*factor, 1):
		return fmt.Sprintf("it has taken %d connections (--max-connections-per-worker %d)", w.acks, c.MaxPerWorker)
	case c.MaxAge != off && float64(w.age) >= float64(c.MaxAge)*factor:
		return fmt.Sprintf("it is %v old (--max-age %v)", w.age.Round(time.Second/10), c.MaxAge)
	case c.MaxRSS > 0:
		if rss, ok := w.rss(); ok && float64(rss) >= float64(c.MaxRSS)*factor {
			return fmt.Sprintf("it has %d MB of memory (--max-rss %d MB)", rss/1e6, c.MaxRSS/1e6)
		}
	}
	return ""
}

// done notes how it went with a slot.
func (r *recycler) done(now time.Time, c *config, slot int, err error) {
	switch {
	case err == nil:
		delete(r.retry, slot)
		delete(r.pause, slot)
	case errors.Is(err, pool.ErrBusy):
	default:
		r.pause[slot] = min(max(2*r.pause[slot], c.RespawnMin), c.RespawnMax)
		r.retry[slot] = now.Add(r.pause[slot])
	}
}

// recycle looks at the workers until ctx ends. Its caller waits for it.
func (m *master) recycle(ctx context.Context) {
	r := newRecycler(rand.Float64)
	tick := time.NewTicker(recycleEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		c := m.current()
		if !c.recycles() || m.ends() || !m.reloads.rolling.TryLock() {
			continue // a reload replaces them all, or there is no point any more
		}
		if slot, reason := r.next(time.Now(), c, m.candidates(ctx)); reason != "" {
			r.done(time.Now(), c, slot, m.replace(slot, reason))
		}
		m.reloads.rolling.Unlock()
	}
}

// replace gives a slot another worker, and waits for it.
func (m *master) replace(slot int, reason string) error {
	m.log.Info().Str("event", "worker.recycle").Int("worker", slot).Str("reason", reason).Msg("worker is replaced, successor first")
	err := m.pool.Restart(slot, reason, nil)
	if err != nil && !errors.Is(err, pool.ErrBusy) && !errors.Is(err, pool.ErrStopping) {
		m.log.Error().Str("event", "worker.recycle_failed").Int("worker", slot).Err(err).Msg("the old worker goes on")
	}
	return err
}

func (m *master) candidates(ctx context.Context) (list []candidate) {
	ctx, cancel := context.WithTimeout(ctx, recycleEvery)
	defer cancel()
	acks := make(map[uint64]uint64)
	if stats, err := m.dispatcher.Stats(ctx); err == nil { // else they are looked at by age and size
		for _, p := range stats.Processes {
			acks[p.ID] = p.Acks
		}
	}
	slots := m.pool.Snapshot().Slots
	for i := range slots {
		s := &slots[i]
		list = append(list, candidate{
			id: s.ID, slot: s.Slot, age: s.Uptime, acks: acks[s.ID], ready: s.State == pool.StateReady && s.Next == nil,
			rss: func() (uint64, bool) { return residentMemory(s.PID) },
		})
	}
	return list
}
