//go:build unix

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"rrd/dispatcher"
	"rrd/handoff"
	"rrd/handoff/node"
	"rrd/worker/pool"
)

// envNodePolicy chooses the policy of Node's own primary (Node's documentation,
// "cluster.schedulingPolicy"). Who moves from there has it set.
const envNodePolicy = "NODE_CLUSTER_SCHED_POLICY"

// node says whether the workers are Node programs.
func (c *config) node() bool { return c.WorkerProtocol == pool.ProtocolNode }

// settleProtocol finds out what kind of program the command is, and refuses what
// that kind cannot do.
func (c *config) settleProtocol(h *host) error {
	passing := h.passDescriptors()
	if c.WorkerProtocol == pool.ProtocolAuto && passing == nil && !c.builtIn() {
		if why := c.detectNode(h); why != "" {
			c.WorkerProtocol, c.ProtocolReason = pool.ProtocolNode, "auto: "+why
		}
	}
	if !c.node() {
		if c.ReadyOnMessage {
			return c.bad("ready-on-message", "on", "is for Node programs, and the command is none that rrd knows for one: remove it, or add --worker-protocol node")
		}
		return nil
	}
	switch {
	case c.builtIn():
		return c.bad("worker-protocol", "node", "needs a Node program, and there is no command: add one after --")
	case passing != nil:
		return c.bad("worker-protocol", "node", fmt.Sprintf("needs a system that passes descriptors, and this one does not (%v): run the program with --policy none --worker-protocol listen-fds", passing))
	case c.MaxConnectionsActive > 0:
		return c.bad("worker-max-connections-active", fmt.Sprint(c.MaxConnectionsActive),
			"needs workers that report closed connections, and Node does not: remove it, and set server.maxConnections in the program")
	}
	if err := c.checkLauncher(h); err != nil {
		return err
	}
	if word := codeFlag(c.Command); word != "" {
		c.Warnings = append(c.Warnings, fmt.Sprintf("command: with %s Node does not speak to rrd, and ends at once: put the program into a file", word))
	}
	return c.settleNodePolicy()
}

// settleNodePolicy takes the policy from Node's own variable if nobody named one
// to rrd.
func (c *config) settleNodePolicy() error {
	value, _ := lookupVariable(c.environ, envNodePolicy)
	if value == "" || c.explicit("policy") {
		return nil
	}
	switch p := dispatcher.Policy(value); p {
	case dispatcher.SchedRR, dispatcher.SchedNone:
		c.Policy, c.PolicyReason = p, envNodePolicy+" is "+value
		c.settings["policy"] = setValue{one(value), envNodePolicy}
	default:
		c.Warnings = append(c.Warnings, fmt.Sprintf("%s: ignored, as by Node itself, because %q is not rr or none: correct it, or use --policy", envNodePolicy, value))
	}
	return nil
}

// detectNode says why the command is a Node program, or "" if nothing says so.
func (c *config) detectNode(h *host) string {
	name := firstWorker.Replace(c.Command[0])
	switch base := filepath.Base(name); {
	case pool.NamesNode(name):
		return oneWord(name) + " is Node"
	case slices.Contains(packageManagers, base):
		return oneWord(name) + " is a Node program"
	}
	path, err := c.programPath()
	if err != nil {
		return "" // the start will tell
	}
	target, interpreter := h.program(path)
	switch {
	case pool.NamesNode(target):
		return oneWord(name) + " is a link to " + oneWord(target)
	case interpretsNode(interpreter):
		return oneWord(name) + " begins with " + oneWord("#!"+interpreter)
	}
	return ""
}

// lookAtProgram returns the file that path leads to and its interpreter line.
func lookAtProgram(path string) (target, interpreter string) {
	if t, err := filepath.EvalSymlinks(path); err == nil {
		path = t
	}
	return path, readInterpreterLine(path)
}

// interpretsNode says whether an interpreter line ("/usr/bin/env -S node x") leads
// to Node.
func interpretsNode(line string) bool {
	words := strings.Fields(line)
	if len(words) == 0 {
		return false
	}
	if filepath.Base(words[0]) != "env" {
		return pool.NamesNode(words[0])
	}
	for i := 1; i < len(words); i++ {
		word := words[i]
		for _, split := range []string{"--split-string=", "-S"} {
			word = strings.TrimPrefix(word, split)
		}
		switch {
		case slices.Contains(envValueFlags, word):
			i++
		case word == "" || strings.HasPrefix(word, "-") || strings.Contains(word, "="):
		default:
			return pool.NamesNode(word)
		}
	}
	return false
}

// codeFlag returns the flag that gives Node its program as a word, which then is
// no worker of any cluster; or "".
func codeFlag(command []string) string {
	for _, f := range pool.NodeFlags(command) {
		if name, _, _ := strings.Cut(f, "="); slices.Contains([]string{"-e", "--eval", "-p", "--print", "-pe"}, name) {
			return name
		}
	}
	return ""
}

// nodeCure is what to do about a Node worker that runs and asks for no listener.
func (c *config) nodeCure() string {
	if l := findLauncher(c.Command, nil); l.runner != "" {
		return l.runner + " keeps the channel for itself: run " + runners[l.runner]
	}
	return "it has asked for no listener: does it call listen()? Only cluster workers are served: a tool that starts a second node keeps the channel for itself " +
		"(run the program itself, as in rrd -- node server.js), and worker threads and listeners with exclusive or reusePort bind by themselves"
}

// nodePair makes the channel of a Node worker.
func (m *master) nodePair(slot int) (handoff.Channel, *os.File, error) {
	master, child, err := node.Pair(m.nodeConfig(slot))
	if err != nil {
		return nil, nil, err // not a nil *Conn in an interface
	}
	return master, child, nil
}

// nodeConfig is what the channel of a slot's worker does besides.
func (m *master) nodeConfig(slot int) node.Config {
	return node.Config{ReadyOnMessage: m.cfg.ReadyOnMessage, Private: m.current().ownSocket(slot), Message: m.nodeMessages(slot)}
}

// Messages of a worker's program in the log: so many in such a time, others are
// not shown.
const (
	messageBurst  = 10
	messagePeriod = time.Second
)

// nodeMessages returns what logs the messages of one worker. The dispatch loop
// calls it, which the log never holds up (logSink).
func (m *master) nodeMessages(slot int) func(text []byte) {
	log := m.log.Sample(&zerolog.BurstSampler{Burst: messageBurst, Period: messagePeriod})
	return func(text []byte) {
		log.Debug().Str("event", "worker.message").Int("worker", slot).Bytes("text", text).Msg("message of the program")
	}
}

func applyReadyOnMessage(_ *host, c *config, v string) error {
	switch v {
	case "on", "true":
		c.ReadyOnMessage = true
	case "off", "false":
		c.ReadyOnMessage = false
	default:
		return badValue(v, "is not one of on, off")
	}
	return nil
}
