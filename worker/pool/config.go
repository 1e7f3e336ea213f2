package pool

import (
	"context"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"rrd/handoff"
)

// MaxSize is the largest number of slots.
const MaxSize = 1024

// NoTimeout switches a time-out off; in a Config a zero duration means its default.
const NoTimeout time.Duration = -1

// Protocol says how a worker learns of its work.
type Protocol string

const (
	// ProtocolAuto gives a program a channel and, with SharesListeners, LISTEN_FDS
	// as well. Speaking on the channel makes it native.
	ProtocolAuto Protocol = "auto"
	// ProtocolNative is the protocol of docs/protocol.md.
	ProtocolNative Protocol = "rrd"
	// ProtocolNode is Node's own channel; to the pool a native worker.
	ProtocolNode Protocol = "node"
	// ProtocolListenFDs is the systemd convention, without a channel.
	ProtocolListenFDs Protocol = "listen-fds"
)

// Protocols lists every protocol, in the order shown to people.
func Protocols() []Protocol {
	return []Protocol{ProtocolAuto, ProtocolNative, ProtocolNode, ProtocolListenFDs}
}

// RestartPolicy says which exits nobody asked for are followed by a respawn.
type RestartPolicy string

const (
	// RestartAlways respawns after every exit.
	RestartAlways RestartPolicy = "always"
	// RestartOnFailure leaves a slot down after exit code 0.
	RestartOnFailure RestartPolicy = "on-failure"
	// RestartNever leaves a slot down after any exit.
	RestartNever RestartPolicy = "never"
)

// RestartPolicies lists every restart policy, in the order shown to people.
func RestartPolicies() []RestartPolicy {
	return []RestartPolicy{RestartAlways, RestartOnFailure, RestartNever}
}

// Worker names one process. ID counts the starts of this master and is never used
// again; the other fields are labels.
type Worker struct {
	ID         uint64
	Slot       int
	Generation int
	PID        int
	Started    time.Time
}

// Credential is the identity workers run under.
type Credential struct {
	UID, GID uint32
	// Groups are the supplementary groups; none means that all are dropped.
	Groups []uint32
}

// Account has the values of USER and LOGNAME, and of HOME, for the environment of workers.
// An empty field unsets its variables, because the master's values would be wrong.
type Account struct{ Name, Home string }

// Inherited is a listener for one spawn.
type Inherited struct {
	// Name goes into LISTEN_FDNAMES. One that systemd would not allow there (a
	// colon, a control character) becomes "unknown", as sd_listen_fds(3) does
	// for a nameless one.
	Name string
	File *os.File
}

// Config describes a pool. Zero fields mean the default given with them.
type Config struct {
	Size int // slots at start, 1 to MaxSize
	// Argv is the command. "{slot}" and "{generation}" are replaced in each word.
	// A name without a slash is looked up in the worker's own PATH.
	Argv []string
	// Dir is the working directory, entered with the worker's rights; "" is the
	// master's. "{slot}" and "{generation}" are replaced in it too.
	Dir string
	// Env is the environment that workers inherit (default os.Environ()), less
	// what belongs to rrd, systemd and Node. ExtraEnv is added to it, "{slot}"
	// and "{generation}" replaced in the values; RRD_ names are refused there.
	Env, ExtraEnv []string
	Credential    *Credential // nil: the master's
	Account       *Account    // nil: the environment names the master's user
	NoFile        uint64      // RLIMIT_NOFILE, soft and hard; 0: OriginalNoFile(), soft only
	// HelperPath is a program whose main calls ExecHelper when its first
	// argument is ExecHelperArg. Default: this program.
	HelperPath string
	// Pair makes the channel of a slot's worker: the master's end, and the
	// worker's, which the pool closes once it is inherited. Default: handoff.Pair.
	Pair       func(slot int) (handoff.Channel, *os.File, error)
	StopSignal syscall.Signal // SIGTERM; for workers that are not native
	Protocol   Protocol       // ProtocolAuto
	// SharesListeners says that workers accept for themselves (policies none and
	// reuseport): the listeners of Hooks.Listeners are given as LISTEN_FDS, and a
	// program that says nothing is taken for one that uses them.
	SharesListeners bool

	StartTimeout time.Duration // 30s, spawn to ready; may be NoTimeout
	ReadyAfter   time.Duration // 1s, ready without a word; NoTimeout: only by READY=1
	SilentAfter  time.Duration // 5s, to Hooks.Silent; may be NoTimeout
	DrainTimeout time.Duration // 30s; may be NoTimeout
	// DrainSpread is the time over which Stop tells the workers to drain, one after the
	// other, so that their clients do not all come back at once; 0 or less: at once. The
	// drain timeout counts from the first.
	DrainSpread  time.Duration
	StopTimeout  time.Duration // 5s, TERM to KILL; may be NoTimeout
	RespawnMin   time.Duration // 1s
	RespawnMax   time.Duration // 30s
	HealthyAfter time.Duration // 10s of readiness make a run healthy

	Restart RestartPolicy // RestartAlways
	Output  Output
	Hooks   Hooks
}

// Hooks tell what happens. All are optional. Except where said otherwise they are
// called one after the other by a goroutine of their own and in order: for one
// worker Started, then any of Silent, Ready, Replaced, Restored, Drain and Orphaned, then Exited. A
// successor may be Started before its predecessor has Exited. They may call the
// pool's methods. Run returns after the last hook did.
type Hooks struct {
	// Listeners gives duplicates of the listeners of a slot for one spawn, with
	// SharesListeners only. The pool closes them. Called concurrently, by the
	// goroutine of that start. An error fails the spawn.
	Listeners func(slot, generation int) ([]Inherited, error)
	// BeforeSpawn is asked before each spawn, by the goroutine of that start; an error
	// fails the spawn. ctx ends when it takes too long, or is not wanted any more.
	BeforeSpawn func(ctx context.Context, slot, generation int) error
	// MayResize refuses a new number of workers with an error, which Resize,
	// Grow and Shrink return. Called by their caller's goroutine.
	MayResize func(from, to int) error

	// Started gives the master's end of the channel away: whoever is called
	// owns it. It is nil for ProtocolListenFDs. Without this hook the pool closes it.
	Started func(w Worker, c handoff.Channel)
	// Ready: the worker may be given work.
	Ready func(w Worker)
	// Silent: a worker that has to speak on its channel has not, for SilentAfter.
	Silent func(w Worker)
	// Drain: the worker was asked to end. One with a channel gets TERM when Drained is
	// called, or at the drain timeout; call that at once for one that was never
	// given a connection. Any other, and one that is ready without having
	// spoken, has got its signal already.
	Drain func(w Worker)
	// Replaced: a successor works in the worker's place, and a roll keeps the worker. Give
	// it nothing new until Restored. If the roll succeeds, Drain follows.
	Replaced func(w Worker)
	// Restored: the roll has failed, and the worker has its place back.
	Restored func(w Worker)
	// Orphaned: the leader has ended and its group was killed, but the process
	// that speaks for it (SetReader) has not ended yet, and may go on
	// for good if it had left the group. Its slot goes on with a successor.
	Orphaned func(w Worker)
	// Exited: the process is reaped, its process group was killed before and its
	// reader has ended, so what it has not answered can be judged.
	Exited func(w Worker, x Exit)
	// SpawnFailed: no process was made. err wraps a *SpawnError when the command
	// could not be started.
	SpawnFailed func(slot int, err error)
	// Backoff: the slot is started again after d, or earlier if no worker is ready.
	Backoff func(slot int, d time.Duration)
}

// withDefaults returns c with its zero fields filled in, or what is wrong with it.
func (c Config) withDefaults() (Config, error) {
	if c.Size < 1 || c.Size > MaxSize {
		return c, fmt.Errorf("size %d: must be 1 to %d", c.Size, MaxSize)
	}
	if c.Env == nil {
		c.Env = os.Environ()
	}
	t := c.template()
	if err := t.check(); err != nil {
		return c, err
	}
	if c.HelperPath == "" {
		var err error
		if c.HelperPath, err = ownProgram(); err != nil {
			return c, fmt.Errorf("find own program: %w", err)
		}
	}
	if c.Pair == nil {
		c.Pair = nativePair
	}
	orDefault(&c.StopSignal, syscall.SIGTERM)
	orDefault(&c.Protocol, ProtocolAuto)
	orDefault(&c.Restart, RestartAlways)
	orDefault(&c.Output.Mode, OutputRaw)
	orDefault(&c.StartTimeout, 30*time.Second)
	orDefault(&c.ReadyAfter, time.Second)
	orDefault(&c.SilentAfter, 5*time.Second)
	orDefault(&c.DrainTimeout, 30*time.Second)
	orDefault(&c.StopTimeout, 5*time.Second)
	orDefault(&c.RespawnMin, time.Second)
	orDefault(&c.RespawnMax, max(30*time.Second, c.RespawnMin))
	orDefault(&c.HealthyAfter, 10*time.Second)
	return c, c.check()
}

func (c *Config) check() error {
	if c.RespawnMin < 0 || c.RespawnMax < c.RespawnMin {
		return fmt.Errorf("respawn pauses %v to %v: must be positive and in order", c.RespawnMin, c.RespawnMax)
	}
	if c.HealthyAfter < 0 {
		return fmt.Errorf("healthy after %v: must be positive", c.HealthyAfter)
	}
	if c.Protocol == ProtocolListenFDs && !c.SharesListeners {
		return fmt.Errorf("worker protocol %q: needs a policy under which workers accept themselves", c.Protocol)
	}
	if err := oneOf("worker protocol", c.Protocol, Protocols()); err != nil {
		return err
	}
	if err := oneOf("restart policy", c.Restart, RestartPolicies()); err != nil {
		return err
	}
	return c.Output.check()
}

func nativePair(int) (handoff.Channel, *os.File, error) {
	master, child, err := handoff.Pair()
	if err != nil {
		return nil, nil, err // not a nil *Conn in an interface
	}
	return master, child, nil
}

func orDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func oneOf[T ~string](what string, value T, legal []T) error {
	names := make([]string, len(legal))
	for i, l := range legal {
		if value == l {
			return nil
		}
		names[i] = string(l)
	}
	return fmt.Errorf("%s %q: must be one of %s", what, value, strings.Join(names, ", "))
}

// mayBeListenFDs says whether a worker that says nothing is ready all the same.
func (c *Config) mayBeListenFDs() bool {
	return c.SharesListeners && (c.Protocol == ProtocolAuto || c.Protocol == ProtocolListenFDs)
}

// hasChannel says whether workers get one.
func (c *Config) hasChannel() bool { return c.Protocol != ProtocolListenFDs }
