package dispatcher

// Policy says who accepts a connection. It is fixed for the life of a Dispatcher.
type Policy string

const (
	// SchedRR is round robin: the master accepts and hands each connection to
	// the worker that has been free the longest.
	SchedRR Policy = "rr"
	// SchedNone lends one listener to all workers; the kernel decides.
	SchedNone Policy = "none"
	// SchedReuseport gives each slot an SO_REUSEPORT listener of its own; the
	// kernel hashes.
	SchedReuseport Policy = "reuseport"
)

// Policies lists every policy that can be asked for, in the order shown to people.
func Policies() []Policy { return []Policy{SchedRR, SchedNone, SchedReuseport} }
