// Command bench compares rrd with what else there is, on one machine, and with
// the least that could be. It needs Linux, Go and gcc, and the peers: haproxy,
// nginx with its stream module, and node.
//
//	go run ./test/bench                            rrd's policies, HAProxy, nginx and Node's primary, on short and long
//	                                               connections, fast and slow answers
//	go run ./test/bench -rounds 2 -only rr,nginx   a quick look; -phases picks what is done
//	go run ./test/bench -scale                     many workers, many waiting, and rates from 100/s
//	go run ./test/bench -master                    the master's CPU alone, against a minimal one in C (testdata/refmaster.c)
//	go run ./test/bench -master -at 4x1,16x1       other numbers of workers and windows
//	go run ./test/bench -master -also /tmp/before  with another build of rrd, to see what a change does
//	go run ./test/bench -node                      a Node program under Node's own primary and under rrd
//
// All contestants run all the time. In each round every one has its turn with the
// clients, one after the other, so that what else the machine does meets all of
// them alike. Figures are medians over the rounds, and so are ratios: of two
// figures of the same round. Ratios hold where figures move with the machine;
// many short rounds give better ones than a few long ones.
//
// CPU time is that of whole processes, all threads, in user mode and in the
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
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out, progress io.Writer) error {
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
	b := &bench{plan: p, dir: dir, testdata: testdataIn(root), progress: progress}
	from := about(ctx, root)
	err = b.measure(ctx, out, from)
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}

// measure does what is asked for and shows it: the table first, which is not to be
// lost if the picture cannot be written.
func (b *bench) measure(ctx context.Context, out io.Writer, from string) error {
	switch b.mode {
	case comparison:
		if err := b.compare(ctx); err != nil {
			return err
		}
		return errors.Join(b.printComparison(out, from+"; "+versions(ctx)), b.draw(b.comparisonPicture(from)))
	case scale:
		if err := b.scale(ctx); err != nil {
			return err
		}
		return errors.Join(b.printScale(out, from), b.draw(b.scalePicture(from)))
	}
	if err := b.masters(ctx); err != nil {
		return err
	}
	return b.printMasters(out, from)
}

// masters measures the masters alone.
func (b *bench) masters(ctx context.Context) error {
	for _, s := range b.at {
		kinds := minimal()
		if b.mode == nodeOnly {
			kinds = nodePair(b.testdata, "")
		}
		for _, path := range b.also {
			if b.mode == nodeOnly {
				kinds = append(kinds, nodePair(b.testdata, path)[1])
				continue
			}
			kinds = append(kinds, another(path)...)
		}
		b.groups = append(b.groups, newGroup("", s, kinds...))
	}
	if err := b.run(ctx, b.peak()); err != nil {
		return err
	}
	return b.measureQueues(ctx)
}

// draw writes a picture, if one is wanted.
func (b *bench) draw(p picture) error {
	if b.svg == "" {
		return nil
	}
	return os.WriteFile(b.svg, []byte(p.svg()), 0o644)
}
