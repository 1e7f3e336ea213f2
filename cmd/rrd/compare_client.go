//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"
)

// compareTimeout is for all of one connection.
const compareTimeout = 5 * time.Second

// compareOpen bounds how many connections of a schedule are open at a time. Those
// that wait for their turn are late, and charged for it.
const compareOpen = 512

// compareClients is how many ask at once where the rate is what they get.
const compareClients = 64

// tally is what became of the connections of a slice, or of several.
type tally struct {
	byWorker  []int
	latencies []time.Duration // of those that were answered
	inTime    int             // answered before the slice was over
	seconds   float64         // of the slices
	failed    int
	failure   error // the first
}

func newTally(workers int) *tally { return &tally{byWorker: make([]int, workers)} }

// add enters one connection.
func (t *tally) add(slot int, latency time.Duration, inTime bool, err error) {
	if err == nil && (slot < 0 || slot >= len(t.byWorker)) {
		err = fmt.Errorf("answered by worker %d of %d", slot, len(t.byWorker))
	}
	if err != nil {
		t.failed++
		if t.failure == nil {
			t.failure = err
		}
		return
	}
	t.byWorker[slot]++
	t.latencies = append(t.latencies, latency)
	if inTime {
		t.inTime++
	}
}

// merge adds what another slice, or another client of the same, has found. Only
// one of several that ran at once may bring its seconds.
func (t *tally) merge(o *tally) {
	for slot, n := range o.byWorker {
		t.byWorker[slot] += n
	}
	t.latencies = append(t.latencies, o.latencies...)
	t.inTime += o.inTime
	t.seconds += o.seconds
	t.failed += o.failed
	if t.failure == nil {
		t.failure = o.failure
	}
}

// percentile returns the latency that q, from 0 to 1, of the sorted ones did not
// exceed (nearest rank); 0 if there are none.
func percentile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	const ulp = 1e-9 // 0.999*1000 is a little above 999
	rank := int(q*float64(len(sorted)) + 1 - ulp)
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// spread is how many more connections the busiest worker had than the idlest.
func spread(byWorker []int) int {
	if len(byWorker) == 0 {
		return 0
	}
	return slices.Max(byWorker) - slices.Min(byWorker)
}

// compareRequest asks for the end of the connection, so that every one is short;
// the worker closes first and so keeps what is left of it (TIME_WAIT), not us.
const compareRequest = "GET / HTTP/1.1\r\nHost: rrd\r\nConnection: close\r\n\r\n"

var (
	statusOK    = []byte("HTTP/1.1 200 ")
	slotField   = []byte("\r\nRrd-Worker: ")
	endOfHeader = []byte("\r\n\r\n")
)

// askOnce opens a connection, asks, and reads to the end. slot is who answered.
func askOnce(address string, buf []byte) (slot int, err error) {
	d := net.Dialer{Timeout: compareTimeout, KeepAlive: -1}
	c, err := d.Dial("tcp4", address)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(compareTimeout)); err != nil {
		return 0, err
	}
	if _, err := c.Write([]byte(compareRequest)); err != nil {
		return 0, err
	}
	n := 0
	for n < len(buf) {
		k, err := c.Read(buf[n:])
		n += k
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, err
		}
	}
	return answeredBy(buf[:n])
}

// answeredBy reads an answer of the built-in worker, all of it.
func answeredBy(answer []byte) (slot int, err error) {
	header, body, ok := bytes.Cut(answer, endOfHeader)
	switch {
	case len(answer) == 0:
		return 0, errors.New("closed without an answer")
	case !ok || !bytes.HasSuffix(body, []byte("}\n")):
		return 0, fmt.Errorf("half an answer, of %d bytes", len(answer))
	case !bytes.HasPrefix(header, statusOK):
		return 0, fmt.Errorf("no proper answer: %.40q", header)
	}
	_, rest, _ := bytes.Cut(header, slotField)
	value, _, _ := bytes.Cut(rest, endOfHeader[:2])
	if slot, err = strconv.Atoi(string(value)); err != nil {
		return 0, fmt.Errorf("no worker's number in %.100q", header)
	}
	return slot, nil
}

// answerSize is more than an answer has.
const answerSize = 1024

// closedLoop has clients that each open their next connection when the last has
// ended, until d is over. A latency counts from the start of the connection.
func closedLoop(ctx context.Context, address string, workers, clients int, d time.Duration) *tally {
	end := time.Now().Add(d)
	found := make([]*tally, clients)
	var running sync.WaitGroup
	for i := range clients {
		found[i] = newTally(workers)
		running.Go(func() { found[i].ask(ctx, address, end) })
	}
	running.Wait()
	all := newTally(workers)
	all.seconds = d.Seconds()
	for _, t := range found {
		all.merge(t)
	}
	return all
}

// ask is one client of a closed loop.
func (t *tally) ask(ctx context.Context, address string, end time.Time) {
	buf := make([]byte, answerSize)
	for start := time.Now(); start.Before(end) && ctx.Err() == nil; {
		slot, err := askOnce(address, buf)
		now := time.Now()
		t.add(slot, now.Sub(start), now.Before(end), err)
		start = now
	}
}

// openLoop starts connection i at i/rate seconds, whatever became of those before,
// until d is over. A latency counts from that moment, so that a stop is charged to
// all who came in it. Those that found no turn by then are not started: less than
// the rate was served.
func openLoop(ctx context.Context, address string, workers, rate int, d time.Duration) *tally {
	s := &schedule{address: address, end: time.Now().Add(d), all: newTally(workers), turns: make(chan struct{}, compareOpen)}
	s.all.seconds = d.Seconds()
	runtime.LockOSThread() // it sleeps in the kernel
	defer runtime.UnlockOSThread()
	start := time.Now()
	var open sync.WaitGroup
	for i := range int(float64(rate) * d.Seconds()) {
		due := start.Add(time.Duration(float64(i) / float64(rate) * float64(time.Second)))
		for wait := time.Until(due); wait > 0; wait = time.Until(due) {
			sleepExactly(min(wait, 50*time.Millisecond)) // a Ctrl-C does not wait for a low rate
			if ctx.Err() != nil {
				break
			}
		}
		if ctx.Err() != nil || i > 0 && time.Now().After(s.end) {
			break
		}
		s.turns <- struct{}{}
		open.Go(func() { s.ask(due) })
	}
	open.Wait()
	return s.all
}

// schedule is an open loop under way.
type schedule struct {
	address string
	end     time.Time
	turns   chan struct{}

	mu  sync.Mutex
	all *tally
}

// ask makes one connection.
func (s *schedule) ask(due time.Time) {
	var buf [answerSize]byte
	slot, err := askOnce(s.address, buf[:])
	now := time.Now()
	<-s.turns
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all.add(slot, now.Sub(due), now.Before(s.end), err)
}
