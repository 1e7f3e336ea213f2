// Command bench measures what a connection costs the master, against a minimal
// one in C (testdata/refmaster.c) with the same workers and the same clients. It
// needs Linux, Go and gcc.
//
//	go run ./test/bench                            the table of docs/performance.md
//	go run ./test/bench -rounds 5                  a quick look
//	go run ./test/bench -at 4x1,16x1,64x1,256x1    other numbers of workers and windows
//	go run ./test/bench -also /tmp/rrd-before      with another build, to see what a change does
//	go run ./test/bench -node                      a Node program under Node's own primary and under rrd
//
// All masters run all the time. In each round every one has its turn with the
// clients, one after the other, so that what else the machine does meets all of
// them alike. Figures are medians over the rounds, and so are ratios: of two
// figures of the same round. Ratios hold where figures move with the machine;
// many short rounds give better ones than a few long ones.
//
// CPU time is that of the whole process, all threads, in user mode and in the
// kernel, from before the first connection to after the last. The kernel charges
// the work on loopback packets to whoever sends them, so the clients and the
// workers pay for those.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		os.Exit(1)
	}
}

// plan is what the flags ask for.
type plan struct {
	at      []setting
	rounds  int
	load    time.Duration // of one turn
	clients int
	queue   int // waiting connections to measure memory with; 0: not measured
	also    []string
	node    bool // Node's primary is the reference
}

// setting is a number of workers and how many answers each may owe.
type setting struct{ workers, window int }

func (s setting) String() string { return fmt.Sprintf("%dx%d", s.workers, s.window) }

func parse(args []string) (*plan, error) {
	p := &plan{}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.BoolVar(&p.node, "node", false, "compare with Node's own primary; needs node")
	at := fs.String("at", "", "what to measure: `WORKERSxWINDOW`, several with commas, or none for memory only (default 4x1,4x4,256x1; with -node 4x1,4x4,4x16)")
	fs.IntVar(&p.rounds, "rounds", 20, "turns of each master")
	seconds := fs.Float64("seconds", 0.25, "length of a turn")
	fs.IntVar(&p.clients, "clients", 64, "connections open at a time")
	fs.IntVar(&p.queue, "queue", 4096, "waiting connections to measure the memory with; 0: do not")
	also := fs.String("also", "", "other builds of rrd to measure along: `PATHS` with commas")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	p.also = split(*also)
	p.load = time.Duration(*seconds * float64(time.Second))
	switch {
	case fs.NArg() > 0:
		return nil, fmt.Errorf("%q is no flag", fs.Arg(0))
	case p.rounds < 1:
		return nil, fmt.Errorf("-rounds: %d is too few", p.rounds)
	case p.load < time.Millisecond:
		return nil, fmt.Errorf("-seconds: %v is too short", *seconds)
	case p.clients < 1 || p.clients > 4096:
		return nil, fmt.Errorf("-clients: %d is not from 1 to 4096", p.clients)
	case p.queue < 0 || p.queue > 1<<15:
		return nil, fmt.Errorf("-queue: %d is not from 0 to %d", p.queue, 1<<15)
	}
	switch {
	case *at == "" && p.node:
		*at = "4x1,4x4,4x16"
	case *at == "":
		*at = "4x1,4x4,256x1"
	case *at == "none":
		*at = ""
	}
	for _, s := range split(*at) {
		workers, window, ok := strings.Cut(s, "x")
		n, err := strconv.Atoi(workers)
		m, werr := strconv.Atoi(window)
		if !ok || err != nil || werr != nil || n < 1 || n > 1024 || m < 1 || m > 1024 {
			return nil, fmt.Errorf("-at: %q is not like 4x1, each from 1 to 1024", s)
		}
		p.at = append(p.at, setting{n, m})
	}
	return p, nil
}

func split(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' })
}

func run(ctx context.Context, args []string, out io.Writer) error {
	p, err := parse(args)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "rrd-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) //nolint:errcheck // of no use to anybody
	root, err := buildAll(ctx, dir)
	if err != nil {
		return err
	}
	b := &bench{plan: p, dir: dir, masters: slices.Clone(masters), turns: make(map[turnID]result)}
	if p.node {
		b.masters = nodeMasters(filepath.Join(root, "test", "bench", "testdata"), "")
	}
	for _, path := range p.also {
		if p.node {
			b.masters = append(b.masters, nodeMasters(filepath.Join(root, "test", "bench", "testdata"), path)[1:]...)
			continue
		}
		b.masters = append(b.masters, another(path)...)
	}
	if err := b.measure(ctx); err != nil {
		return err
	}
	if p.queue > 0 && !p.node {
		if b.memory, err = b.measureMemory(ctx); err != nil {
			return fmt.Errorf("measure memory: %w", err)
		}
	}
	return b.print(out)
}

// buildAll compiles everything into dir: rrd as make does, the rest with gcc. It
// returns where rrd's sources are.
func buildAll(ctx context.Context, dir string) (root string, err error) {
	root, err = output(ctx, nil, "go", "list", "-m", "-f", "{{.Dir}}", "rrd")
	if err != nil {
		return "", fmt.Errorf("find rrd, which is in its own module only: %w", err)
	}
	root = strings.TrimSpace(root)
	build := []string{"go", "build", "-C", root, "-trimpath", "-buildvcs=false", "-ldflags", "-s -w",
		"-o", filepath.Join(dir, "rrd"), "rrd/cmd/rrd"}
	if _, err := output(ctx, []string{"CGO_ENABLED=0"}, build...); err != nil {
		return "", fmt.Errorf("build rrd: %w", err)
	}
	for _, name := range []string{"minworker", "refmaster", "client"} {
		source := filepath.Join(root, "test", "bench", "testdata", name+".c")
		if _, err := output(ctx, nil, "gcc", "-O2", "-o", filepath.Join(dir, name), source); err != nil {
			return "", fmt.Errorf("build %s: %w", name, err)
		}
	}
	return root, nil
}
