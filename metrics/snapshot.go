package metrics

import (
	"context"
	"encoding/json"
	"time"
)

// Counts holds one count per reason, cause or the like.
type Counts map[string]uint64

// Total is the sum over all reasons.
func (c Counts) Total() uint64 {
	var n uint64
	for _, v := range c {
		n += v
	}
	return n
}

// Source makes one consistent copy of all counts. It must return when ctx is
// done at the latest. An error means that the dispatcher gave no copy in time;
// a Snapshot returned beside an error is an older one, and is shown as such.
// The Snapshot is read, never written, after Source has returned it.
type Source func(ctx context.Context) (*Snapshot, error)

// Snapshot is one copy of everything there is to see of a master. Counters
// start at 0 with the master and never go back, also where the process that
// they speak of was replaced.
type Snapshot struct {
	// Time is when the copy was made.
	Time time.Time `json:"time"`
	// Policy is who accepts: "rr", "none" or "reuseport", and PolicyReason in a
	// few words why, where the user left the choice to rrd.
	Policy       string `json:"policy"`
	PolicyReason string `json:"policy_reason,omitempty"`
	// Draining is set while the master is out of rotation: it is a lame duck, or it was
	// asked to stop.
	Draining bool `json:"draining"`
	// QueueLimit is how many accepted connections may wait, over all listeners.
	QueueLimit int `json:"queue_limit"`
	// Reloads is what became of reloads of the configuration.
	Reloads Reloads `json:"reloads"`
	// Upgrades is what became of upgrades in place.
	Upgrades Upgrades `json:"upgrades"`
	// Control counts what was asked over the control socket; nil where there is none.
	Control []ControlRequests `json:"control_requests,omitempty"`
	// Desired is the number of slots that should have a ready worker.
	Desired int `json:"workers_desired"`
	// ReadyRule is the rule in force; see Ready.
	ReadyRule ReadyRule `json:"-"`
	// OldestWait is the age of the oldest waiting connection, from accept on; 0 if no
	// connection waits.
	OldestWait time.Duration `json:"-"`
	// LastQueueTimeout is when a connection was last dropped for queue_timeout; zero: never.
	LastQueueTimeout time.Time `json:"-"`

	Listeners []Listener `json:"listeners"`
	// Workers has one entry per slot, in order of slots: the newest process of
	// the slot, or its emptiness. Slots that were removed stay for their
	// counters, with an empty State.
	Workers []Worker `json:"workers"`
	// Helpers are the processes that make calls for the dispatcher which may wait.
	Helpers []Helper `json:"helpers,omitempty"`
	// Redispatches counts by reason, see RedispatchReasons.
	Redispatches Counts `json:"redispatches,omitempty"`

	// Dispatch is accept to ack, QueueWait accept to first send, HandoffAck
	// send to answer: all over DurationBounds. WorkerStart is spawn to ready,
	// over StartBounds. The first three are absent (no counts) where the master
	// does not accept.
	Dispatch    Histogram `json:"dispatch_duration"`
	QueueWait   Histogram `json:"queue_wait_duration"`
	HandoffAck  Histogram `json:"handoff_ack_duration"`
	WorkerStart Histogram `json:"worker_start_duration"`
}

// Reloads counts them. The start counts as a success in LastSuccess only.
type Reloads struct {
	OK          uint64    `json:"ok"`
	Failed      uint64    `json:"failed"`
	LastSuccess time.Time `json:"last_success,omitzero"`
	// LastFailure says why the last one failed; "" if it did not.
	LastFailure string `json:"last_failure,omitempty"`
}

// Helper is one helper process.
type Helper struct {
	PID int `json:"pid"`
	// Busy is the age of its call in seconds; 0: no call is under way.
	Busy float64 `json:"busy_s,omitempty"`
}

// Upgrades counts upgrades in place.
type Upgrades struct {
	OK     uint64 `json:"ok"`
	Failed uint64 `json:"failed"`
	// LastFailure says why the last one failed; "" if it did not.
	LastFailure string `json:"last_failure,omitempty"`
}

// ControlRequests counts the requests of one command over the control socket, by
// result: see ControlResults.
type ControlRequests struct {
	Command string `json:"command"`
	Result  string `json:"result"`
	Count   uint64 `json:"count"`
}

// Listener is one listener of --listen, or one that a worker asked for.
type Listener struct {
	// Name labels it: the NAME, or the address as it was given.
	Name string `json:"name"`
	// Network and Address are the real ones, with the port the kernel chose.
	Network string `json:"network,omitempty"`
	Address string `json:"address,omitempty"`
	// Shared listeners are accepted from by the workers themselves; nothing is
	// known of their connections but the kernel's queue.
	Shared bool `json:"shared"`

	Accepted uint64 `json:"accepted"`
	Acked    uint64 `json:"acked"`
	// Rescued counts connections that were acked, then taken back untouched
	// from a dead worker.
	Rescued uint64 `json:"rescued"`
	// Dropped counts by reason, see DropReasons.
	Dropped  Counts `json:"dropped,omitempty"`
	Queued   int    `json:"queued"`
	InFlight int    `json:"in_flight"`

	// AcceptErrors and Pauses count by reason, see AcceptErrorReasons and
	// PauseReasons. Paused: nothing is accepted at the moment.
	AcceptErrors Counts `json:"accept_errors,omitempty"`
	Pauses       Counts `json:"pauses,omitempty"`
	Paused       bool   `json:"paused"`

	// Filters counts, by kind, the filters of workers that rrd has removed from a shared
	// socket: see FilterKinds.
	Filters Counts `json:"filters,omitempty"`
	// Rearmed counts how often rrd made it work again after clients could not connect.
	// Unreachable is the reason why no client can connect now; "" if they can.
	Rearmed     uint64 `json:"rearmed,omitempty"`
	Unreachable string `json:"unreachable,omitempty"`

	// KernelQueue is what the kernel holds for accept(2); nil where the system
	// does not say (only Linux does, and only for TCP).
	KernelQueue *KernelQueue `json:"kernel_queue,omitempty"`
}

// KernelQueue is the kernel's accept queue of a listener: tcpi_unacked and
// tcpi_sacked of TCP_INFO on a listening socket (tcp(7), net/ipv4/tcp.c).
type KernelQueue struct {
	Length int `json:"length"`
	Limit  int `json:"limit"`
	// Drops is sk_drops of the listening sockets (SO_MEMINFO): what overflowed.
	Drops uint64 `json:"drops"`
}

// Law says whether every connection of one listener is accounted for.
type Law struct {
	Holds bool `json:"holds"`
	// In is accepted + rescued, Out acked + dropped + queued + in flight.
	In  uint64 `json:"in"`
	Out uint64 `json:"out"`
}

// Law checks accepted + rescued = acked + dropped + queued + in flight. It
// trivially holds for a shared listener.
func (l *Listener) Law() Law {
	in := l.Accepted + l.Rescued
	out := l.Acked + l.Dropped.Total() + uint64(l.Queued) + uint64(l.InFlight)
	return Law{Holds: in == out, In: in, Out: out}
}

// Worker is one slot. The counts are of the slot, over all its processes; PID,
// Generation, Started and State are those of its newest process.
type Worker struct {
	Slot       int       `json:"slot"`
	PID        int       `json:"pid,omitempty"` // 0: no process
	Generation int       `json:"generation,omitempty"`
	State      string    `json:"state,omitempty"` // see WorkerStates
	Started    time.Time `json:"started,omitzero"`
	// Late is set while it gets nothing more because it did not answer in time.
	Late bool `json:"late,omitempty"`
	// LateFor is how long its newest process has been late; 0: it is not late.
	LateFor time.Duration `json:"-"`

	Handoffs   uint64 `json:"handoffs"`
	Acks       uint64 `json:"acks"`
	Rejections Counts `json:"rejections,omitempty"` // see RejectReasons
	Failures   Counts `json:"failures,omitempty"`   // see FailureReasons
	InFlight   int    `json:"in_flight"`
	// Active is how many acked connections it still serves; nil where the
	// worker does not report it.
	Active         *int   `json:"connections_active,omitempty"`
	ProtocolErrors Counts `json:"protocol_errors,omitempty"`

	Starts Counts `json:"starts,omitempty"` // see StartReasons
	Exits  Counts `json:"exits,omitempty"`  // see ExitCauses
	// Heartbeat is when it last said something on its channel; zero: never.
	Heartbeat time.Time `json:"heartbeat,omitzero"`
	// Backoff is the pause before the next start, 0 when there is none.
	Backoff time.Duration `json:"-"`
}

// MarshalJSON writes durations in seconds, as every time in metrics and logs.
func (w Worker) MarshalJSON() ([]byte, error) {
	type plain Worker // without this method
	return json.Marshal(struct {
		plain
		LateFor float64 `json:"late_seconds,omitempty"`
		Backoff float64 `json:"respawn_backoff_seconds"`
	}{plain(w), w.LateFor.Seconds(), w.Backoff.Seconds()})
}

// Reasons, causes and states that are exposed as zero before they first happen.
// Others may appear in a Snapshot and are exposed as they come.
var (
	DropReasons        = []string{"queue_timeout", "client_gone", "poison", "listener_closed", "shutdown", "internal"}
	AcceptErrorReasons = []string{"emfile", "enfile", "nobufs", "nomem", "aborted", "other"}
	PauseReasons       = []string{"fd_limit", "queue_full", "drain"}
	RejectReasons      = []string{"busy", "draining", "fd_limit", "other"}
	FailureReasons     = []string{"would_block", "peer_closed", "too_many_refs", "ack_timeout", "worker_exit", "other"}
	RedispatchReasons  = []string{"rejected", "worker_exit", "send_error", "recalled", "rescued"}
	ControlResults     = []string{"ok", "error", "denied"}
	StartReasons       = []string{"initial", "scale", "crash", "reload", "recycle"}
	ExitCauses         = []string{"requested", "code", "signal", "oom", "killed_stuck"}
	// WorkerStates add up to the number of slots. "down" is a slot that its
	// restart policy leaves empty.
	// "unhealthy" one whose own health check fails.
	FilterKinds  = []string{"socket", "reuseport"}
	WorkerStates = []string{"starting", "ready", StateUnhealthy, "draining", "stuck", "backoff", "down"}
)

// StateUnhealthy is the state of a ready worker whose own health check fails.
const StateUnhealthy = "unhealthy"

// readyState is the one state that new connections can be given to.
const readyState = "ready"
