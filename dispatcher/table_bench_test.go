package dispatcher

import (
	"fmt"
	"testing"
)

// newBusyTable has workers that all serve one listener and queued connections
// that wait although somebody is free, so that every step finds a long queue and
// long lists.
func newBusyTable(workers, queued int) (*table, listenerID) {
	t := newTable(4, queued+workers*4)
	l := t.addListener()
	for range workers {
		w := t.addWorker()
		t.serve(w, l)
		t.unblock(w)
	}
	for range queued {
		t.arrive(l)
	}
	return t, l
}

// one connection's way: it arrives, the oldest is offered, answered, and every
// eighth time first comes back.
func turnOfOne(t *table, l listenerID, i int) bool {
	t.arrive(l)
	c, _, ok := t.pair(l)
	if !ok {
		return false
	}
	if i%8 == 0 {
		t.back(c)
		if c, _, ok = t.pair(l); !ok {
			return false
		}
	}
	t.ack(c)
	return true
}

func BenchmarkTable(b *testing.B) {
	for _, workers := range []int{1, 4, 64, 256, 1024} {
		for _, queued := range []int{0, 4096} {
			b.Run(fmt.Sprintf("%dworkers/%dqueued", workers, queued), func(b *testing.B) {
				t, l := newBusyTable(workers, queued)
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					if i++; !turnOfOne(t, l, i) {
						b.Fatal("nobody takes it")
					}
				}
			})
		}
	}
}

// BenchmarkTableAllReject is the worst order for putting back: worker after
// worker rejects all that it owes.
func BenchmarkTableAllReject(b *testing.B) {
	for _, workers := range []int{4, 64, 256, 1024} {
		b.Run(fmt.Sprintf("%dworkers", workers), func(b *testing.B) {
			t, l := newBusyTable(workers, 4*workers)
			b.ReportAllocs()
			for b.Loop() {
				for {
					if _, _, ok := t.pair(l); !ok {
						break
					}
				}
				for w := range t.workers {
					for c := t.workers[w].flying.head; c != none; c = t.workers[w].flying.head {
						t.reject(c)
					}
				}
				for w := range t.workers {
					t.serve(workerIdx(w), l)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*4*workers), "ns/reject")
		})
	}
}

func TestTableAllocatesNothing(t *testing.T) {
	tb, l := newBusyTable(16, 256)
	for i := range 100 {
		turnOfOne(tb, l, i)
	}
	i := 0
	if n := testing.AllocsPerRun(2000, func() { i++; turnOfOne(tb, l, i) }); n != 0 {
		t.Errorf("%v allocations for a connection", n)
	}
}
