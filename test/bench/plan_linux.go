package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// What can be measured, one at a time: the names are the flags', and "" is the
// comparison, which needs none.
const (
	comparison = ""
	masterOnly = "master"
	nodeOnly   = "node"
	scale      = "scale"
)

// plan is what the flags ask for.
type plan struct {
	mode    string
	at      []setting
	rounds  int
	load    time.Duration // of one turn
	clients int
	queue   []int // numbers of waiting connections to measure the memory with
	also    []string
	only    []string // contestants of the comparison
	phases  []string // and what is done with them
	bytes   int      // of the long connection
	inTurn  int      // connections one after the other
	svg     string   // the file for the picture; empty: none
}

// setting is a number of workers and how many answers each may owe.
type setting struct{ workers, window int }

func (s setting) String() string { return fmt.Sprintf("%dx%d", s.workers, s.window) }

// defaults are of what every mode has its own idea of.
var defaults = map[string]struct {
	at, queue string
	rounds    int
	seconds   float64
}{
	comparison: {at: "4x4", rounds: 16, seconds: 0.5},
	masterOnly: {at: "4x1,4x4,256x1", queue: "4096", rounds: 20, seconds: 0.25},
	nodeOnly:   {at: "4x1,4x4,4x16", rounds: 20, seconds: 0.25},
	scale:      {at: "4x1,64x1,256x1,1024x1", queue: "0,1000,10000", rounds: 12, seconds: 0.5},
}

// uses says which modes have a flag that not all have.
var uses = map[string][]string{
	"queue":      {masterOnly, scale},
	"also":       {masterOnly, nodeOnly},
	"only":       {comparison},
	"phases":     {comparison},
	"bytes":      {comparison},
	"sequential": {comparison},
	"svg":        {comparison, scale},
}

// mostQueued is what a process may usually have open, less what else it needs.
const mostQueued = 1 << 15

// words are flags that are looked at when all are known.
type words struct {
	modes                         map[string]*bool
	at, queue, also, only, phases string
	seconds                       float64
}

func (p *plan) flags() (*flag.FlagSet, *words) {
	fs, w := flag.NewFlagSet("bench", flag.ContinueOnError), &words{}
	w.modes = map[string]*bool{
		masterOnly: fs.Bool(masterOnly, false, "only the masters, with workers in C"),
		nodeOnly:   fs.Bool(nodeOnly, false, "only Node's own primary and rrd; needs node"),
		scale:      fs.Bool(scale, false, "many workers, many waiting, and rates from 100/s"),
	}
	fs.StringVar(&w.at, "at", "", "`WORKERSxWINDOW`, several with commas where the mode compares them, or none")
	fs.IntVar(&p.rounds, "rounds", 0, "turns of each contestant (16; with -scale 12, with -master and -node 20)")
	fs.Float64Var(&w.seconds, "seconds", 0, "length of a turn (0.5; with -master and -node 0.25)")
	fs.IntVar(&p.clients, "clients", 64, "connections open at a time in a closed loop")
	fs.StringVar(&w.queue, "queue", "", "`NUMBERS` of waiting connections to measure the memory with, or none (with -master 4096, with -scale 0,1000,10000)")
	fs.StringVar(&w.also, "also", "", "other builds of rrd to measure along: `PATHS` with commas")
	fs.StringVar(&w.only, "only", "", "`CONTESTANTS` with commas (all of "+strings.Join(contestantNames, ",")+")")
	fs.StringVar(&w.phases, "phases", "", "`PHASES` with commas (all of "+strings.Join(phaseNames, ",")+")")
	fs.IntVar(&p.bytes, "bytes", 1<<30, "sent through the long connection")
	fs.IntVar(&p.inTurn, "sequential", 10_000, "connections one after the other")
	fs.StringVar(&p.svg, "svg", "", "draw the picture into this `FILE`")
	return fs, w
}

func parse(args []string) (*plan, error) {
	p := &plan{}
	fs, w := p.flags()
	fs.SetOutput(io.Discard) // an error is said once, by the caller
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fs.SetOutput(os.Stderr)
			fs.PrintDefaults()
		}
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("%q is no flag", fs.Arg(0))
	}
	given := make(map[string]bool)
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if err := p.choose(w.modes, given); err != nil {
		return nil, err
	}
	d := defaults[p.mode]
	if !given["rounds"] {
		p.rounds = d.rounds
	}
	if !given["seconds"] {
		w.seconds = d.seconds
	}
	p.load = time.Duration(w.seconds * float64(time.Second))
	if err := p.check(); err != nil {
		return nil, err
	}
	w.at, w.queue = or(w.at, d.at), or(w.queue, d.queue)
	return p, p.lists(w)
}

// choose finds the mode, and whether it has a use for the flags that are given.
func (p *plan) choose(modes map[string]*bool, given map[string]bool) error {
	for _, name := range []string{masterOnly, nodeOnly, scale} {
		if *modes[name] && p.mode != comparison {
			return fmt.Errorf("-%s and -%s: one at a time", p.mode, name)
		}
		if *modes[name] {
			p.mode = name
		}
	}
	for name, in := range uses {
		if given[name] && !slices.Contains(in, p.mode) {
			return fmt.Errorf("-%s: of no use %s", name, with(p.mode))
		}
	}
	return nil
}

func with(mode string) string {
	if mode == comparison {
		return "in the comparison"
	}
	return "with -" + mode
}

// or is a list, or its default, or nothing where it says none.
func or(list, def string) string {
	switch list {
	case "":
		return def
	case "none":
		return ""
	}
	return list
}

// check refuses numbers that cannot be meant.
func (p *plan) check() error {
	switch {
	case p.rounds < 1:
		return fmt.Errorf("-rounds: %d is too few", p.rounds)
	case p.load < time.Millisecond:
		return fmt.Errorf("-seconds: %v is too short", p.load.Seconds())
	case p.clients < 1 || p.clients > 4096:
		return fmt.Errorf("-clients: %d is not from 1 to 4096", p.clients)
	case p.bytes < 1 || p.bytes > 1<<30:
		return fmt.Errorf("-bytes: %d is not from 1 to %d", p.bytes, 1<<30)
	case p.inTurn < 1:
		return fmt.Errorf("-sequential: %d is too few", p.inTurn)
	}
	return nil
}

func (p *plan) lists(w *words) (err error) {
	p.also = split(w.also)
	for _, s := range split(w.at) {
		workers, window, ok := strings.Cut(s, "x")
		n, nerr := strconv.Atoi(workers)
		m, merr := strconv.Atoi(window)
		if !ok || nerr != nil || merr != nil || n < 1 || n > 1024 || m < 1 || m > 1024 {
			return fmt.Errorf("-at: %q is not like 4x1, each from 1 to 1024", s)
		}
		p.at = append(p.at, setting{n, m})
	}
	if p.mode == comparison && len(p.at) != 1 {
		return fmt.Errorf("-at: the comparison has one setting, not %d", len(p.at))
	}
	for _, s := range split(w.queue) {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 || n > mostQueued {
			return fmt.Errorf("-queue: %q is not from 0 to %d", s, mostQueued)
		}
		p.queue = append(p.queue, n)
	}
	if p.only, err = pick("-only", w.only, contestantNames); err != nil {
		return err
	}
	if p.phases, err = pick("-phases", w.phases, phaseNames); err != nil {
		return err
	}
	if !slices.Contains(p.phases, "peak") && (slices.Contains(p.phases, "30") || slices.Contains(p.phases, "70")) {
		return fmt.Errorf("-phases: 30 and 70 are percent of what peak finds: add it")
	}
	return nil
}

// pick returns what a list has of the names that there are, in their order; all if it is empty.
func pick(flag, list string, names []string) (picked []string, err error) {
	if list == "" {
		return names, nil
	}
	for _, w := range split(list) {
		if !slices.Contains(names, w) {
			return nil, fmt.Errorf("%s: %q is none of %s", flag, w, strings.Join(names, ", "))
		}
	}
	for _, w := range names {
		if slices.Contains(split(list), w) {
			picked = append(picked, w)
		}
	}
	return picked, nil
}

func split(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}
