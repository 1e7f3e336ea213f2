package pool

import (
	"fmt"
	"strconv"
	"strings"

	"rrd/handoff"
)

// Variables of other people's conventions.
const (
	envListenFDs     = "LISTEN_FDS" // sd_listen_fds(3)
	envListenPID     = "LISTEN_PID"
	envListenFDNames = "LISTEN_FDNAMES"
	envNotifySocket  = "NOTIFY_SOCKET" // sd_notify(3)

	envNodeChannelFD   = "NODE_CHANNEL_FD"
	envNodeChannelMode = "NODE_CHANNEL_SERIALIZATION_MODE"
	envNodeID          = "NODE_UNIQUE_ID"
	envNodeOptions     = "NODE_OPTIONS"
)

// inherited says whether a variable of the master reaches its workers. Those that
// do not speak to the master itself: its flags, its own listeners, its own service
// manager, its own Node parent.
func inherited(name string) bool {
	for _, prefix := range []string{"RRD_", "LISTEN_", "WATCHDOG_", "NODE_CHANNEL_"} {
		if strings.HasPrefix(name, prefix) {
			return false
		}
	}
	return name != envNotifySocket && name != envNodeID
}

func checkExtraEnv(extra []string) error {
	for _, kv := range extra {
		name, _, ok := strings.Cut(kv, "=")
		switch {
		case !ok || name == "":
			return fmt.Errorf("environment %q: must be NAME=VALUE", name)
		case strings.HasPrefix(name, "RRD_"):
			return fmt.Errorf("environment %s: RRD_ names are rrd's own", name)
		case strings.ContainsRune(kv, 0):
			return fmt.Errorf("environment %s: contains a NUL byte", name)
		}
	}
	return nil
}

// expander replaces what may stand in a command or in a value of the environment.
func expander(slot, generation int) *strings.Replacer {
	return strings.NewReplacer(
		"{slot}", strconv.Itoa(slot),
		"{generation}", strconv.Itoa(generation))
}

// accountVariables are those that name the user of a process (POSIX, Base Definitions, 8.3;
// USER is BSD's LOGNAME).
var accountVariables = []string{"HOME", "USER", "LOGNAME"}

// accountEnv returns the values of accountVariables; "" unsets one. It is empty if a is nil.
func accountEnv(a *Account) map[string]string {
	if a == nil {
		return nil
	}
	return map[string]string{"HOME": a.Home, "USER": a.Name, "LOGNAME": a.Name}
}

// workerEnv builds the environment of one worker. Where a name is set twice the
// later one holds: the master's, the account's, then --env, then ours. channelFD is -1 without
// a channel. LISTEN_PID is left to the exec helper, which is the only one to know it.
func workerEnv(c *Config, t *template, slot int, listeners []Inherited, channelFD int, notifySocket string) []string {
	var env []string
	at := make(map[string]int)
	set := func(name, value string) {
		i, ok := at[name]
		if !ok {
			i = len(env)
			at[name] = i
			env = append(env, "")
		}
		env[i] = name + "=" + value
	}
	account := accountEnv(t.Account)
	for _, kv := range c.Env {
		if name, value, ok := strings.Cut(kv, "="); ok && name != "" && inherited(name) {
			if _, replaced := account[name]; !replaced {
				set(name, value)
			}
		}
	}
	for _, name := range accountVariables {
		if own := account[name]; own != "" {
			set(name, own)
		}
	}
	x := expander(slot, t.generation)
	for _, kv := range t.ExtraEnv {
		name, value, _ := strings.Cut(kv, "=")
		set(name, x.Replace(value))
	}
	set(handoff.EnvSlot, strconv.Itoa(slot))
	set(handoff.EnvGeneration, strconv.Itoa(t.generation))
	if c.Protocol == ProtocolNode {
		if options, ok := at[envNodeOptions]; ok {
			_, value, _ := strings.Cut(env[options], "=")
			set(envNodeOptions, nodeOptions(value, slot))
		}
		// Its presence makes the program a cluster worker. Ours begin at 1 like
		// those of Node's own primary, but a slot keeps its number.
		set(envNodeID, strconv.Itoa(slot+1))
		set(envNodeChannelFD, strconv.Itoa(channelFD))
		set(envNodeChannelMode, "json")
	} else {
		set(handoff.EnvProtocol, strconv.Itoa(handoff.ProtocolVersion))
		if channelFD >= 0 {
			set(handoff.EnvChannelFD, strconv.Itoa(channelFD))
		}
	}
	if len(listeners) > 0 {
		set(envListenFDs, strconv.Itoa(len(listeners)))
		names := make([]string, len(listeners))
		for i, l := range listeners {
			names[i] = fdName(l.Name)
		}
		set(envListenFDNames, strings.Join(names, ":"))
	}
	if notifySocket != "" {
		set(envNotifySocket, notifySocket)
	}
	return env
}

// fdName returns name as it may stand in LISTEN_FDNAMES: 1 to 255 printable ASCII
// characters and no colon (sd_pid_notify_with_fds(3), FDNAME=).
func fdName(name string) string {
	bad := func(r rune) bool { return r < ' ' || r > '~' || r == ':' }
	if name == "" || len(name) > 255 || strings.ContainsFunc(name, bad) {
		return "unknown"
	}
	return name
}
