package main

import (
	"fmt"
	"strconv"
)

// comparisonPicture is for the README: what the table says, in bars.
func (b *bench) comparisonPicture(about string) picture {
	p := picture{title: fmt.Sprintf("%d workers, short connections, clients on the same machine", b.at[0].workers), about: about}
	for _, g := range b.groups {
		if g.name == inC { // its place is in the table: what is served matters here
			continue
		}
		for _, of := range []struct {
			title, phase string
			of           func(result) float64
		}{
			{"connections/s at the peak (long is good)", "peak", rate},
			{"p99 in ms, all at one rate (short is good)", "70", tail},
			{"CPU per connection in us, all processes", "peak", allCPU},
			{"CPU per connection in us, master or proxy", "peak", cpu},
		} {
			p.add(g.name+": "+of.title, g.bars(of.phase, of.of))
		}
	}
	return p
}

// scalePicture shows how the master's cost grows, and its memory.
func (b *bench) scalePicture(about string) picture {
	p := picture{title: "The master's cost, by workers, by rate and by what waits", about: about}
	var byWorkers, byRate, byQueue []bar
	for _, g := range b.groups[:len(b.groups)-1] {
		for _, c := range g.contestants {
			byWorkers = append(byWorkers, c.bar(strconv.Itoa(c.at.workers)+", "+short(c), "peak", cpu))
		}
	}
	for _, name := range b.sweepPhases() {
		for _, c := range b.sweepGroup().contestants {
			byRate = append(byRate, c.bar(name+", "+short(c), name, cpu))
		}
	}
	for _, m := range b.memory {
		mb := float64(m.rss) / 1024
		byQueue = append(byQueue, bar{thousands(float64(m.queued)), true, spread{mb, mb, mb}})
	}
	p.add("CPU per connection in us, by workers", byWorkers)
	p.add("CPU per connection in us, by rate", byRate)
	p.add(fmt.Sprintf("MB of rrd with %d workers, by connections queued", memoryWorkers), byQueue)
	return p
}

// short is a name that fits behind another word.
func short(c *contestant) string {
	if c.name == "reference" {
		return "in C"
	}
	return "rrd"
}

// add leaves out what was not measured.
func (p *picture) add(title string, bars []bar) {
	if len(bars) > 0 {
		p.panels = append(p.panels, panel{title, bars})
	}
}

func (g *group) bars(phase string, of func(result) float64) (bars []bar) {
	for _, c := range g.contestants {
		if len(c.turns[phase]) > 0 {
			bars = append(bars, c.bar(c.name, phase, of))
		}
	}
	return bars
}

func (c *contestant) bar(name, phase string, of func(result) float64) bar {
	return bar{name, c.name == "rr" || c.name == "rrd" || c.name == "rrd, rescue", spreadOf(c.figures(phase, of))}
}
