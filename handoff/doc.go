// Package handoff is the channel between the master and one worker: what a
// message looks like, how a descriptor travels in it, and which message is
// legal when. Both ends live here, so that an agreement between the two
// processes is one screen. docs/protocol.md tells the same in the same order,
// enough to write a worker in another language.
//
// # The two ends
//
// Conn is the master's end. It never blocks, never allocates while connections
// are handed off, and takes no descriptor from the worker: every byte it reads
// is hostile until it has passed Decode and Legal. Port is the worker's end. It
// waits in the runtime's poller and receives descriptors.
//
// # Ownership
//
// A descriptor has one owner, an FD. Handing off lends it: the kernel makes
// the worker a reference of its own, the master's FD stays open until the
// worker's answer arrives. So a connection whose worker dies unanswered is
// still whole.
//
// # Recall
//
// Conn keeps a close-on-exec duplicate of the worker's end. What the worker has
// not received yet can be received there instead, from a stopped or dead worker
// too. Because of the duplicate the death of the worker is never seen as an end
// of file here: it is the exit of the process that tells.
//
// # Not for
//
// Anything that is not a conversation between one master and its own child.
// There is no authentication: who holds the other end is the worker.
package handoff
