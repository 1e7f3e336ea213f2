package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// load is what the clients do in a turn: see testdata/client.c.
type load struct {
	clients  int
	duration time.Duration
	rate     float64 // connections to start in a second; 0: the next when one has ended
	count    int     // it ends after so many; 0: only by time
	path     string
	rare     string // what one request in 20 is for; empty: path, too
}

// result is what one turn of one contestant gave.
type result struct {
	elapsed  time.Duration
	answered int
	inTime   int // of those, before the turn's time was over
	bytes    int
	failures map[string]int // by class
	served   map[int]int    // by pid, where the worker tells it
	times    histogram

	failed         int
	rate           float64 // connections per second
	cpu, workerCPU float64 // us of the master or proxy, and of the workers, per connection
	unevenness     float64 // in percent: see uneven
	p50, p99       float64 // ms
}

func (l load) args(port string) []string {
	a := []string{port, strconv.Itoa(l.clients), strconv.FormatInt(l.duration.Milliseconds(), 10),
		strconv.FormatFloat(l.rate, 'f', 1, 64), strconv.Itoa(l.count), l.path}
	if l.rare != "" {
		a = append(a, l.rare)
	}
	return a
}

// turn puts the load on a site.
func (b *bench) turn(ctx context.Context, s *site, l load) (result, error) {
	_, port, err := net.SplitHostPort(s.address)
	if err != nil {
		return result{}, err
	}
	before, err := s.cpu()
	if err != nil {
		return result{}, err
	}
	out, err := output(ctx, nil, append([]string{filepath.Join(b.dir, "client")}, l.args(port)...)...)
	if err != nil {
		return result{}, err
	}
	after, err := s.cpu()
	if err != nil {
		return result{}, err
	}
	r, err := parseResult(out)
	if err != nil {
		return result{}, err
	}
	if r.answered == 0 {
		return result{}, fmt.Errorf("no connection was answered, of those that failed: %v", r.failures)
	}
	r.rate = l.rateOf(r)
	each := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 / float64(r.answered) }
	r.cpu, r.workerCPU = each(after.front-before.front), each(after.workers-before.workers)
	r.unevenness, err = uneven(r.served, s.workers)
	return r, err
}

// rateOf is what a turn has reached. An open loop ends with those that were begun
// last: they are not counted, nor is the wait for them.
func (l load) rateOf(r result) float64 {
	if l.rate > 0 {
		return float64(r.inTime) / l.duration.Seconds()
	}
	return float64(r.answered) / r.elapsed.Seconds()
}

// cpuTimes are what the processes of a site have had so far.
type cpuTimes struct{ front, workers time.Duration }

func (s *site) cpu() (t cpuTimes, err error) {
	if t.front, err = cpuOf(s.front); err == nil {
		t.workers, err = cpuOf(s.workers)
	}
	return t, err
}

// parseResult reads what the clients print.
func parseResult(out string) (result, error) {
	r := result{failures: make(map[string]int), served: make(map[int]int), times: make(histogram)}
	for line := range strings.Lines(out) {
		if err := r.take(strings.Fields(line)); err != nil {
			return result{}, fmt.Errorf("client: %w in %q", err, line)
		}
	}
	if r.elapsed <= 0 {
		return result{}, fmt.Errorf("client: no time in %q", out)
	}
	for _, n := range r.failures {
		r.failed += n
	}
	r.p50, r.p99 = r.times.percentile(0.5), r.times.percentile(0.99)
	return r, nil
}

// take notes a line of the client's.
func (r *result) take(words []string) error {
	var n []int
	for _, w := range words[min(1, len(words)):] {
		v, err := strconv.Atoi(w)
		if err != nil {
			return err
		}
		n = append(n, v)
	}
	switch {
	case len(n) == 1:
		return r.takeFigure(words[0], n[0])
	case len(n) == 2 && words[0] == "served":
		r.served[n[0]] = n[1]
	case len(n) == 2 && words[0] == "bucket":
		r.times[n[0]] = n[1]
	default:
		return fmt.Errorf("no figure")
	}
	return nil
}

func (r *result) takeFigure(name string, n int) error {
	switch name {
	case "us":
		r.elapsed = time.Duration(n) * time.Microsecond
	case "answered":
		r.answered = n
	case "in_time":
		r.inTime = n
	case "bytes":
		r.bytes = n
	case "refused", "reset", "empty", "wrong", "timeout":
		if n > 0 {
			r.failures[name] = n
		}
	default:
		return fmt.Errorf("%q is no figure", name)
	}
	return nil
}

// uneven is the distance of the worker that served most from the one that served
// least, in percent of the mean; 0 if workers do not say who they are.
func uneven(served map[int]int, workers []int) (float64, error) {
	if len(served) == 0 {
		return 0, nil
	}
	least, most, sum, known := served[workers[0]], 0, 0, 0
	for _, pid := range workers {
		n, ok := served[pid]
		if ok {
			known++
		}
		least, most, sum = min(least, n), max(most, n), sum+n
	}
	if known != len(served) {
		return 0, fmt.Errorf("others than the workers %v have answered: %v", workers, served)
	}
	return float64(most-least) / float64(sum) * float64(len(workers)) * 100, nil
}
