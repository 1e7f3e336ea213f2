//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"rrd/cmd/internal/control"
)

// eventLine is a record of the log in a line: time, level, event, and the other
// fields in their order.
func eventLine(raw json.RawMessage) (line, level string) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var at, event, message string
	var rest []string
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return plain(string(raw)), ""
	}
	for d.More() {
		key, err := d.Token()
		var value json.RawMessage
		if err != nil || d.Decode(&value) != nil {
			return plain(string(raw)), ""
		}
		text := string(value)
		var s string
		if json.Unmarshal(value, &s) == nil {
			text = s
		}
		switch key {
		case "time":
			at = text
		case "level":
			level = text
		case "event":
			event = text
		case "message":
			message = text
		default:
			if strings.ContainsAny(text, " =\"") && text == s {
				text = fmt.Sprintf("%q", text)
			}
			rest = append(rest, fmt.Sprintf("%v=%s", key, text))
		}
	}
	if event == "" {
		event = message
	}
	words := append([]string{at, fmt.Sprintf("%-5s", level), event}, rest...)
	return plain(strings.TrimSpace(strings.Join(words, " "))), level
}

func (a *app) debugCommand() *cobra.Command {
	c := &cobra.Command{Use: "debug", Short: "look into rrd itself", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	seconds, file := 5, "rrd.trace"
	trace := a.verb("trace", "take an execution trace of rrd, for go tool trace", 0, func([]string) error { return a.trace(seconds, file) })
	trace.Flags().IntVar(&seconds, "seconds", seconds, "how long, 1 to 60")
	trace.Flags().StringVarP(&file, "file", "f", file, "where to; - is stdout")
	c.AddCommand(
		a.verb("goroutines", "stacks of all goroutines of rrd", 0, func([]string) error { return a.goroutines() }),
		a.verb("fds", "every descriptor of rrd, with what it is", 0, func([]string) error { return a.fds() }),
		trace,
	)
	return c
}

// text prints a piece of text, also with -o json: it is none.
func (a *app) text(raw json.RawMessage) {
	var t control.Text
	if json.Unmarshal(raw, &t) == nil && !a.json() {
		_, _ = io.WriteString(a.out, t.Text) // nobody reads it
	}
}

func (a *app) goroutines() error {
	var all strings.Builder
	raw, err := a.call(control.CmdGoroutines, nil, func(raw json.RawMessage) {
		var t control.Text
		if json.Unmarshal(raw, &t) == nil {
			all.WriteString(t.Text)
		}
	})
	if err != nil {
		return err
	}
	if a.json() {
		var g control.Goroutines
		if err := json.Unmarshal(raw, &g); err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		a.writeJSON(map[string]any{"goroutines": g.Goroutines, "text": all.String()})
		return nil
	}
	fmt.Fprintln(a.out, strings.TrimRight(all.String(), "\n"))
	return nil
}

func (a *app) fds() error {
	var f control.FDs
	if err := a.ask(control.CmdFDs, nil, &f, nil); err != nil || a.json() {
		return err
	}
	t := &table{columns: []column{{title: "FD", right: true}, {title: "KIND"}, {title: "WHAT"}}}
	for _, d := range f.FDs {
		t.rows = append(t.rows, []string{number(d.FD), plain(d.Kind), plain(d.Target)})
	}
	a.lines(t.lines(a.width))
	return nil
}

func (a *app) trace(seconds int, file string) (err error) {
	if file == "-" && a.json() {
		return fmt.Errorf("--file: - and -o json both want stdout: %w", errUsage)
	}
	out := &traceFile{path: file, stdout: a.out}
	defer func() { err = errors.Join(err, out.Close()) }()
	var werr error
	raw, err := a.call(control.CmdTrace, control.TraceArgs{Seconds: seconds}, func(raw json.RawMessage) {
		var d control.Data
		if err := json.Unmarshal(raw, &d); err != nil {
			werr = errors.Join(werr, err)
			return
		}
		if _, err := out.Write(d.Data); err != nil && werr == nil {
			werr = err
		}
	})
	if err = errors.Join(err, werr); err != nil || file == "-" {
		return err
	}
	var t control.Traced
	if err := a.decode(raw, &t); err != nil {
		return err
	}
	a.say("%s: %s of %s, to be seen with go tool trace", plain(file), size(uint64(t.Bytes)), age(t.Seconds))
	return nil
}

// traceFile is made with its first byte: a trace that cannot be had leaves an older one as
// it was.
type traceFile struct {
	path   string // "-": stdout
	stdout io.Writer
	f      *os.File
}

func (t *traceFile) Write(p []byte) (n int, err error) {
	if t.path == "-" {
		return t.stdout.Write(p)
	}
	if t.f == nil {
		if t.f, err = os.Create(t.path); err != nil {
			return 0, err
		}
	}
	return t.f.Write(p)
}

func (t *traceFile) Close() error {
	if t.f == nil {
		return nil
	}
	return t.f.Close()
}
