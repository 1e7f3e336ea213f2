//go:build unix

package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"

	"rrd/cmd/internal/control"
	"rrd/dispatcher"
)

// Config is the configuration in force, with where each value came from. Values
// of variables may be secrets and are left out, as in --check.
func (m *master) Config() control.Config { return m.current().described() }

func (c *config) described() control.Config {
	out := control.Config{Command: slices.Clone(c.Command), Settings: []control.Setting{}, Warnings: c.Warnings}
	if out.Command == nil {
		out.Command = []string{}
	}
	for _, s := range settings {
		v := c.settings[s.name]
		if len(v.values) == 0 {
			continue
		}
		d := control.Setting{Name: s.name, Values: v.values[len(v.values)-1:], Origin: v.origin}
		if s.list {
			d.Values = slices.Clone(v.values)
		}
		if s.name == "env" {
			for i, kv := range d.Values {
				d.Values[i], _, _ = strings.Cut(kv, "=")
			}
		}
		if text := c.explain(s.name, v.origin); text != v.origin {
			d.Meaning = strings.TrimPrefix(text, v.origin+"; ")
		}
		out.Settings = append(out.Settings, d)
	}
	return out
}

// CheckConfig tries a file in place of that of --config: flags and environment
// of this master stay, and win. What this master listens on itself counts as
// free, so addresses are only tried where they are new.
func (m *master) CheckConfig(path string) (control.Config, error) {
	h := thisHost()
	h.readFile = readPlainFile
	c, err := m.parseAgain(h, withConfig(m.args, path))
	if err != nil {
		return control.Config{}, err
	}
	diff, err := m.compare(c)
	if err != nil {
		return control.Config{}, err
	}
	if err := m.checkNewAddresses(c, diff); err != nil {
		return control.Config{}, err
	}
	if m.reloads.running.TryLock() { // otherwise a reload checks them
		warnings, err := m.checkFiles(context.Background(), c)
		m.reloads.running.Unlock()
		if err != nil {
			return control.Config{}, err
		}
		c.Warnings = append(c.Warnings, warnings...)
	}
	return c.described(), nil
}

// readPlainFile reads a file that somebody else has named: a fifo would hold us.
func readPlainFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &os.PathError{Op: "read", Path: path, Err: fmt.Errorf("is no plain file")}
	}
	return readConfigFile(path)
}

// withConfig adds --config to a command line, before the command. Of several the
// last one counts.
func withConfig(args []string, path string) []string {
	flag := "--config=" + path
	if i := slices.Index(args, "--"); i >= 0 {
		return slices.Concat(args[:i], []string{flag}, args[i:])
	}
	return slices.Concat(args, []string{flag})
}

// checkNewAddresses binds the addresses that this master does not have, and closes them.
func (m *master) checkNewAddresses(c *config, diff *listenerDiff) error {
	running := m.current()
	written := c.settings["listen"]
	for i := range c.Listen {
		ln := &c.Listen[i]
		if ln.Network == "fd" || slices.ContainsFunc(running.Listen, func(r dispatcher.ListenerConfig) bool {
			return r.Network == ln.Network && r.Address == ln.Address
		}) {
			continue
		}
		h, err := tryAddress(ln)
		if err != nil && diff.takesPortOf(ln) { // our own may be in the way
			err = bindProblem(m.dispatcher.TryBeside(*ln, diff.removed))
		}
		if err != nil {
			return located("listen", written.origin, badValue(written.values[i], "%v", err))
		}
		if h != nil {
			defer h.Close()
		}
	}
	return nil
}
