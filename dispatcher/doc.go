// Package dispatcher decides which worker gets which connection, and hands it
// over. It accepts, under round robin, every connection itself; it never starts
// or ends a process, and never reads or writes a byte of a connection.
//
// # The loop
//
// One goroutine on one locked thread owns the listeners, the channels and the
// table (loop.go). It works in turns: wait in the poller, read the workers'
// answers, run requests, act on deadlines, accept, pair, send. Methods of
// Dispatcher are requests to it; hooks are called for it by another goroutine,
// so nothing that a hook does can hold it up. What might wait (binding, counting
// handshakes, closing a socket that lingers) runs elsewhere and comes back as a
// request. A helper process (package aside) makes the calls that may wait for a lock of a
// worker, and its answer is an event of the poller.
//
// # Who owns a connection
//
//	accepted   the loop: it waits in the table
//	in flight  the loop still; the worker has a reference of its own, and may
//	           serve it from the moment that it reads the message
//	acked      the worker. Our copy is closed, or kept for a rescue until the
//	           worker says that it has begun (rescue.go)
//
// A connection comes back into its place in the queue when it is rejected, when
// the worker has not read it within Config.BusyAfter (recall), and when its
// worker is dead. Never otherwise: what a living process has read it may serve.
//
// # States of a worker
//
//	added --READY--> serving --DRAIN sent--> draining     any --Remove--> forgotten
//
// While it serves it may be late (owes an answer for longer than BusyAfter), full
// (its channel takes no more), at its limit (Config.MaxActive), unhealthy (its own
// check fails) or out of a listener (it rejected): each keeps it from being
// offered more, and each ends by something that the worker does.
//
// # What is promised
//
//   - At every instant that anyone looks, for each listener: accepted + rescued
//     equals acked + dropped + queued + in flight.
//   - A connection is served by one worker at most, and dropped only for a
//     DropReason that is counted.
//   - The oldest waiting connection goes first, to the worker that has been free
//     the longest; one that owes nothing goes before one that owes something.
//   - A worker that breaks the protocol is given up, and nobody else notices.
//   - Nothing is allocated for a connection, and no worker is looked at twice.
package dispatcher
