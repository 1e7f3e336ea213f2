package dispatcher

import (
	"time"

	"rrd/handoff"
)

// DropReason says why a connection was closed without being served.
type DropReason uint8

// The reasons. A full queue is none: it stops accepting.
const (
	DropQueueTimeout   DropReason = iota // waited longer than QueueTimeout
	DropClientGone                       // reset by the client while it waited
	DropPoison                           // three workers died with it
	DropListenerClosed                   // its listener's last user left
	DropShutdown                         // the master stopped first
	DropInternal
	NumDropReasons
)

func (r DropReason) String() string {
	return [...]string{"queue_timeout", "client_gone", "poison", "listener_closed", "shutdown", "internal"}[r]
}

// AcceptError classes an error of accept(2).
type AcceptError uint8

// The classes. The first four pause accepting.
const (
	AcceptEMFILE AcceptError = iota
	AcceptENFILE
	AcceptNobufs
	AcceptNomem
	AcceptAborted
	AcceptOther
	NumAcceptErrors
)

func (e AcceptError) String() string {
	return [...]string{"emfile", "enfile", "nobufs", "nomem", "aborted", "other"}[e]
}

// PauseReason says why accepting stopped for a while.
type PauseReason uint8

// The reasons.
const (
	PauseFDLimit PauseReason = iota
	PauseQueueFull
	PauseDrain
	NumPauseReasons
)

func (r PauseReason) String() string { return [...]string{"fd_limit", "queue_full", "drain"}[r] }

// Failure says why a handoff did not end in an answer.
type Failure uint8

// The failures.
const (
	FailWouldBlock Failure = iota
	FailPeerClosed
	FailTooManyRefs
	FailAckTimeout // busy for longer than BusyAfter: taken back
	FailWorkerExit
	FailOther
	NumFailures
)

func (f Failure) String() string {
	return [...]string{"would_block", "peer_closed", "too_many_refs", "ack_timeout", "worker_exit", "other"}[f]
}

// Redispatch says why a connection was offered again.
type Redispatch uint8

// The reasons.
const (
	RedispatchRejected Redispatch = iota
	RedispatchWorkerExit
	RedispatchSendError
	RedispatchRecalled
	RedispatchRescued
	NumRedispatches
)

func (r Redispatch) String() string {
	return [...]string{"rejected", "worker_exit", "send_error", "recalled", "rescued"}[r]
}

// Bounds are the upper bounds of a Histogram's buckets: 10 us to 10 s.
var Bounds = [...]time.Duration{
	10 * time.Microsecond, 25 * time.Microsecond, 50 * time.Microsecond,
	100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
}

// Histogram counts durations by Bounds; the last bucket holds what is above.
type Histogram struct {
	Buckets [len(Bounds) + 1]uint64
	Count   uint64
	Sum     time.Duration
}

func (h *Histogram) observe(d int64) {
	i := 0
	for i < len(Bounds) && d > int64(Bounds[i]) {
		i++
	}
	h.Buckets[i]++
	h.Count++
	h.Sum += time.Duration(d)
}

// ListenerStats are the counts of one listener's name. At every instant that
// they are copied, Accepted + Rescued = Acked + the sum of Dropped + Queued +
// InFlight.
type ListenerStats struct {
	ListenerInfo
	Open                     bool
	Accepted, Acked, Rescued uint64
	Dropped                  [NumDropReasons]uint64
	Queued, InFlight         int
	AcceptErrors             [NumAcceptErrors]uint64
	Pauses                   [NumPauseReasons]uint64
	Paused                   bool
	KernelQueue, KernelLimit uint32 // of the listening TCP sockets, summed
	KernelKnown              bool
	KernelDrops              uint64 // of all sockets that it has had
	// Filters counts the filters of workers that rrd has removed from the sockets.
	Filters [NumFilterKinds]uint64
	// Rearmed counts how often rrd made it work again after clients could not connect.
	Rearmed uint64
	// Unreachable is the reason why no client can connect now; "" if they can.
	Unreachable string
}

// Lawful reports whether the law holds, and what is missing if not.
func (s *ListenerStats) Lawful() (missing int64, ok bool) {
	out := s.Acked + uint64(s.Queued) + uint64(s.InFlight)
	for _, n := range s.Dropped {
		out += n
	}
	missing = int64(s.Accepted + s.Rescued - out)
	return missing, missing == 0
}

// SlotStats are the counts of one slot over all its processes.
type SlotStats struct {
	Slot           int
	Handoffs, Acks uint64
	Rejects        [handoff.ReasonOther + 1]uint64 // by handoff.Reason; index 0 is unused
	Failures       [NumFailures]uint64
	ProtocolErrors uint64
	InFlight       int
	// Active is how many acked connections are open, of processes that report
	// closes.
	Active int64
	// Lost is how many acked connections were open when their process ended, and
	// could not be rescued.
	Lost     uint64
	Reported bool // some process has reported closes
}

// Stats is one copy of everything the loop counts, made between two turns.
type Stats struct {
	Policy       Policy
	QueueLimit   int
	Draining     bool
	Listeners    []ListenerStats
	Slots        []SlotStats
	Redispatches [NumRedispatches]uint64
	Processes    []ProcessStats // by slot
	Helpers      []HelperStats
	// OldestWait is the age, from accept on, of the oldest waiting connection; 0: none
	// waits.
	OldestWait time.Duration
	// LastQueueTimeout is when a connection was last dropped for queue_timeout; zero: never.
	LastQueueTimeout time.Time
	// Dispatch is accept to ack, QueueWait accept to first send, HandoffAck send
	// to answer.
	Dispatch, QueueWait, HandoffAck Histogram
}
