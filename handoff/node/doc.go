// Package node is the master's end of a channel to an unmodified Node.js cluster
// worker: rrd in the place of Node's own cluster primary. Conn says with the
// words of Node's cluster what the frames of package handoff mean, and is a
// handoff.Channel like the master's end of rrd's own protocol.
//
// # The words
//
// A worker is a node process that finds NODE_CHANNEL_FD, NODE_UNIQUE_ID and
// NODE_CHANNEL_SERIALIZATION_MODE=json in its environment. Each message is one
// line of JSON. A message with a descriptor is a NODE_HANDLE, and the worker says
// NODE_HANDLE_ACK when the descriptor has arrived, which is not yet the answer to
// the handoff: that is the "accepted" that follows. What was tried out with Node
// 16 to 26 is said beside the code that relies on it; there is no document of
// Node's that promises any of it.
//
//	frame              the worker's words          the master's words
//	Listen             act queryServer
//	Listening                                      the answer to it
//	Ready              act listening, the first
//	Handoff                                        act newconn
//	Ack, Reject        accepted true, false
//	Leave              act close
//	Drain                                          act disconnect
//	Bye                act exitedAfterDisconnect
//
// Conn itself answers what asks for no decision: the worker's own handles, its
// request to leave, what it asks about connections that it has sent away. What it
// does not know it ignores, as Node does.
//
// # Ownership
//
// Conn owns the master's end, and a duplicate of a shared socket until the worker
// has acknowledged it. Descriptors handed off stay the caller's. Descriptors that
// the worker sends (process.send with a socket) are acknowledged and never
// installed: the kernel closes them. No duplicate of the worker's end is kept, so
// that its closing is seen; nothing can be recalled.
//
// # Trust
//
// Every byte from the worker is judged before it is used, memory is bounded
// whatever comes, and no Ack or Reject is made up for what is not under way.
// Frame.Data may hold the keys of TLS tickets: it is in no error and no message.
//
// # Not for
//
// Talking to the program: process.send has nobody to talk to here. Nor for other
// runtimes that imitate Node's cluster: their words differ.
package node
