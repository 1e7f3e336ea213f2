package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// kind is one master, or one proxy, as it is started.
type kind struct {
	name  string
	start func(ctx context.Context, dir string, s setting) (*site, error)
}

// site is what serves an address: a master with its workers, or a proxy before them.
type site struct {
	address        string
	processes      []*process // started here, in the order in which they are stopped
	front, workers []int      // pids: of the master or proxy, and of those that answer
}

// stop stops all; the first error is returned.
func (s *site) stop() (err error) {
	for _, p := range s.processes {
		err = cmp.Or(err, p.stop())
	}
	return err
}

// rss is what the master or proxy has in memory, in KiB.
func (s *site) rss() (sum int, err error) {
	for _, pid := range s.front {
		rss, _, err := resident(pid)
		if err != nil {
			return 0, err
		}
		sum += rss
	}
	return sum, nil
}

// contestant is a kind at a setting: it runs while all others do, and has its turns.
type contestant struct {
	kind
	at    setting
	site  *site
	turns map[string][]result // by phase, a result for each round
	rss   int                 // KiB, after all turns
}

// group is of contestants that are compared with each other. The first is what
// the others are measured by.
type group struct {
	name        string
	contestants []*contestant
}

func newGroup(name string, at setting, kinds ...kind) *group {
	g := &group{name: name}
	for _, k := range kinds {
		g.contestants = append(g.contestants, &contestant{kind: k, at: at, turns: make(map[string][]result)})
	}
	return g
}

// master is a kind whose workers are its children, and that says when they are ready.
func master(name string, command func(dir string, s setting) []string, ready listenFor) kind {
	return kind{name, func(ctx context.Context, dir string, s setting) (*site, error) {
		p, err := start(ctx, command(dir, s), ready)
		if err != nil {
			return nil, err
		}
		pid := p.cmd.Process.Pid
		workers, err := descendants(pid)
		if err == nil && len(workers) != s.workers {
			err = fmt.Errorf("it has %d children, %d workers were asked for", len(workers), s.workers)
		}
		if err != nil {
			return nil, errors.Join(err, p.stop())
		}
		return &site{address: p.address, processes: []*process{p}, front: []int{pid}, workers: workers}, nil
	}}
}

// minimal are the masters of the workers in C: the least that one can do, and rrd.
func minimal() []kind {
	return []kind{reference(), master("rrd", rrdCommand("", minworker, "--rescue-limit=0"), rrdReady), rescuing()}
}

func reference() kind { return master("reference", refCommand, refReady) }
func rescuing() kind  { return master("rrd, rescue", rrdCommand("", minworker), rrdReady) }

func refCommand(dir string, s setting) []string {
	return []string{filepath.Join(dir, "refmaster"), strconv.Itoa(s.workers), strconv.Itoa(s.window), filepath.Join(dir, minworker)}
}

// refReady is for what prints "ready ADDRESS".
func refReady(line string, p *process) {
	if address, ok := strings.CutPrefix(line, "ready "); ok {
		p.address, p.all = address, true
	}
}

// another is another build of rrd in the same configurations.
func another(path string) []kind {
	return []kind{
		master(path, rrdCommand(path, minworker, "--rescue-limit=0"), rrdReady),
		master(path+", rescue", rrdCommand(path, minworker), rrdReady),
	}
}

// nodePair runs the same Node program: Node's own primary, and rrd, or a build of
// it that is named.
func nodePair(testdata, rrd string) []kind {
	program := filepath.Join(testdata, "server.js")
	primary := func(_ string, s setting) []string {
		return []string{"node", filepath.Join(testdata, "primary.js"), strconv.Itoa(s.workers), program}
	}
	under := func(dir string, s setting) []string {
		return append(append(rrdBase(dir, rrd, s), "--policy=rr"), "--", "node", program)
	}
	return []kind{master("Node", primary, refReady), master(cmp.Or(rrd, "rrd"), under, rrdReady)}
}

// policies are rrd's, with the worker in Go.
func policies() (kinds []kind) {
	for _, policy := range []string{"rr", "none", "reuseport"} {
		kinds = append(kinds, master(policy, func(dir string, s setting) []string {
			return append(rrdBase(dir, "", s), "--policy="+policy, "--listen="+anyPort, "--", filepath.Join(dir, goworker), anyPort)
		}, rrdReady))
	}
	return kinds
}

const (
	anyPort   = "127.0.0.1:0"
	goworker  = "goworker"
	minworker = "minworker"
)

// rrdBase is how each rrd is started here, the one that was built or the one that is named.
func rrdBase(dir, rrd string, s setting) []string {
	return []string{cmp.Or(rrd, filepath.Join(dir, "rrd")), "--metrics=off", "--control=off",
		"--log-format=json", "--log-level=info", "--worker-output=raw",
		"--workers=" + strconv.Itoa(s.workers), "--handoff-window=" + strconv.Itoa(s.window)}
}

// rrdCommand is rrd under the policy rr with one of the workers that were built.
func rrdCommand(rrd, program string, more ...string) func(string, setting) []string {
	return func(dir string, s setting) []string {
		c := append(rrdBase(dir, rrd, s), "--policy=rr", "--listen="+anyPort)
		return append(append(c, more...), "--", filepath.Join(dir, program), anyPort)
	}
}

func rrdReady(line string, p *process) {
	var e struct {
		Event, Address string
		PID            int `json:"worker_pid"`
	}
	if json.Unmarshal([]byte(line), &e) != nil {
		return
	}
	switch e.Event {
	case "listener.open":
		p.address = e.Address
	case "metrics.open":
		p.metrics = e.Address
	case "worker.ready":
		p.workers = append(p.workers, e.PID)
	case "ready":
		p.all = true
	}
}
