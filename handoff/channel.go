package handoff

// Channel is the master's end of a conversation with one worker, whatever its
// dialect: *Conn speaks rrd's own, *node.Conn that of Node's cluster. Both say
// the same with the same frames; the documentation of Conn's methods holds for
// all. Nothing here blocks.
type Channel interface {
	// Traits tell what to expect of the worker.
	Traits() Traits
	// Num lends the number of the descriptor, for a poller.
	Num() int
	// Add puts a handoff at the end of the batch, Flush sends the batch.
	Add(seq uint64, listener, deaths uint32, d FD) (full bool)
	Flush() error
	// Send sends any other frame. What a dialect has no word for is not sent.
	Send(f *Frame, share FD) error
	// Receive reads for Next, which returns what the worker said frame by frame.
	Receive() error
	Next(f *Frame) (bool, error)
	// Unread lends the worker's end if it holds what the worker has not received.
	Unread() (end FD, some bool)
	// Close closes what the channel owns.
	Close() error
}

// Traits are what the workers of one dialect do not do, or do otherwise, than
// those that speak rrd's own protocol, for which all are false.
type Traits struct {
	// NoPong: it does not answer PING, so only what it owes tells whether it
	// hangs.
	NoPong bool
	// NoAgain: after a REJECT it does not say when it can take more. It is tried
	// again after a pause.
	NoAgain bool
	// NoClosed: it does not say when a connection is closed, so nobody knows how
	// many it has.
	NoClosed bool
	// HangsUp: it ends the conversation by closing its end, and then ends by
	// itself; BYE says before that it is leaving of its own accord.
	HangsUp bool
	// Untouched: what it has not answered its program has not seen, so its death is not
	// put down to that. It may have all the same, where the answer waits in the process
	// behind a message of the program's own: whether somebody has read or written tells.
	Untouched bool
}
