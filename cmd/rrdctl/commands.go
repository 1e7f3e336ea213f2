//go:build unix

package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"rrd/cmd/internal/control"
)

// commands is the command line.
func (a *app) commands() *cobra.Command {
	root := &cobra.Command{
		Use:   "rrdctl",
		Short: "Ask a running rrd what it does, and have it do something",
		Long: "rrdctl talks to a running rrd over its control socket. Without --control it takes the only one\n" +
			"in $RUNTIME_DIRECTORY, /run/rrd or $XDG_RUNTIME_DIR/rrd. Each command waits for what it has\n" +
			"asked for. Exit codes: 0 done, 1 not done, 2 usage, 3 no rrd is there.",
		Version:           buildVersion(),
		SilenceUsage:      true,
		SilenceErrors:     true,
		PersistentPreRunE: a.check,
		Args:              cobra.NoArgs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().StringVar(&a.path, "control", a.getenv("RRDCTL_CONTROL"), "path of the control socket (also RRDCTL_CONTROL)")
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "text", "text or json")
	root.AddCommand(
		a.verb("status", "the whole state: listeners, workers, queue, law", 0, func([]string) error { return a.status() }),
		a.topCommand(),
		a.workersCommand(),
		a.reloadCommand(),
		a.verb("upgrade", "replace rrd's own program in place", 0, func([]string) error { return a.upgrade() }),
		a.drainCommand(),
		a.plainVerb("undrain", "come back into rotation", control.CmdUndrain, nil, "in rotation again"),
		a.stopCommand(),
		a.configCommand(),
		a.verb("log-level [debug|info|warn|error]", "show or change the level of the log", -1, a.logLevel),
		a.eventsCommand(),
		a.debugCommand(),
	)
	return root
}

func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "devel"
}

// check runs when the words of the command line were understood.
func (a *app) check(*cobra.Command, []string) error {
	if a.output != "text" && a.output != "json" {
		wrong := a.output
		a.output = "text"
		return fmt.Errorf("--output: %q is not one of text, json", wrong)
	}
	a.ran = true
	return nil
}

// verb is a command with so many arguments; -1: none or one.
func (a *app) verb(use, short string, args int, run func(args []string) error) *cobra.Command {
	need := cobra.ExactArgs(args)
	if args < 0 {
		need = cobra.MaximumNArgs(1)
	}
	return &cobra.Command{
		Use: use, Short: short, Args: need, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(_ *cobra.Command, args []string) error { return run(args) },
	}
}

// plainVerb has nothing to say but that it is done.
func (a *app) plainVerb(use, short, cmd string, args any, done string) *cobra.Command {
	return a.verb(use, short, 0, func([]string) error { return a.plain(cmd, args, done) })
}

func (a *app) plain(cmd string, args any, done string) error {
	if err := a.ask(cmd, args, nil, a.slotEvent); err != nil {
		return err
	}
	a.say("%s", done)
	return nil
}

func (a *app) status() error {
	var s control.Status
	if err := a.ask(control.CmdStatus, nil, &s, nil); err != nil || a.json() {
		return err
	}
	a.lines(a.statusLines(&s))
	return nil
}

func (a *app) workersCommand() *cobra.Command {
	c := a.verb("workers", "list the workers, or change them", 0, func([]string) error { return a.workers() })
	c.AddCommand(
		a.verb("list", "list the workers", 0, func([]string) error { return a.workers() }),
		a.verb("set N", "run N workers; waits until they are ready", 1, func(args []string) error {
			n, err := strconv.Atoi(args[0])
			if err != nil {
				return fmt.Errorf("%q is no number of workers: %w", args[0], errUsage)
			}
			return a.resize(control.CmdWorkersSet, control.SetArgs{Workers: n})
		}),
		a.verb("inc", "one worker more", 0, func([]string) error { return a.resize(control.CmdWorkersInc, nil) }),
		a.verb("dec", "one worker less: that of the highest slot drains", 0, func([]string) error { return a.resize(control.CmdWorkersDec, nil) }),
		a.slotVerb("restart SLOT", "replace a worker by another, successor first", control.CmdWorkersRestart, "slot %d: restarted"),
		a.slotVerb("drain SLOT", "have a worker finish, and leave its slot empty", control.CmdWorkersDrain, "slot %d: drained"),
		a.slotVerb("undrain SLOT", "fill a slot again that was drained", control.CmdWorkersUndrain, "slot %d: serves again"),
		a.slotVerb("kill SLOT", "kill a worker at once, with what it serves", control.CmdWorkersKill, "slot %d: killed"),
		a.verb("signal SIGNAL SLOT|all", "send a signal to a worker", 2, a.signal),
		a.verb("dump SLOT|all", "stacks of a worker that uses rrd's Go library", 1, func(args []string) error {
			slot, all, err := oneOrAll(args[0])
			if err != nil {
				return err
			}
			return a.ask(control.CmdWorkersDump, control.SlotsArgs{Slot: slot, All: all}, nil, a.text)
		}),
	)
	return c
}

func (a *app) workers() error {
	var w control.Workers
	if err := a.ask(control.CmdWorkersList, nil, &w, nil); err != nil || a.json() {
		return err
	}
	a.lines(a.workerLines(w.Workers, w.Policy))
	return nil
}

func (a *app) resize(cmd string, args any) error {
	var r control.Resized
	if err := a.ask(cmd, args, &r, a.slotEvent); err != nil {
		return err
	}
	a.say("%d workers, %d before", r.To, r.From)
	return nil
}

func (a *app) slotVerb(use, short, cmd, done string) *cobra.Command {
	return a.verb(use, short, 1, func(args []string) error {
		slot, err := slotOf(args[0])
		if err != nil {
			return err
		}
		return a.plain(cmd, control.SlotArgs{Slot: &slot}, fmt.Sprintf(done, slot))
	})
}

func slotOf(word string) (int, error) {
	n, err := strconv.Atoi(word)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is no slot: %w", word, errUsage)
	}
	return n, nil
}

func oneOrAll(word string) (slot *int, all bool, err error) {
	if word == "all" {
		return nil, true, nil
	}
	n, err := slotOf(word)
	return &n, false, err
}

func (a *app) signal(args []string) error {
	slot, all, err := oneOrAll(args[1])
	if err != nil {
		return err
	}
	var s control.Signalled
	if err := a.ask(control.CmdWorkersSignal, control.SignalArgs{Signal: args[0], Slot: slot, All: all}, &s, nil); err != nil {
		return err
	}
	for _, w := range s.Workers {
		a.say("slot %d: %s sent (pid %d)", w.Slot, plain(s.Signal), w.PID)
	}
	return nil
}

func (a *app) reloadCommand() *cobra.Command {
	return a.plainVerb("reload", "read the configuration again and roll the workers; waits until that is done", control.CmdReload, control.ReloadArgs{Wait: true}, "reloaded")
}

func (a *app) drainCommand() *cobra.Command {
	closes := false
	c := a.verb("drain", "leave rotation: not ready any more, and still serving, until undrain", 0, func([]string) error { return a.drain(closes) })
	c.Flags().BoolVar(&closes, "close", false, "close the listeners, for good, and wait for the open connections")
	return c
}

func (a *app) drain(closes bool) error {
	if closes && !a.mayClose() {
		return errors.New("nothing was changed: the answer was not yes")
	}
	var d control.Drained
	if err := a.ask(control.CmdDrain, control.DrainArgs{Close: closes}, &d, a.slotEvent); err != nil {
		return err
	}
	if !closes {
		a.say("out of rotation: not ready, and new connections are still served, until undrain or stop")
		return nil
	}
	if d.Open > 0 {
		a.say("drained for %s, and %d connections are still open: rrd waits for stop", age(d.Seconds), d.Open)
		return errSilent
	}
	a.say("drained in %s: nothing is open, rrd waits for stop", age(d.Seconds))
	return nil
}

// mayClose asks the person at the terminal whether to close the listeners. Elsewhere no
// person can answer: a line says it, and that is all.
func (a *app) mayClose() bool {
	const warning = "drain --close closes the listeners: only a restart opens them again"
	if !a.asks {
		fmt.Fprintf(a.err, "rrdctl: %s\n", warning)
		return true
	}
	fmt.Fprintf(a.err, "rrdctl: %s. Close them? y or n: ", warning)
	lineC := make(chan string, 1)
	go readAnswer(a.in, lineC) // ends with the line, or with the process
	select {
	case line := <-lineC:
		line = strings.ToLower(strings.TrimSpace(line))
		return line == "y" || line == "yes"
	case <-a.ctx.Done(): // Ctrl-C
		fmt.Fprintln(a.err)
		return false
	}
}

// readAnswer reads a line. The end of the input without a line is an empty answer.
func readAnswer(in io.Reader, lineC chan<- string) {
	line, _ := bufio.NewReader(in).ReadString('\n')
	lineC <- line
}

// upgrade is answered by the new program, on the same connection.
func (a *app) upgrade() error {
	var u control.Upgraded
	if err := a.ask(control.CmdUpgrade, nil, &u, nil); err != nil {
		return err
	}
	a.say("upgraded: version %s, process %d", plain(u.Version), u.PID)
	return nil
}

func (a *app) stopCommand() *cobra.Command {
	now := false
	c := a.verb("stop", "stop rrd as TERM does; waits for the end", 0, func([]string) error { return a.stop(now) })
	c.Flags().BoolVar(&now, "now", false, "kill the workers at once, with what they serve")
	return c
}

func (a *app) stop(now bool) error {
	c, err := a.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := a.callOn(c, control.CmdStop, control.StopArgs{Now: now}, a.slotEvent)
	if err != nil {
		return err
	}
	c.WaitClosed(a.ctx)
	var s control.Stopped
	if err := a.decode(raw, &s); err != nil {
		return err
	}
	a.say("stopped after %s with exit code %d, %d connections cut", age(s.Seconds), s.ExitCode, s.Cut)
	if s.ExitCode != 0 {
		return errSilent
	}
	return nil
}

func (a *app) configCommand() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "show the configuration, or check a file", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	origin := false
	show := a.verb("show", "the configuration in force, as a file that rrd would take", 0, func([]string) error { return a.configShow(origin) })
	show.Flags().BoolVar(&origin, "origin", false, "and where each value came from")
	check := a.verb("check FILE", "would a reload take this file in place of that of --config?", 1, func(args []string) error { return a.configCheck(args[0]) })
	check.ValidArgsFunction = nil // files
	c.AddCommand(show, check)
	return c
}

func (a *app) configShow(origin bool) error {
	var c control.Config
	if err := a.ask(control.CmdConfigShow, nil, &c, nil); err != nil || a.json() {
		return err
	}
	a.lines(configLines(&c, origin))
	return nil
}

func (a *app) configCheck(file string) error {
	path, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	var c control.Config
	if err := a.ask(control.CmdConfigCheck, control.CheckArgs{Path: path}, &c, nil); err != nil {
		return err
	}
	for _, w := range c.Warnings {
		a.say("warning: %s", plain(w))
	}
	a.say("%s is good", plain(file))
	return nil
}

// configLines writes the configuration as TOML. What has no place in a file is a
// comment.
func configLines(c *control.Config, origin bool) (lines []string) {
	if len(c.Command) == 0 {
		lines = append(lines, "# no command: the built-in worker")
	} else {
		lines = append(lines, "command = "+list(c.Command))
	}
	for _, s := range c.Settings {
		line := s.Name + " = "
		switch {
		case s.Name == "env" || s.Name == "config":
			line = "# " + s.Name + ": " + strings.Join(quoted(s.Values), " ")
		case s.Name == "listen" || s.Name == "control-uid" || len(s.Values) > 1:
			line += list(s.Values)
		default:
			line += strings.Join(quoted(s.Values), " ")
		}
		if origin {
			line += " # " + plain(s.Origin)
			if s.Meaning != "" {
				line += "; " + plain(s.Meaning)
			}
		}
		lines = append(lines, line)
	}
	return lines
}

func list(values []string) string { return "[" + strings.Join(quoted(values), ", ") + "]" }

func quoted(values []string) (out []string) {
	for _, v := range values {
		out = append(out, strconv.Quote(v))
	}
	return out
}

func (a *app) logLevel(args []string) error {
	var l control.Level
	level := control.LevelArgs{}
	if len(args) > 0 {
		level.Level = args[0]
	}
	if err := a.ask(control.CmdLogLevel, level, &l, nil); err != nil {
		return err
	}
	if len(args) == 0 {
		a.say("%s", plain(l.To))
	} else {
		a.say("log level %s, %s before", plain(l.To), plain(l.From))
	}
	return nil
}

func (a *app) eventsCommand() *cobra.Command {
	follow, recent := false, 10
	c := a.verb("events", "the last events of rrd's log, or all that come", 0, func([]string) error { return a.events(follow, recent) })
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with those that come, until rrd ends")
	c.Flags().IntVarP(&recent, "recent", "n", recent, "with --follow: how many of the last come first")
	return c
}

func (a *app) events(follow bool, recent int) error {
	if follow {
		_, err := a.call(control.CmdEventsFollow, control.FollowArgs{Recent: recent}, a.event)
		if a.ctx.Err() != nil {
			return nil // that is how one ends it
		}
		return err
	}
	raw, err := a.call(control.CmdEventsRecent, nil, nil)
	if err != nil {
		return err
	}
	var e control.Events
	if err := json.Unmarshal(raw, &e); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	for _, record := range e.Events {
		a.event(record)
	}
	return nil
}

// event prints a record of the log: as it is for programs, for people in a line.
func (a *app) event(raw json.RawMessage) {
	if a.json() {
		fmt.Fprintln(a.out, string(raw))
		return
	}
	line, level := eventLine(raw)
	if level == "error" {
		line = a.paint(line, "failed")
	}
	fmt.Fprintln(a.out, line)
}
