//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/spf13/pflag"
)

// rrd compare: what the policies do on this machine, measured with nothing but
// this program. compare_master.go starts the masters, compare_client.go is the
// client, compare_measure.go takes the turns and counts, compare_print.go shows it.

// compareWord is the only command of rrd that is a word; it must come first.
const compareWord = "compare"

// compareHelp is rrd compare --help. A test compares it with the flags.
const compareHelp = `rrd compare measures on this machine what none, reuseport and rr do with many
short connections: the built-in worker serves, a client in this process asks.

Usage: rrd compare [flags]

  -w, --workers N    of each policy, 2 to 64             (4)
      --seconds D    to measure in all, 4 to 600         (10)
      --rate N       connections a second where the rate is fixed, 1 to 100000;
                     a tenth of what the machine can is modest   (1000)
  -o, --output O     text or json                        (text)
      --help         (-h)

Each policy has a master and workers of its own, on free ports of 127.0.0.1.
They take turns, so that what else the machine does hits all of them:

  idle, one after the other   a client opens the next when the last has ended
  idle, N/s                   connections start on a schedule, come what may
  saturated, 64 clients       each as the first: as many as they get
  worker 0 slow, N/s          the same while worker 0 is stopped (SIGSTOP)
  worker 0 slow, 64 clients   for 100 ms of every 200 ms

Client, masters and workers share the CPUs: read the lines against each other.
It needs no privileges and leaves nothing behind. Exit codes: 0 done, 1 failed
or interrupted, 2 usage.
`

// What --workers, --seconds and --rate may be. The shortest run has one whole
// pause in each of its slices.
const (
	minCompared       = 2
	maxCompared       = 64
	minCompareSeconds = 4
	maxCompareSeconds = 600
	maxCompareRate    = 100_000
)

// compareConfig is what the command line asks for.
type compareConfig struct {
	help     bool
	json     bool
	workers  int
	rate     int // connections a second
	duration time.Duration
}

func newCompareFlagSet() *pflag.FlagSet {
	fs := pflag.NewFlagSet("rrd compare", pflag.ContinueOnError)
	fs.SetInterspersed(false)
	fs.Usage = func() {}
	fs.StringP("workers", "w", "4", "")
	fs.String("seconds", "10", "")
	fs.String("rate", "1000", "")
	fs.StringP("output", "o", "text", "")
	fs.BoolP("help", "h", false, "")
	return fs
}

// parseCompareFlags reads what follows the word. Its errors are one line, and
// mean exit code 2.
func parseCompareFlags(args []string) (*compareConfig, error) {
	fs := newCompareFlagSet()
	if err := fs.Parse(args); err != nil {
		return nil, flagError(err, fs, "rrd compare --help")
	}
	c := &compareConfig{}
	if c.help, _ = fs.GetBool("help"); c.help {
		return c, nil
	}
	switch {
	case fs.ArgsLenAtDash() >= 0:
		return nil, errors.New("compare measures with the built-in worker: leave -- and what follows it away")
	case fs.NArg() > 0:
		return nil, fmt.Errorf("%q is no flag: see rrd compare --help", fs.Arg(0))
	}
	output := ""
	for _, f := range []struct {
		name  string
		apply func(v string) error
	}{
		{"workers", func(v string) (err error) {
			c.workers, err = parseNumber(v, minCompared, maxCompared, "")
			return err
		}},
		{"seconds", func(v string) (err error) {
			c.duration, err = parseSeconds(v)
			return err
		}},
		{"rate", func(v string) (err error) {
			c.rate, err = parseNumber(v, 1, maxCompareRate, "")
			return err
		}},
		{"output", func(v string) error { return choice(&output, v, []string{"text", "json"}) }},
	} {
		if err := f.apply(fs.Lookup(f.name).Value.String()); err != nil {
			return nil, located(f.name, fromFlag, err)
		}
	}
	c.json = output == "json"
	return c, nil
}

// parseSeconds takes a number, since the flag's name has the unit, or a duration.
func parseSeconds(v string) (time.Duration, error) {
	d, err := time.ParseDuration(v)
	if n, ferr := strconv.ParseFloat(v, 64); ferr == nil && n > 0 && n <= maxCompareSeconds {
		d, err = time.Duration(n*float64(time.Second)), nil
	}
	if err != nil || d < minCompareSeconds*time.Second || d > maxCompareSeconds*time.Second {
		return 0, badValue(v, "is not a number of seconds from %d to %d", minCompareSeconds, maxCompareSeconds)
	}
	return d, nil
}

// runCompare is rrd compare; args follow the word.
func runCompare(args, environ []string, stdout, stderr *os.File) int {
	c, err := parseCompareFlags(args)
	if err != nil {
		return fail(stderr, exitUsage, err)
	}
	if c.help {
		if _, err := io.WriteString(steady(stdout), compareHelp); err != nil {
			return fail(stderr, exitFailure, err)
		}
		return exitOK
	}
	// Whatever ends us ends the masters first; they are in process groups of their
	// own, so that a Ctrl-C is ours alone to act on.
	ends := []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT}
	if !signal.Ignored(syscall.SIGHUP) { // nohup(1) means it
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), ends...)
	defer cancel()
	progress := newProgress(stderr)
	report, err := c.compare(ctx, environ, progress)
	progress.clear()
	if ctx.Err() != nil {
		err = errors.New("compare: interrupted")
	}
	if err != nil {
		return fail(stderr, exitFailure, err)
	}
	if c.json {
		err = report.writeJSON(steady(stdout))
	} else {
		err = report.writeText(steady(stdout), screenOf(stdout, environ))
	}
	if err != nil {
		return fail(stderr, exitFailure, err)
	}
	return exitOK
}

// compare starts a master for each policy, measures, and ends them.
func (c *compareConfig) compare(ctx context.Context, environ []string, progress *progress) (*compareReport, error) {
	progress.say("starting the workers")
	masters, leftOut, err := startCompared(ctx, c.workers, environ)
	defer func() {
		for _, m := range masters {
			m.end()
		}
	}()
	if err != nil {
		return nil, err
	}
	report := newCompareReport(c, leftOut)
	run := &comparison{compareConfig: c, masters: masters, rounds: compareRounds(c.duration), progress: progress}
	report.Rounds = run.rounds
	for _, p := range comparePhases {
		tallies, err := run.phase(ctx, p)
		if err != nil {
			return nil, err
		}
		report.add(p, masters, tallies)
	}
	return report, nil
}

// progress is a line for who waits at a terminal.
type progress struct {
	w        io.Writer
	terminal bool
}

func newProgress(stderr *os.File) *progress { return &progress{stderr, isTerminal(stderr)} }

// eraseLine is ECMA-48's EL behind a carriage return.
const eraseLine = "\r\x1b[K"

func (p *progress) say(what string) {
	if p.terminal {
		fmt.Fprintf(p.w, "%srrd compare: %s", eraseLine, what)
	}
}

func (p *progress) clear() {
	if p.terminal {
		_, _ = io.WriteString(p.w, eraseLine)
	}
}
