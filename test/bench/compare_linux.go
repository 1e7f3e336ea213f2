package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The comparison: rrd's policies and the proxies before the same worker in Go; rrd
// and the proxies before one in C, which costs so little that the way to it is most
// of all; rrd and Node's own primary before the same program.

var (
	contestantNames = []string{"rr", "none", "reuseport", "haproxy", "nginx", "node"}
	phaseNames      = []string{"peak", "30", "70", "slow", "even", "long"}
)

const (
	inGo   = "net/http"
	inC    = "C"
	inNode = "Node"
)

func (b *bench) compare(ctx context.Context) error {
	b.addGroup(inGo, append(policies(), proxies(goworker)...)...)
	b.addGroup(inC, append([]kind{master("rr", rrdCommand("", minworker), rrdReady)}, proxies(minworker)...)...)
	if slices.Contains(b.only, "node") {
		b.groups = append(b.groups, newGroup(inNode, b.at[0], nodePair(b.testdata, "")...))
	}
	var phases []phase
	for _, p := range b.comparePhases() {
		if slices.Contains(b.phases, p.name) {
			phases = append(phases, p)
		}
	}
	return b.run(ctx, phases...)
}

// addGroup adds those that are wanted.
func (b *bench) addGroup(name string, kinds ...kind) {
	kinds = slices.DeleteFunc(kinds, func(k kind) bool { return !slices.Contains(b.only, strings.ToLower(k.name)) })
	if len(kinds) > 0 {
		b.groups = append(b.groups, newGroup(name, b.at[0], kinds...))
	}
}

func (b *bench) comparePhases() []phase {
	return []phase{
		{name: "peak", rounds: b.rounds, load: func(*group) load { return b.closedLoad() }},
		{name: "30", rounds: b.rounds, load: of(func(g *group) load { return b.tailLoad(0.3 * g.base()) }, inGo)},
		{name: "70", rounds: b.rounds, load: of(func(g *group) load { return b.tailLoad(0.7 * g.base()) }, inGo, inNode)},
		{name: "slow", rounds: (b.rounds + 1) / 2, load: of(func(g *group) load { return b.slowLoad(g.contestants[0].at.workers) }, inGo)},
		{name: "even", rounds: 1, cold: true, load: of(func(*group) load {
			return load{clients: 1, duration: longTurn, count: b.inTurn, path: "/"}
		}, inGo)},
		{name: "long", rounds: (b.rounds + 1) / 2, cold: true, load: of(func(*group) load {
			return load{clients: 1, duration: longTurn, count: 1, path: fmt.Sprint("/bytes?n=", b.bytes)}
		}, inGo)},
	}
}

// tailLoad is an open loop for a p99: that of a short turn is of a few connections.
func (b *bench) tailLoad(rate float64) load {
	l := b.openLoad(rate)
	l.duration *= 2
	return l
}

// longTurn is for turns that end by themselves.
const longTurn = 5 * time.Minute

// of leaves all but these groups out of a load.
func of(l func(*group) load, names ...string) func(*group) load {
	return func(g *group) load {
		if !slices.Contains(names, g.name) {
			return load{}
		}
		return l(g)
	}
}

// base is the peak of the contestant that has the lowest: a rate that all can
// serve, so that their latencies are compared at the same load.
func (g *group) base() float64 {
	var peaks []float64
	for _, c := range g.contestants {
		peaks = append(peaks, spreadOf(c.figures("peak", rate)).median)
	}
	return slices.Min(peaks)
}

// Slow requests: one in 20 is very slow (client.c's RARE), and each worker has
// only so many places for them (goworker).
const (
	slowPlaces = 8
	slowTime   = 10 * time.Millisecond
	verySlow   = 500 * time.Millisecond
)

// slowRate is 70 % of what workers can serve of the slow requests.
func slowRate(workers int) float64 {
	mean := (19*slowTime + verySlow) / 20
	return 0.7 * float64(workers) * slowPlaces / mean.Seconds()
}

func (b *bench) slowLoad(workers int) load {
	l := b.openLoad(slowRate(workers))
	l.path = fmt.Sprint("/slow?ms=", slowTime.Milliseconds())
	l.rare = fmt.Sprint("/slow?ms=", verySlow.Milliseconds())
	l.duration *= 4 // for the places to fill and for some to be very slow
	return l
}

// title is a phase as the table has it.
func (b *bench) title(phase string, g *group) string {
	switch phase {
	case "peak":
		return fmt.Sprintf("closed, %d clients", b.clients)
	case "30":
		return fmt.Sprintf("open, %s/s", thousands(0.3*g.base()))
	case "70":
		return fmt.Sprintf("open, %s/s", thousands(0.7*g.base()))
	case "slow":
		return fmt.Sprintf("slow handlers, %s/s", thousands(slowRate(g.contestants[0].at.workers)))
	case "even":
		return fmt.Sprintf("%s one by one", thousands(float64(b.inTurn)))
	}
	return fmt.Sprintf("one, of %s bytes", thousands(float64(b.bytes)))
}
