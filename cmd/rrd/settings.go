//go:build unix

package main

import (
	"strconv"
	"time"

	"rrd/dispatcher"
	"rrd/worker/pool"
)

// setting is one flag that is also RRD_<NAME> and a key of the file, all with
// the same syntax and the same default.
type setting struct {
	name  string
	short string
	// list settings may be given several times; the most important source that
	// has any gives all of them.
	list bool
	// noEnv settings have no RRD_<NAME>.
	noEnv bool
	// bare is what the flag means without a value, which then can only follow a "=".
	bare string
	def  []string
	// apply sets the field of c. Its errors are those of badValue.
	apply func(h *host, c *config, values []string) error
}

// policyAuto is not a dispatcher.Policy: the choice is made here.
const policyAuto = "auto"

const (
	maxQueue  = 1 << 20
	maxWindow = 1024
	maxActive = 1_000_000
	maxNoFile = 1 << 30
	// maxPerWorker fits an int everywhere.
	maxPerWorker = 1_000_000_000
)

// settings is every setting, in the order of the help text.
var settings = []setting{
	{name: "listen", short: "l", list: true, apply: applyListen},
	{name: "policy", short: "p", def: one(policyAuto), apply: applyPolicy},
	{name: "workers", short: "w", def: one("auto"), apply: applyWorkers},
	{name: "worker-protocol", def: one("auto"), apply: single(func(_ *host, c *config, v string) error {
		return choice(&c.WorkerProtocol, v, pool.Protocols())
	})},

	{name: "queue-limit", def: one("4096"), apply: number(1, maxQueue, func(c *config) *int { return &c.QueueLimit })},
	{name: "queue-timeout", def: one("off"), apply: timeout(func(c *config) *time.Duration { return &c.QueueTimeout })},
	{name: "handoff-window", def: one("4"), apply: number(1, maxWindow, func(c *config) *int { return &c.HandoffWindow })},
	{name: "busy-after", def: one("50ms"), apply: timeout(func(c *config) *time.Duration { return &c.BusyAfter })},
	{name: "hang-timeout", def: one("30s"), apply: timeout(func(c *config) *time.Duration { return &c.HangTimeout })},
	{name: "hang-signal", def: one("KILL"), apply: single(func(_ *host, c *config, v string) (err error) {
		c.HangSignal, err = parseSignal(v, hangSignals)
		return err
	})},
	{name: "rescue-limit", def: one("1024"), apply: number(0, maxQueue, func(c *config) *int { return &c.RescueLimit })},
	{name: "worker-max-connections-active", def: one("0"), apply: number(0, maxActive, func(c *config) *int { return &c.MaxConnectionsActive })},
	{name: "tls-ticket-rotate", def: one("24h"), apply: single(applyTicketRotate)},

	{name: "ready-on-message", def: one("off"), bare: "on", apply: single(applyReadyOnMessage)},
	{name: "start-timeout", def: one("30s"), apply: timeout(func(c *config) *time.Duration { return &c.StartTimeout })},
	{name: "ready-after", def: one("1s"), apply: timeout(func(c *config) *time.Duration { return &c.ReadyAfter })},
	{name: "unhealthy-after", def: one("10s"), apply: timeout(func(c *config) *time.Duration { return &c.UnhealthyAfter })},
	{name: "drain-timeout", def: one("30s"), apply: timeout(func(c *config) *time.Duration { return &c.DrainTimeout })},
	{name: "stop-timeout", def: one("5s"), apply: timeout(func(c *config) *time.Duration { return &c.StopTimeout })},
	{name: "lame-duck", def: one("off"), apply: timeout(func(c *config) *time.Duration { return &c.LameDuck })},
	{name: "drain-spread", def: one("off"), apply: timeout(func(c *config) *time.Duration { return &c.DrainSpread })},
	{name: "stop-signal", def: one("TERM"), apply: single(func(_ *host, c *config, v string) (err error) {
		c.StopSignal, err = parseSignal(v, stopSignals)
		return err
	})},
	{name: "restart", def: one("always"), apply: single(func(_ *host, c *config, v string) error {
		return choice(&c.Restart, v, pool.RestartPolicies())
	})},
	{name: "surge", def: one("1"), apply: number(1, pool.MaxSize, func(c *config) *int { return &c.Surge })},
	{name: "canary-time", def: one("5s"), apply: timeout(func(c *config) *time.Duration { return &c.CanaryTime })},
	{name: "roll-keep", def: one("all"), apply: single(applyRollKeep)},
	{name: "respawn-min", def: one("1s"), apply: duration(func(c *config) *time.Duration { return &c.RespawnMin })},
	{name: "respawn-max", def: one("30s"), apply: duration(func(c *config) *time.Duration { return &c.RespawnMax })},

	{name: "max-connections-per-worker", def: one("off"), apply: single(func(_ *host, c *config, v string) (err error) {
		if v != "off" {
			c.MaxPerWorker, err = parseNumber(v, 1, maxPerWorker, " or off")
		}
		return err
	})},
	{name: "max-age", def: one("off"), apply: timeout(func(c *config) *time.Duration { return &c.MaxAge })},
	{name: "max-rss", def: one("off"), apply: single(func(_ *host, c *config, v string) (err error) {
		if v != "off" {
			c.MaxRSS, err = parseSize(v)
		}
		return err
	})},

	{name: "hook-before-start", apply: command(func(c *config) *string { return &c.Hooks.BeforeStart })},
	{name: "hook-before-spawn", apply: command(func(c *config) *string { return &c.Hooks.BeforeSpawn })},
	{name: "hook-worker-ready", apply: command(func(c *config) *string { return &c.Hooks.WorkerReady })},
	{name: "hook-worker-exit", apply: command(func(c *config) *string { return &c.Hooks.WorkerExit })},
	{name: "hook-timeout", def: one("30s"), apply: timeout(func(c *config) *time.Duration { return &c.Hooks.Timeout })},

	{name: "user", apply: single(applyUser)},
	{name: "group", apply: single(applyGroup)},
	{name: "worker-nofile", apply: single(func(_ *host, c *config, v string) error {
		n, err := parseNumber(v, 1, maxNoFile, "")
		c.WorkerNoFile = uint64(n)
		return err
	})},
	{name: "chdir", apply: single(func(_ *host, c *config, v string) (err error) {
		if v == "" {
			return badValue(v, "is no directory: name one")
		}
		c.Chdir, err = absolute(v)
		return err
	})},
	{name: "env", list: true, noEnv: true, apply: applyEnv},
	{name: "env-file", apply: single(applyEnvFile)},
	{name: "worker-output", def: one("auto"), apply: single(func(_ *host, c *config, v string) error {
		return choice(&c.WorkerOutput, v, []string{"auto", "raw", "prefix", "json"})
	})},

	{name: "config", apply: nil}, // read before all others
	{name: "control", def: one("auto"), apply: single(applyControl)},
	{name: "control-uid", list: true, apply: applyControlUID},
	{name: "metrics", def: one("127.0.0.1:9746"), apply: single(applyMetrics)},
	{name: "ready-min", def: one("1"), apply: number(1, pool.MaxSize, func(c *config) *int { return &c.ReadyMin })},
	{name: "ready-max-wait", def: one("5s"), apply: timeout(func(c *config) *time.Duration { return &c.ReadyMaxWait })},
	{name: "log-level", def: one("info"), apply: single(applyLogLevel)},
	{name: "log-format", def: one("auto"), apply: single(func(_ *host, c *config, v string) error {
		return choice(&c.LogFormat, v, []string{"auto", "console", "json"})
	})},
}

func findSetting(name string) *setting {
	for i := range settings {
		if settings[i].name == name {
			return &settings[i]
		}
	}
	return nil
}

func one(v string) []string { return []string{v} }

// single is a setting of one value; of several the last one counts, as with
// most programs.
func single(f func(h *host, c *config, v string) error) func(*host, *config, []string) error {
	return func(h *host, c *config, values []string) error { return f(h, c, values[len(values)-1]) }
}

func number(low, high int, field func(*config) *int) func(*host, *config, []string) error {
	return single(func(_ *host, c *config, v string) (err error) {
		*field(c), err = parseNumber(v, low, high, "")
		return err
	})
}

func duration(field func(*config) *time.Duration) func(*host, *config, []string) error {
	return single(func(_ *host, c *config, v string) (err error) {
		*field(c), err = parseDuration(v)
		return err
	})
}

// timeout is a duration that may be switched off.
func timeout(field func(*config) *time.Duration) func(*host, *config, []string) error {
	return single(func(_ *host, c *config, v string) (err error) {
		if *field(c) = off; v == "off" {
			return nil
		}
		*field(c), err = parseDurationOr(v, " or off")
		return err
	})
}

// minTicketRotate bounds how often workers get new keys.
const minTicketRotate = time.Second

func applyTicketRotate(_ *host, c *config, v string) (err error) {
	if c.TicketRotate = off; v == "off" {
		return nil
	}
	if c.TicketRotate, err = parseDurationOr(v, " or off"); err == nil && c.TicketRotate < minTicketRotate {
		err = badValue(v, "is shorter than %v: write a longer one, like 24h, or off", minTicketRotate)
	}
	return err
}

func applyPolicy(_ *host, c *config, values []string) error {
	v := values[len(values)-1]
	if v == policyAuto {
		return nil // finish chooses
	}
	return choice(&c.Policy, v, append([]dispatcher.Policy{policyAuto}, dispatcher.Policies()...))
}

// applyRollKeep sets RollKeep, whose 0 means all.
func applyRollKeep(_ *host, c *config, v string) error {
	if c.RollKeep = 0; v == "all" {
		return nil
	}
	n, err := parseNumber(v, 0, pool.MaxSize, " or all")
	if c.RollKeep = n; n == 0 {
		c.RollKeep = -1
	}
	return err
}

func applyWorkers(h *host, c *config, values []string) (err error) {
	v := values[len(values)-1]
	if v == "auto" {
		c.Workers = min(max(h.maxProcs, 1), pool.MaxSize)
		return nil
	}
	c.Workers, err = parseNumber(v, 1, pool.MaxSize, " or auto")
	return err
}

func applyControl(_ *host, c *config, v string) (err error) {
	switch c.Control = v; v {
	case "auto", "off":
		return nil
	}
	c.Control, err = parseSocketPath(v, "auto or off")
	return err
}

// applyControlUID takes names or numbers.
func applyControlUID(h *host, c *config, values []string) error {
	for _, v := range values {
		a, err := h.account(v)
		if err != nil {
			return badValue(v, "%v", err)
		}
		c.ControlUIDs = append(c.ControlUIDs, a.uid)
	}
	return nil
}

func applyMetrics(_ *host, c *config, v string) (err error) {
	if v == "off" {
		c.Metrics = endpoint{}
		return nil
	}
	c.Metrics, err = parseEndpoint(v)
	return err
}

// quoted is v as TOML and as people read it.
func quoted(v string) string { return strconv.Quote(v) }
