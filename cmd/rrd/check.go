//go:build unix

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"rrd/cmd/internal/control"
	"rrd/dispatcher"
)

// check is --check: it tries whatever can be tried without serving anybody and
// writes the configuration with its origins to w, as a file that --config would
// accept. budget checks the number of descriptors. A default metrics address
// that is taken is only a warning, as it is at start. An error is one line and
// means exit code 2; on success nothing is left behind.
func (c *config) check(w io.Writer, act *activation, budget func(*config) error) error {
	steps := []func() error{
		c.checkDirectory,
		c.checkCommand,
		c.checkBuiltIn,
		func() error { return c.claim(act) },
		c.checkAddresses,
		c.checkControl,
		func() error { return budget(c) },
	}
	defer func() {
		for i := range c.Listen {
			if f := c.Listen[i].File; f != nil {
				f.Close()
			}
		}
	}()
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return c.write(w)
}

// firstWorker replaces what may stand in a command, as for the first worker.
var firstWorker = strings.NewReplacer("{slot}", "0", "{generation}", "1")

func (c *config) checkDirectory() error {
	if c.Chdir == "" {
		return nil
	}
	info, err := os.Stat(firstWorker.Replace(c.Chdir))
	if err == nil && !info.IsDir() {
		err = syscall.ENOTDIR
	}
	if err != nil {
		return c.bad("chdir", c.Chdir, fmt.Sprintf("cannot be entered: %v", reason(err)))
	}
	return nil
}

// checkCommand finds the program as the exec helper will.
func (c *config) checkCommand() error {
	if c.builtIn() {
		return nil
	}
	_, err := c.programPath()
	return err
}

// checkAddresses binds every address, all at once so that those which exclude
// each other are found, and lets go of them again.
func (c *config) checkAddresses() error {
	var held []io.Closer
	defer func() {
		for _, h := range held {
			h.Close()
		}
	}()
	written := c.settings["listen"]
	for i := range c.Listen {
		ln := &c.Listen[i]
		h, err := tryAddress(ln)
		if err != nil {
			return located("listen", written.origin, badValue(written.values[i], "%v", err))
		}
		if h != nil {
			held = append(held, h)
		}
	}
	if c.Metrics.Network == "" {
		return nil
	}
	h, err := tryAddress(&dispatcher.ListenerConfig{Network: c.Metrics.Network, Address: c.Metrics.Address})
	if err != nil {
		err = located("metrics", c.origin("metrics"), badValue(c.settings["metrics"].values[0], "%v", err))
		if c.explicit("metrics") {
			return err
		}
		c.Warnings = append(c.Warnings, err.Error())
		return nil
	}
	if h != nil {
		held = append(held, h)
	}
	return nil
}

func tryAddress(ln *dispatcher.ListenerConfig) (io.Closer, error) {
	var h io.Closer
	var err error
	switch {
	case ln.Network == "fd":
		return nil, nil // claimed before
	case ln.Network == "unix":
		return nil, trySocketPath(ln.Address)
	case strings.HasPrefix(ln.Network, "udp"):
		h, err = net.ListenPacket(ln.Network, ln.Address)
	default:
		h, err = net.Listen(ln.Network, ln.Address)
	}
	if err != nil {
		return nil, bindProblem(err)
	}
	return h, nil
}

// bindProblem returns the reason why an address cannot be bound.
func bindProblem(err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return errors.New("is taken: stop whoever listens there, or choose another")
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("may not be bound by uid %d: ports below 1024 take root or CAP_NET_BIND_SERVICE", os.Geteuid())
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return errors.New("is no address of this machine")
	case err != nil:
		return fmt.Errorf("cannot be bound: %w", err)
	}
	return nil
}

// trySocketPath says why a socket cannot be made at path. It makes none: its
// short life could take the place of a real one.
func trySocketPath(path string) error {
	info, err := os.Lstat(path)
	switch {
	case err == nil && info.Mode().Type() != os.ModeSocket:
		return errors.New("exists and is no socket: remove it, or choose another path")
	case err == nil:
		c, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return errors.New("is taken: stop whoever listens there, or choose another path")
		}
	case !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("cannot be made: %w", reason(err))
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".rrd-check-*")
	if err != nil {
		return fmt.Errorf("cannot be made in its directory: %w", reason(err))
	}
	f.Close()
	return os.Remove(f.Name())
}

// checkControl checks a control socket that was asked for. The default one is
// no error wherever it ends up.
func (c *config) checkControl() error {
	if c.Control == "auto" || c.Control == "off" {
		return nil
	}
	if err := control.Check(c.Control); err != nil {
		return located("control", c.origin("control"), err)
	}
	return nil
}

// write writes c as TOML. Values of variables may be secrets and are left out.
func (c *config) write(w io.Writer) error {
	var b strings.Builder
	for _, warning := range c.Warnings {
		fmt.Fprintf(&b, "# warning: %s\n", oneLine(warning))
	}
	if c.builtIn() {
		b.WriteString("# no command: the built-in worker\n")
	} else {
		fmt.Fprintf(&b, "command = %s\n", tomlList(c.Command))
	}
	for _, s := range settings {
		v := c.settings[s.name]
		var line string
		switch {
		case len(v.values) == 0:
			continue
		case s.name == "env":
			var names []string
			for _, kv := range v.values {
				name, _, _ := strings.Cut(kv, "=")
				names = append(names, name)
			}
			line = fmt.Sprintf("# env: %s", tomlList(names))
		case s.name == "config":
			line = "# config: " + quoted(v.values[len(v.values)-1])
		case s.list:
			line = s.name + " = " + tomlList(v.values)
		default:
			line = s.name + " = " + tomlString(v.values[len(v.values)-1])
		}
		fmt.Fprintf(&b, "%s # %s\n", line, c.explain(s.name, v.origin))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// explain is the origin of a setting, and what auto came to.
func (c *config) explain(name, origin string) string {
	written := c.settings[name].values
	switch auto := slices.Equal(written, one("auto")); {
	case auto && name == "policy":
		return fmt.Sprintf("%s; %s (%s)", origin, c.Policy, c.PolicyReason)
	case auto && name == "worker-protocol" && c.ProtocolReason != "":
		return fmt.Sprintf("%s; %s (%s)", origin, c.WorkerProtocol, c.ProtocolReason)
	case auto && name == "workers":
		return fmt.Sprintf("%s; %d", origin, c.Workers)
	case name == "roll-keep":
		return fmt.Sprintf("%s; a reload runs up to %d workers at a time", origin, c.workersInReload())
	}
	return origin
}

func tomlList(values []string) string {
	spelled := make([]string, len(values))
	for i, v := range values {
		spelled[i] = tomlString(v)
	}
	return "[" + strings.Join(spelled, ", ") + "]"
}

// tomlString quotes v with the escapes that TOML has, which are fewer than
// Go's. What is no UTF-8 has no spelling in TOML.
func tomlString(v string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range v {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case strconv.IsPrint(r):
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08X`, r)
		default:
			fmt.Fprintf(&b, `\u%04X`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func oneLine(s string) string { return strings.NewReplacer("\n", " ", "\r", " ").Replace(s) }
