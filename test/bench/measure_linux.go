package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type bench struct {
	*plan
	dir     string
	masters []kind
	turns   map[turnID]result
	memory  memory
	rss     map[turnID]int // of each master after its turns, in KiB; round is 0
}

type turnID struct {
	at    setting
	name  string
	round int
}

// result is what one turn of one master gave.
type result struct {
	answered, failed int
	rate             float64 // connections per second
	cpu              float64 // us of the master per connection
}

// measure starts all masters, lets each have its turns, and stops them.
func (b *bench) measure(ctx context.Context) (err error) {
	running := make(map[turnID]*master) // round is 0
	defer func() {
		for id, m := range running {
			if serr := m.stop(); serr != nil && err == nil {
				err = fmt.Errorf("stop %s at %s: %w", id.name, id.at, serr)
			}
		}
	}()
	for _, s := range b.at {
		for _, k := range b.masters {
			m, err := start(ctx, k, k.command(b.dir, s))
			if err != nil {
				return fmt.Errorf("start %s at %s: %w", k.name, s, err)
			}
			running[turnID{s, k.name, 0}] = m
		}
	}
	for round := -1; round < b.rounds; round++ { // the first warms up, and is replaced
		for _, s := range b.at {
			for i := range b.masters {
				k := b.masters[(i+round+1)%len(b.masters)]
				r, err := b.turn(ctx, running[turnID{s, k.name, 0}])
				if err != nil {
					return fmt.Errorf("%s at %s: %w", k.name, s, err)
				}
				b.turns[turnID{s, k.name, max(round, 0)}] = r
			}
		}
	}
	b.rss = make(map[turnID]int)
	for id, m := range running {
		if b.rss[id], _, err = resident(m.cmd.Process.Pid); err != nil {
			return err
		}
	}
	return nil
}

// turn loads a master.
func (b *bench) turn(ctx context.Context, m *master) (result, error) {
	_, port, err := net.SplitHostPort(m.address)
	if err != nil {
		return result{}, err
	}
	before, err := m.cpu()
	if err != nil {
		return result{}, err
	}
	r, err := b.client(ctx, port, b.load)
	if err != nil {
		return result{}, err
	}
	after, err := m.cpu()
	if err != nil {
		return result{}, err
	}
	if r.answered == 0 {
		return result{}, fmt.Errorf("no connection was answered, %d failed", r.failed)
	}
	r.cpu = float64((after - before).Nanoseconds()) / 1e3 / float64(r.answered)
	return r, nil
}

func (b *bench) client(ctx context.Context, port string, load time.Duration) (r result, err error) {
	out, err := output(ctx, nil, filepath.Join(b.dir, "client"), port, strconv.Itoa(b.clients), strconv.FormatInt(load.Milliseconds(), 10))
	if err != nil {
		return result{}, err
	}
	var us float64
	if _, err := fmt.Sscan(out, &r.answered, &r.failed, &us); err != nil {
		return result{}, fmt.Errorf("client: %w in %q", err, out)
	}
	r.rate = float64(r.answered) / us * 1e6
	return r, nil
}

// memory is what a master with many workers and a full queue takes.
type memory struct {
	queued    int
	rss, peak int // KiB
}

const memoryWorkers = 64

// measureMemory stops all workers and lets connections gather. A scrape of the
// metrics belongs to it: a master that runs is scraped.
func (b *bench) measureMemory(ctx context.Context) (mem memory, err error) {
	k := kind{"rrd", rrdCommand("", "--metrics=127.0.0.1:0", "--queue-limit="+strconv.Itoa(b.queue)), rrdReady}
	m, err := start(ctx, k, k.command(b.dir, setting{memoryWorkers, 4}))
	if err != nil {
		return memory{}, err
	}
	defer func() {
		signalAll(m.workers, syscall.SIGCONT)
		if serr := m.stop(); err == nil {
			err = serr
		}
	}()
	signalAll(m.workers, syscall.SIGSTOP)
	dialer := net.Dialer{}
	dialer.SetMultipathTCP(false)
	for range b.queue {
		c, err := dialer.DialContext(ctx, "tcp", m.address)
		if err != nil {
			return memory{}, err
		}
		defer c.Close() //nolint:errcheck // nothing was said
	}
	// What was sent comes back when the workers have been late for long enough.
	for deadline := time.Now().Add(10 * time.Second); mem.queued < b.queue; {
		if time.Now().After(deadline) || ctx.Err() != nil {
			return memory{}, fmt.Errorf("%d connections are queued, %d should be", mem.queued, b.queue)
		}
		if mem.queued, err = queued(ctx, m.metrics); err != nil {
			return memory{}, err
		}
	}
	mem.rss, mem.peak, err = resident(m.cmd.Process.Pid)
	return mem, err
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

// resident returns what a process has in memory, and had at most, in KiB.
func resident(pid int) (rss, peak int, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		for field, to := range map[string]*int{"VmRSS:": &rss, "VmHWM:": &peak} {
			if value, ok := strings.CutPrefix(line, field); ok {
				if _, err := fmt.Sscan(value, to); err != nil {
					return 0, 0, fmt.Errorf("%q: %w", line, err)
				}
			}
		}
	}
	return rss, peak, nil
}
