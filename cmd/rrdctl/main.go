//go:build unix

// Command rrdctl asks a running rrd what it does, and has it do something, over
// its control socket. See docs/control.md.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"rrd/cmd/internal/control"
)

// Exit codes; they are part of the contract with scripts.
const (
	exitOK       = 0
	exitFailed   = 1 // it was tried, and did not succeed
	exitUsage    = 2 // of the command line, or of the request
	exitNoMaster = 3 // nobody is there to ask
)

// version is set by the release build: -ldflags "-X main.version=1.2.3".
var version string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	a := &app{ctx: ctx, getenv: os.Getenv, in: os.Stdin, out: os.Stdout, err: os.Stderr}
	a.terminal = isTerminal(os.Stdout)
	a.asks = isTerminal(os.Stdin) && isTerminal(os.Stderr)
	a.width = 0
	if a.terminal {
		a.width, _ = windowSize(os.Stdout)
		a.color = a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb"
	}
	code := a.run(os.Args[1:])
	stop()
	os.Exit(code) //nolint:gocritic // stop was called
}

// app is one run of rrdctl.
type app struct {
	ctx      context.Context
	getenv   func(string) string
	in       io.Reader
	out, err io.Writer
	terminal bool // out is one
	asks     bool // err and in are terminals, so a person can answer a question
	color    bool
	width    int // columns of out; 0: no matter

	path   string // --control
	output string // -o
	ran    bool   // the command line was right
}

// errUsage marks errors that are the caller's.
var errUsage = errors.New("usage")

// errSilent is an end that was told about already.
var errSilent = errors.New("failed")

// run is main without the process's end.
func (a *app) run(args []string) int {
	root := a.commands()
	root.SetArgs(args)
	root.SetOut(a.out)
	root.SetErr(a.err)
	err := root.ExecuteContext(a.ctx)
	if err == nil {
		return exitOK
	}
	code := a.exitCode(err)
	switch {
	case errors.Is(err, errSilent):
	case a.output == "json":
		a.writeJSON(failure(err))
	default:
		fmt.Fprintf(a.err, "rrdctl: %s\n", plain(strings.ReplaceAll(err.Error(), "\n", "; ")))
	}
	return code
}

// failure is an error for programs, in the words of the protocol.
func failure(err error) any {
	f := struct {
		OK    bool         `json:"ok"`
		Error string       `json:"error"`
		Code  control.Code `json:"code,omitempty"`
	}{Error: err.Error()}
	var e *control.Error
	if errors.As(err, &e) {
		f.Code = e.Code
	}
	return f
}

func (a *app) exitCode(err error) int {
	var e *control.Error
	switch {
	case !a.ran, errors.Is(err, errUsage), errors.As(err, &e) && e.Code == control.CodeUsage:
		return exitUsage
	case errors.Is(err, control.ErrNoMaster):
		return exitNoMaster
	}
	return exitFailed
}

// dial connects to the master that was named, or to the only one.
func (a *app) dial() (*control.Client, error) {
	if a.path != "" {
		return control.Dial(a.ctx, a.path)
	}
	live, skipped := control.Find(a.ctx, a.getenv)
	switch {
	case len(live) == 1:
		return control.Dial(a.ctx, live[0])
	case len(live) > 1:
		return nil, fmt.Errorf("there are several masters, choose one with --control: %s: %w", strings.Join(live, ", "), errUsage)
	case len(skipped) > 0:
		return nil, fmt.Errorf("no socket to ask: %w", errors.Join(skipped...))
	}
	return nil, fmt.Errorf("%w: there is no control socket in %s; --control names another", control.ErrNoMaster, strings.Join(control.Directories(a.getenv), ", "))
}

// call asks one thing on a connection of its own.
func (a *app) call(cmd string, args any, onEvent func(json.RawMessage)) (json.RawMessage, error) {
	c, err := a.dial()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return a.callOn(c, cmd, args, onEvent)
}

func (a *app) callOn(c *control.Client, cmd string, args any, onEvent func(json.RawMessage)) (json.RawMessage, error) {
	result, err := c.Call(a.ctx, cmd, args, onEvent)
	if errors.Is(err, context.Canceled) {
		err = errors.New("interrupted: rrd goes on with what it has begun")
	}
	return result, err
}

// ask is call with the result decoded; with -o json it is also printed.
func (a *app) ask(cmd string, args, result any, onEvent func(json.RawMessage)) error {
	raw, err := a.call(cmd, args, onEvent)
	if err != nil {
		return err
	}
	return a.decode(raw, result)
}

func (a *app) decode(raw json.RawMessage, result any) error {
	if a.json() {
		a.writeJSON(raw)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(raw, result); err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	return nil
}

func (a *app) json() bool { return a.output == "json" }

func (a *app) writeJSON(v any) {
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	_ = e.Encode(v) // nobody reads it
}

// say prints for people.
func (a *app) say(format string, args ...any) {
	if !a.json() {
		fmt.Fprintf(a.out, format+"\n", args...)
	}
}

// lines prints what is laid out already.
func (a *app) lines(lines []string) {
	for _, l := range lines {
		fmt.Fprintln(a.out, l)
	}
}

// slotEvent prints what has become of a slot.
func (a *app) slotEvent(raw json.RawMessage) {
	var e control.SlotEvent
	if a.json() || json.Unmarshal(raw, &e) != nil {
		return
	}
	line := fmt.Sprintf("slot %d: %s", e.Slot, plain(e.State))
	if e.PID > 0 {
		line += fmt.Sprintf(" (pid %d)", e.PID)
	}
	if e.Reason != "" {
		line += ": " + plain(e.Reason)
	}
	a.say("%s", a.paint(line, e.State))
}
