//go:build unix

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"rrd/dispatcher"
	"rrd/worker/pool"
)

// off is the value of a duration that was switched off.
const off = pool.NoTimeout

// action is what the command line asks for.
type action int

const (
	actionRun action = iota
	actionCheck
	actionVersion
	actionHelp
)

// config is the result of command line, environment, file and defaults. Every
// duration is above zero, or off where that is allowed.
type config struct {
	// Command is what to run; empty means the built-in worker.
	Command []string

	Listen []dispatcher.ListenerConfig
	// Policy is never auto. PolicyReason says why it was chosen if it was auto.
	Policy       dispatcher.Policy
	PolicyReason string
	Workers      int

	QueueLimit    int
	QueueTimeout  time.Duration
	HandoffWindow int
	BusyAfter     time.Duration
	HangTimeout   time.Duration
	HangSignal    syscall.Signal // KILL, or ABRT with a KILL after StopTimeout
	RescueLimit   int
	// QueueLimit and RescueLimit before fitBudget.
	wantedQueue, wantedRescue int
	// MaxConnectionsActive is how many open connections a worker may have and
	// still be offered more; 0 is no limit.
	MaxConnectionsActive int
	// TicketRotate is how often the keys of TLS session tickets change.
	TicketRotate time.Duration

	ReadyMin     int           // workers that must be ready for /-/ready
	ReadyMaxWait time.Duration // age of the oldest waiting connection that ends readiness

	// WorkerProtocol is auto only for programs whose kind shows when they run.
	// ProtocolReason says why it was chosen if it was auto.
	WorkerProtocol pool.Protocol
	ProtocolReason string
	// ReadyOnMessage: a Node program is ready when it has sent "ready", too.
	ReadyOnMessage bool
	StartTimeout   time.Duration
	ReadyAfter     time.Duration
	UnhealthyAfter time.Duration // of failing its own health check, to its replacement
	DrainTimeout   time.Duration
	StopTimeout    time.Duration
	LameDuck       time.Duration // not ready and still serving, before a drain
	DrainSpread    time.Duration // over which workers are told to drain
	StopSignal     syscall.Signal
	RespawnMin     time.Duration
	RespawnMax     time.Duration
	Restart        pool.RestartPolicy
	Surge          int           // slots that a reload replaces at a time
	CanaryTime     time.Duration // that a new worker must live to be trusted
	RollKeep       int           // replaced workers that a reload keeps until it has succeeded; 0: all, negative: none
	// When a worker is replaced that is well: after so many connections, at this age, at
	// that size in bytes; 0, off and 0 are never.
	MaxPerWorker int
	MaxAge       time.Duration
	MaxRSS       uint64
	Hooks        hookCommands
	Credential   *pool.Credential // nil: the master's
	Account      *pool.Account    // of --user; nil: without
	WorkerNoFile uint64           // 0: the limit that the master was started with
	Chdir        string
	Env          []string // of --env-file, then of --env

	// WorkerOutput, Control and LogFormat may be "auto": what that means
	// depends on the terminal and the machine, not on the configuration.
	WorkerOutput string
	Control      string
	ControlUIDs  []int // who may use it besides root and ourselves
	Metrics      endpoint
	LogLevel     zerolog.Level
	LogFormat    string

	// Warnings are to be logged once, each is one line.
	Warnings []string

	settings map[string]setValue
	environ  []string // of rrd itself
	user     *account
	group    *int
	envFile  []string
	env      []string
}

// endpoint is where to listen for HTTP; an empty Network means not at all.
type endpoint struct{ Network, Address string }

// setValue is a setting as it was written, and where.
type setValue struct {
	values []string
	origin string // "flag", "RRD_X", "FILE:LINE" or "default"
}

const (
	fromFlag    = "flag"
	fromDefault = "default"
)

// origin says where the value of a setting ("workers") came from.
func (c *config) origin(name string) string { return c.settings[name].origin }

// explicit says whether somebody asked for the value of a setting.
func (c *config) explicit(name string) bool { return c.origin(name) != fromDefault }

// builtIn says whether the workers are rrd's own.
func (c *config) builtIn() bool { return len(c.Command) == 0 }

// host is what parsing asks of the machine, so that tests can answer instead.
type host struct {
	readFile func(path string) ([]byte, error)
	account  func(nameOrID string) (account, error)
	group    func(nameOrID string) (int, error)
	// passDescriptors is nil if this system passes descriptors between
	// processes, else it says what is in the way.
	passDescriptors func() error
	// program returns the file that a path leads to, and its interpreter line.
	program  func(path string) (target, interpreter string)
	maxProcs int // GOMAXPROCS, which follows the CPU quota of a container
	euid     int
}

func thisHost() *host {
	return &host{
		readFile: readConfigFile, account: lookupAccount, group: lookupGroup,
		passDescriptors: probePassing, program: lookAtProgram, maxProcs: processors(), euid: os.Geteuid(),
	}
}

// oneProcessor: atLeastTwoProcs has raised GOMAXPROCS, which was 1.
var oneProcessor atomic.Bool

// atLeastTwoProcs: the loop waits in the kernel on a thread of its own; with one P it
// would queue behind whatever else runs when it wakes.
func atLeastTwoProcs() {
	if runtime.GOMAXPROCS(0) < 2 {
		oneProcessor.Store(true)
		runtime.GOMAXPROCS(2)
	}
}

// processors is GOMAXPROCS as it would be without us: what --workers auto means, at the
// start and in each reload.
func processors() int {
	if oneProcessor.Load() {
		return 1
	}
	return runtime.GOMAXPROCS(0)
}

// parseConfig works out what args (without the program's name) and environ ask
// for. It reads the files they name, and looks up users and groups; it changes
// nothing and opens no descriptor, so that a reload can call it again with the
// same arguments to read the file once more. Every error is one line for a
// person, without "rrd: ", and means exit code 2. The config is valid for
// actionRun and actionCheck only.
func parseConfig(args, environ []string) (*config, action, error) {
	return thisHost().parseConfig(args, environ)
}

func (h *host) parseConfig(args, environ []string) (*config, action, error) {
	line, err := parseFlags(args)
	if err != nil {
		return nil, actionRun, err
	}
	if line.action == actionHelp || line.action == actionVersion {
		return nil, line.action, nil
	}
	c := &config{settings: map[string]setValue{}, Command: line.command, environ: environ}

	env, warnings := readEnvironment(environ)
	c.Warnings = append(c.Warnings, warnings...)
	file := map[string]setValue{}
	if from, ok := first("config", line.values, env); ok {
		c.settings["config"] = from
		var command []string
		if file, command, err = h.readFileSettings(from); err != nil {
			return nil, line.action, err
		}
		if !line.dash {
			c.Command = command
		}
	}
	for i := range settings {
		s := &settings[i]
		if s.name == "config" {
			continue
		}
		v, ok := first(s.name, line.values, env, file)
		if !ok {
			v = setValue{values: s.def, origin: fromDefault}
		}
		c.settings[s.name] = v
		if len(v.values) == 0 {
			continue // a list that nobody filled; finish knows
		}
		if err := s.apply(h, c, v.values); err != nil {
			return nil, line.action, located(s.name, v.origin, err)
		}
	}
	return c, line.action, c.finish(h)
}

// first returns the value of name from the first source that has one.
func first(name string, sources ...map[string]setValue) (setValue, bool) {
	for _, s := range sources {
		if v, ok := s[name]; ok {
			return v, true
		}
	}
	return setValue{}, false
}

// finish settles what takes more than one setting.
func (c *config) finish(h *host) error {
	c.wantedQueue, c.wantedRescue = c.QueueLimit, c.RescueLimit
	c.Env = append(c.envFile, c.env...)
	if err := c.settleProtocol(h); err != nil {
		return err
	}
	if c.Policy == "" {
		c.Policy, c.PolicyReason = dispatcher.SchedRR, "auto: descriptors can be passed on this system"
		if err := h.passDescriptors(); err != nil {
			c.Policy, c.PolicyReason = dispatcher.SchedNone, fmt.Sprintf("auto: descriptors cannot be passed on this system (%v)", err)
		}
	}
	if c.Policy == dispatcher.SchedReuseport && runtime.GOOS == "darwin" {
		c.Warnings = append(c.Warnings, "--policy reuseport: this system does not balance connections over SO_REUSEPORT; one worker will get most of them")
	}
	if c.WorkerProtocol == pool.ProtocolListenFDs && c.Policy == dispatcher.SchedRR {
		return c.bad("worker-protocol", "listen-fds", "needs workers that accept themselves, and the policy is rr: add --policy none or --policy reuseport")
	}
	if c.WorkerProtocol == pool.ProtocolNode && c.Policy != dispatcher.SchedRR {
		for i := range c.Listen {
			if as := c.Listen[i].As; as != 0 && !strings.HasSuffix(c.Listen[i].Address, fmt.Sprintf(":%d", as)) {
				return c.bad("listen", c.settings["listen"].values[i], fmt.Sprintf("has as=, and under --policy %s Node has the socket itself and sees that it has another port: name the port that the program asks for, or add --policy rr", c.Policy))
			}
		}
	}
	if len(c.Listen) == 0 && c.builtIn() {
		const builtInAddress = "127.0.0.1:8080"
		ln, err := parseListen(h, builtInAddress)
		if err != nil {
			return err
		}
		c.Listen = []dispatcher.ListenerConfig{ln}
		c.settings["listen"] = setValue{[]string{builtInAddress}, fromDefault}
	}
	if c.ReadyMin > c.Workers {
		return c.bad("ready-min", strconv.Itoa(c.ReadyMin), fmt.Sprintf("is more than --workers %d (from %s), so rrd would never be ready: lower it or raise --workers", c.Workers, c.origin("workers")))
	}
	if c.RespawnMin > c.RespawnMax {
		if c.explicit("respawn-max") {
			return c.bad("respawn-max", c.RespawnMax.String(), fmt.Sprintf("is below --respawn-min %v (from %s): raise it or lower that", c.RespawnMin, c.origin("respawn-min")))
		}
		c.RespawnMax = c.RespawnMin
	}
	if c.DrainSpread != off && c.DrainTimeout != off && c.DrainSpread > c.DrainTimeout {
		return c.bad("drain-spread", c.DrainSpread.String(), fmt.Sprintf("is longer than --drain-timeout %v (from %s): lower it or raise that", c.DrainTimeout, c.origin("drain-timeout")))
	}
	if err := c.checkRecycling(); err != nil {
		return err
	}
	return c.identity(h)
}

// rootWarning is not for who has named root: that may be meant.
const rootWarning = "--user: the workers run as root, as rrd does, so whoever takes one over has rrd and the machine: name another user, or root if that is meant"

// identity settles who the workers run as.
func (c *config) identity(h *host) error {
	if c.user == nil && h.euid == 0 {
		c.Warnings = append(c.Warnings, rootWarning)
	}
	if c.user == nil && c.group == nil {
		return nil
	}
	uid, gid := h.euid, os.Getegid()
	if c.user != nil {
		uid, gid = c.user.uid, c.user.gid
	}
	if c.group != nil {
		gid = *c.group
	}
	option := "user"
	if c.user == nil {
		option = "group"
	}
	value := c.settings[option].values[len(c.settings[option].values)-1]
	if gid < 0 {
		return c.bad("user", value, "is in no user database, so its group is unknown: add --group")
	}
	if h.euid != 0 && (uid != h.euid || gid != os.Getegid()) {
		return c.bad(option, value, fmt.Sprintf("needs rrd to be started as root, and it runs as uid %d", h.euid))
	}
	c.Credential = &pool.Credential{UID: uint32(uid), GID: uint32(gid)}
	if c.user != nil {
		c.Account = &pool.Account{Name: c.user.name, Home: c.user.home}
	}
	return nil
}

// bad is an error about the value of a setting that is only wrong beside others.
func (c *config) bad(name, value, problem string) error {
	return located(name, c.origin(name), badValue(value, "%s", problem))
}

// valueError says what is wrong with one value.
type valueError struct{ value, problem string }

func (e *valueError) Error() string { return abbreviated(fmt.Sprintf("%q", e.value)) + " " + e.problem }

// abbreviated keeps an error readable if its value is very long.
func abbreviated(text string) string {
	const most, head = 1024, 200
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:head], "") + fmt.Sprintf(`..." (%d bytes)`, len(text))
}

func badValue(value, problem string, args ...any) error {
	return &valueError{value, fmt.Sprintf(problem, args...)}
}

// located adds the option and the origin to what is wrong with a value.
func located(name, origin string, err error) error {
	return fmt.Errorf("--%s: %w (from %s)", name, err, origin)
}

// absolute makes a path that the user wrote independent of later changes of the
// directory.
func absolute(path string) (string, error) {
	if strings.ContainsRune(path, 0) {
		return "", badValue(path, "contains a NUL byte")
	}
	return filepath.Abs(path)
}
