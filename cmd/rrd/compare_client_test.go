//go:build unix

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestPercentileIsTheNearestRank(t *testing.T) {
	sorted := make([]time.Duration, 1000)
	for i := range sorted {
		sorted[i] = time.Duration(i + 1)
	}
	for _, x := range []struct {
		n    int
		q    float64
		want time.Duration
	}{
		{0, 0.5, 0}, {1, 0, 1}, {1, 0.5, 1}, {1, 0.999, 1}, {2, 0.5, 1}, {2, 0.51, 2}, {3, 0.5, 2},
		{100, 0.5, 50}, {100, 0.99, 99}, {100, 0.999, 100}, {1000, 0.99, 990}, {1000, 0.999, 999}, {1000, 1, 1000},
	} {
		if got := percentile(sorted[:x.n], x.q); got != x.want {
			t.Errorf("%v of %d: %d, want %d", x.q, x.n, got, x.want)
		}
	}
}

func TestSpread(t *testing.T) {
	for _, x := range []struct {
		by   []int
		want int
	}{{nil, 0}, {[]int{3}, 0}, {[]int{3, 3, 2}, 1}, {[]int{0, 9, 4}, 9}} {
		if got := spread(x.by); got != x.want {
			t.Errorf("%v: %d, want %d", x.by, got, x.want)
		}
	}
}

func TestTally(t *testing.T) {
	a, b := newTally(2), newTally(2)
	a.seconds, b.seconds = 1, 2
	a.add(0, 5, true, nil)
	a.add(1, 7, false, nil)
	b.add(1, 6, true, nil)
	b.add(0, 1, true, io.ErrUnexpectedEOF)
	b.add(2, 1, true, nil)
	b.add(-1, 1, true, nil)
	a.merge(b)
	if !slices.Equal(a.byWorker, []int{1, 2}) || !slices.Equal(a.latencies, []time.Duration{5, 7, 6}) || a.inTime != 2 || a.seconds != 3 {
		t.Errorf("%+v", a)
	}
	if a.failed != 3 || a.failure != io.ErrUnexpectedEOF {
		t.Errorf("failed %d: %v", a.failed, a.failure)
	}
}

const properAnswer = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nRrd-Worker: 3\r\n\r\n{\"worker\":3}\n"

func TestAnsweredBy(t *testing.T) {
	if slot, err := answeredBy([]byte(properAnswer)); slot != 3 || err != nil {
		t.Errorf("%d %v", slot, err)
	}
	for answer, want := range map[string]string{
		"":                               "closed without an answer",
		"HTTP/1.1 200 OK\r\n":            "half an answer, of 17 bytes",
		properAnswer[:70]:                "half an answer, of 70 bytes",
		"SSH-2.0-x\r\n\r\n}\n":           `no proper answer: "SSH-2.0-x"`,
		"HTTP/1.1 200 OK\r\n\r\n}\n":     `no worker's number in "HTTP/1.1 200 OK"`,
		"HTTP/1.1 500 Oh no\r\n\r\n{}\n": `no proper answer: "HTTP/1.1 500 Oh no"`,
	} {
		if _, err := answeredBy([]byte(answer)); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", answer, err, want)
		}
	}
}

// takingTurns is a server whose connections are answered by 0, 1, 0, 1; before
// is called first for each.
func takingTurns(t *testing.T, before func(n int64)) string {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	var count atomic.Int64
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			n := count.Add(1) - 1
			serving.Go(func() {
				defer c.Close()
				before(n)
				buf := make([]byte, len(compareRequest))
				if _, err := io.ReadFull(c, buf); err == nil && string(buf) == compareRequest {
					_, _ = io.WriteString(c, strings.Replace(properAnswer, "Rrd-Worker: 3", fmt.Sprintf("Rrd-Worker: %d", n%2), 1))
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		serving.Wait()
	})
	return ln.Addr().String()
}

func TestCompareClosedLoop(t *testing.T) {
	address := takingTurns(t, func(int64) {})
	one := closedLoop(t.Context(), address, 2, 1, 50*time.Millisecond)
	if one.failed > 0 || len(one.latencies) == 0 || spread(one.byWorker) > 1 || one.seconds != 0.05 || one.inTime > len(one.latencies) {
		t.Errorf("%+v", one)
	}
	many := closedLoop(t.Context(), address, 2, 8, 50*time.Millisecond)
	if many.failed > 0 || len(many.latencies) == 0 || many.seconds != 0.05 {
		t.Errorf("%d answered, %d failed: %v", len(many.latencies), many.failed, many.failure)
	}
}

// All who come while the server stands still are charged for it.
func TestCompareOpenLoopChargesTheStall(t *testing.T) {
	const stall = 200 * time.Millisecond
	released := make(chan struct{})
	time.AfterFunc(stall, func() { close(released) })
	got := openLoop(t.Context(), takingTurns(t, func(int64) { <-released }), 2, 200, 100*time.Millisecond)
	if got.failed > 0 || len(got.latencies) == 0 || len(got.latencies) > 20 || got.inTime != 0 {
		t.Fatalf("%+v", got)
	}
	if slices.Min(got.latencies) < 95*time.Millisecond || slices.Max(got.latencies) < 190*time.Millisecond {
		t.Errorf("charged %v to %v", slices.Min(got.latencies), slices.Max(got.latencies))
	}
}

func TestCompareClientSeesFailures(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	got := openLoop(t.Context(), ln.Addr().String(), 2, 100, 50*time.Millisecond)
	if got.failed == 0 || len(got.latencies) != 0 || got.failure == nil {
		t.Errorf("%+v", got)
	}
}

func TestCompareLoopsEndEarly(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	address := takingTurns(t, func(int64) {})
	for name, got := range map[string]*tally{
		"closed": closedLoop(ctx, address, 2, 4, time.Hour),
		"open":   openLoop(ctx, address, 2, 1000, time.Hour),
	} {
		if len(got.latencies)+got.failed != 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// Whatever happens the process goes on at the end.
func TestPauseAgainAndAgain(t *testing.T) {
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*pauseEvery/2) // in the middle of a pause
	defer cancel()
	done := make(chan error, 1)
	pauseAgainAndAgain(ctx, cmd.Process.Pid, done)
	if err := <-done; err != nil {
		t.Error(err)
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil { // a stopped one would never end
		t.Error(err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	pauseAgainAndAgain(ctx, cmd.Process.Pid, done)
	if err := <-done; err == nil || !strings.Contains(err.Error(), "stop worker 0: kill: "+syscall.ESRCH.Error()) {
		t.Errorf("a process that has ended: %v", err)
	}
}

// Slices with a slow worker are whole pauses, and all fit the time that was asked
// for, as far as that allows.
func TestCompareSlices(t *testing.T) {
	for seconds := minCompareSeconds; seconds <= maxCompareSeconds; seconds++ {
		total := time.Duration(seconds) * time.Second
		rounds := compareRounds(total)
		sum := time.Duration(0)
		for _, p := range comparePhases {
			d := p.slice(total, 3, rounds)
			if d <= 0 || p.slow && d%pauseEvery != 0 {
				t.Errorf("%ds: %s %v", seconds, p.name, d)
			}
			sum += d * time.Duration(3*rounds)
		}
		if off := float64(sum)/float64(total) - 1; off > 0.25 || off < -0.25 {
			t.Errorf("%ds take %v", seconds, sum)
		}
	}
}
