//go:build unix

package main

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// A flood of one event of one worker leaves a few records and a count that is complete;
// others are not affected.
func TestFloodgate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // timers call
		told, tells := make(map[flood]int), 0
		g := newFloodgate(func(f flood, n int) {
			mu.Lock()
			defer mu.Unlock()
			told[f] += n
			tells++
		})
		passed := 0
		const seconds, perSecond = 60, 500
		for range seconds * perSecond {
			if g.passes("listener.refused", 3) {
				passed++
			}
			time.Sleep(time.Second / perSecond)
		}
		if most := floodBurst + seconds*floodRate; passed < most-1 || passed > most {
			t.Errorf("%d records passed, want %d", passed, most)
		}
		if !g.passes("listener.refused", 4) || !g.passes("worker.unhealthy", 3) {
			t.Error("others are limited too")
		}
		g.close()
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		f := flood{"listener.refused", 3}
		if n := told[f]; n+passed != seconds*perSecond || tells > seconds+1 {
			t.Errorf("%d told of in %d records, %d passed of %d", n, tells, passed, seconds*perSecond)
		}
		if len(told) != 1 {
			t.Errorf("told of %v", told)
		}
		time.Sleep(time.Hour)
		if !g.passes(f.event, f.slot) {
			t.Error("nothing passes after a rest")
		}
	})
}
