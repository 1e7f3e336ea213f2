package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"
)

// memory is what a master with many workers and so many waiting connections takes.
type memory struct {
	queued    int
	rss, peak int // KiB
}

const memoryWorkers = 64

// measureMemory stops all workers and lets connections gather. A scrape of the
// metrics belongs to it: a master that runs is scraped.
func (b *bench) measureMemory(ctx context.Context, queue int) (mem memory, err error) {
	command := rrdCommand("", minworker, "--metrics="+anyPort, "--queue-limit="+strconv.Itoa(max(queue, 1)))
	p, err := start(ctx, command(b.dir, setting{memoryWorkers, 4}), rrdReady)
	if err != nil {
		return memory{}, err
	}
	defer func() {
		signalAll(p.workers, syscall.SIGCONT)
		if serr := p.stop(); err == nil {
			err = serr
		}
	}()
	signalAll(p.workers, syscall.SIGSTOP)
	dialer := net.Dialer{}
	dialer.SetMultipathTCP(false)
	for range queue {
		c, err := dialer.DialContext(ctx, "tcp", p.address)
		if err != nil {
			return memory{}, err
		}
		defer c.Close() //nolint:errcheck // nothing was said
	}
	if mem.queued, err = awaitQueue(ctx, p.metrics, queue); err != nil {
		return memory{}, err
	}
	mem.rss, mem.peak, err = resident(p.cmd.Process.Pid)
	return mem, err
}

// awaitQueue waits until all connections are queued: what was handed off comes
// back when the workers have been late for long enough.
func awaitQueue(ctx context.Context, metrics string, want int) (n int, err error) {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		n, err = queued(ctx, metrics)
		switch {
		case err != nil || n >= want:
			return n, err
		case time.Now().After(deadline) || ctx.Err() != nil:
			return n, fmt.Errorf("%d connections are queued, %d should be", n, want)
		}
	}
}

// signalAll signals workers that their master has told us to be ready.
func signalAll(pids []int, sig syscall.Signal) {
	for _, pid := range pids {
		_ = syscall.Kill(pid, sig)
	}
}

func queued(ctx context.Context, metrics string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metrics+"/status.json", http.NoBody)
	if err != nil {
		return 0, err
	}
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var s struct{ Listeners []struct{ Queued int } }
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return 0, err
	}
	n := 0
	for _, l := range s.Listeners {
		n += l.Queued
	}
	return n, nil
}
