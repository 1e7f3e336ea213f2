package dispatcher

import (
	"os"
	"time"

	"github.com/rs/zerolog"

	"rrd/handoff"
)

// Config is what a Dispatcher is made with. A zero field means its default.
type Config struct {
	// Policy is fixed for the Dispatcher's life; default SchedRR.
	Policy Policy
	// QueueLimit is how many accepted connections may wait, over all listeners;
	// when it is reached nothing is accepted and the kernel's backlogs are the
	// waiting room. Default 4096.
	QueueLimit int
	// QueueTimeout drops what has waited longer; 0: never.
	QueueTimeout time.Duration
	// Window is how many answers a worker may owe; default 4.
	Window int
	// BusyAfter: a worker that owes an answer for longer gets nothing more until
	// it answers, and what it has not read yet goes to others; default 50 ms.
	BusyAfter time.Duration
	// HangTimeout: a worker that owes an answer for longer is reported to
	// Hooks.Hung; 0: never.
	HangTimeout time.Duration
	// RescueLimit is how many copies of acked, untouched connections are kept at
	// most; 0: none, nothing is rescued.
	RescueLimit int
	// MaxAsked bounds the sockets of the listeners that workers ask for; 0: no limit.
	MaxAsked int
	// MaxActive is how many connections a worker that reports closes may have
	// open; 0: no limit.
	MaxActive int
	// DrainTimeout is told to the workers, for the day the master dies.
	DrainTimeout time.Duration
	// TicketRotate is the time between changes of the keys for TLS session tickets;
	// 0: workers get no keys.
	TicketRotate time.Duration
	// Configured says that the program has listeners of its own (--listen): what
	// a worker asks for must then be one of them.
	Configured bool
	// NonblockingShared leaves shared sockets O_NONBLOCK, as Node's workers need
	// them. Else they block, as programs expect that take them by LISTEN_FDS.
	NonblockingShared bool
	// Hooks are called one after another from a goroutine of the Dispatcher's
	// own, never from the loop; they may call the Dispatcher.
	Hooks Hooks
	// Log gets what has no caller to return it to.
	Log zerolog.Logger
}

func (c Config) withDefaults() Config {
	if c.Policy == "" {
		c.Policy = SchedRR
	}
	if c.QueueLimit == 0 {
		c.QueueLimit = 4096
	}
	if c.Window == 0 {
		c.Window = 4
	}
	if c.BusyAfter == 0 {
		c.BusyAfter = 50 * time.Millisecond
	}
	return c
}

// FDBudget is how many descriptors the master needs at the most: what waits,
// what is in flight (ours and a successor's beside a draining worker), the
// processes themselves, the listeners, kept copies, and 64 for the rest, of which the
// sockets and handles of MaxHelpers helpers take 16.
func FDBudget(policy Policy, queueLimit, workers, window, listeners, rescueLimit int) int {
	if policy == SchedReuseport {
		listeners *= workers
	}
	return queueLimit + 2*workers*(window+6) + listeners + rescueLimit + 64
}

// Hooks tell what happens. All are optional.
type Hooks struct {
	// Spoke: the first frame of a worker; it is a native one.
	Spoke func(worker uint64)
	// Ready: it can be given connections.
	Ready func(worker uint64)
	// Drained: after Drain, its last connection is closed, or it never had one.
	Drained func(worker uint64)
	// Broke: it broke the protocol, or closed its channel, and is to be killed.
	// Its unanswered connections stay held until Remove.
	Broke func(worker uint64, reason string)
	// HungUp: it has closed its channel, which in its protocol is no fault, and
	// is to end by itself. Its unanswered connections stay held until Remove.
	HungUp func(worker uint64)
	// Leaves: it is leaving of its own accord, and hangs up next.
	Leaves func(worker uint64)
	// Reader tells, before Ready, which process said READY: not always the one
	// that was started.
	Reader func(worker uint64, pid int)
	// Health: the program's own check fails, or passes again.
	Health func(worker uint64, ok bool)
	// TicketsRotated: the keys of TLS session tickets changed, and were sent to so many
	// workers.
	TicketsRotated func(serial uint64, workers int)
	// Hung: it has owed an answer for longer than HangTimeout and is to be killed.
	Hung func(worker uint64, owed time.Duration)
	// Opened and Closed tell of listeners.
	Opened func(ListenerInfo)
	Closed func(ListenerInfo)
	// Dropped tells of connections dropped since the last call, at most once a
	// second for each listener and reason.
	Dropped func(listener string, reason DropReason, n uint64)
	// Waiting tells at most once a second that connections wait, and why.
	Waiting func(listener string, n int, why string)
	// AcceptPaused: accepting stops for a moment, for that error.
	AcceptPaused func(listener string, err error, pause time.Duration)
	// Refused: a worker asked for a listener and did not get it.
	Refused func(worker uint64, network, address string, err error)
	// HelperWanted: the loop needs a helper for a call that may wait. Start a helper, and
	// pass its socket to AddHelper.
	HelperWanted func()
	// HelperUseless: the helper hangs, or sends nonsense. Kill it.
	HelperUseless func(pid int)
	// Ignored: clients wait in a shared listener's queue and nobody accepts them.
	Ignored func(ListenerInfo)
	// Rearmed: clients could not connect to a listener that was open, and can again. At
	// most once a second for each listener.
	Rearmed func(Rearm)
	// Filtered: a worker had attached a filter to a shared listener, and it was removed. At
	// most once a second for each listener and kind.
	Filtered func(Filter)
	// Unreachable: no client can connect to a listener, and rrd could not make it work
	// again.
	Unreachable func(ListenerInfo, error)
}

// ListenerInfo tells which listener is meant.
type ListenerInfo struct {
	// Name is the label.
	Name string
	// Network and Address are as bound: port 0 resolved.
	Network, Address string
	// Asked is set if a worker asked for it.
	Asked bool
	// Shared is set if workers accept by themselves.
	Shared bool
	// Backlog as asked; 0: the system's maximum.
	Backlog int
	// Kept is set in the answer of Listen if the socket was one kept for it.
	Kept bool
}

// Worker is a process to be given connections.
type Worker struct {
	// ID names the process for the Dispatcher's life; never used twice.
	ID uint64
	// Slot labels its counts.
	Slot int
	// Channel is the master's end. Add takes ownership.
	Channel handoff.Channel
	// Rights are the worker's, for sockets that it asks for; nil: the master's.
	Rights *Rights
	// Hidden are listeners of the configuration that it is not given: in a roll
	// between two lists of them, those that are only in the other generation's.
	Hidden []ListenerConfig
}

// Rights are what a worker's process may do.
type Rights struct {
	UID, GID int
	Groups   []int
}

// differ reports whether r differ from the master's own rights; nil means the master's.
func (r *Rights) differ() bool {
	return r != nil && (r.UID != os.Geteuid() || r.GID != os.Getegid())
}

// ListenerConfig describes one listener of --listen.
type ListenerConfig struct {
	// Name labels the listener in metrics and logs and is what a worker may ask
	// for: NAME of NAME=ADDR, else the address as it was given, never the
	// resolved port.
	Name string
	// Network is "tcp" (dual stack), "tcp4", "tcp6", "unix", "udp", "udp4",
	// "udp6" or "fd".
	Network string
	// Address is host:port, a path, or for "fd" the number or activation name.
	Address string
	// As is the port that programs ask for when they mean this listener; 0: its
	// own.
	As int
	// Backlog is the listen(2) backlog; 0 means the system's maximum.
	Backlog int
	// Mode is the mode of a unix socket file; nil means 0777 less the umask.
	Mode *os.FileMode
	// UID and GID own a unix socket file; -1 leaves them alone.
	UID, GID int
	// File is the inherited socket of an "fd" listener; of others one that was kept for
	// it while there was no master, which is used in place of a new one if it is of the
	// same address. Listen takes ownership.
	File *os.File
}
