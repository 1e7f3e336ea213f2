// Package aside makes system calls that may wait for as long as a worker likes. A
// helper process makes them, so that the dispatch loop never waits.
//
// # Why
//
// The kernel takes the lock of a socket before it looks at a nonblocking flag. A
// worker that has the same socket holds that lock for as long as one of its own
// page faults lasts. It can fault for ever, with userfaultfd(2) or a file system of
// its own, and without malice when it swaps. A worker can also clear O_NONBLOCK,
// which belongs to the shared open file description.
//
// # Why a process
//
// A thread that hangs in the kernel keeps every descriptor of its process. After
// kill -9 of the master it would keep the listeners bound, and exec in place would
// wait for it (both tried on Linux 6.18). A helper has the descriptors of one
// request and no others.
//
// # The conversation
//
// One SOCK_SEQPACKET pair joins the loop and a helper. A Request names one call and
// lends a descriptor, which the kernel duplicates for the helper. The helper makes
// the call, closes the duplicate, and answers. A helper has one request at a time,
// so a helper that hangs holds up only that one. All others wait in the Client.
//
// # Ownership
//
// The loop owns the Client and calls every method of it. The Client owns the
// sockets to the helpers. The program starts and reaps the processes: it is asked
// by Config.Want and Config.Kill, and gives a socket with Add.
//
// # Other systems
//
// Only Linux has helpers. Elsewhere the Client makes the calls itself, at once: there
// nothing is recalled or rescued, and no filter exists.
package aside

import (
	"errors"
	"syscall"
	"time"

	"rrd/handoff"
)

// Arg is the hidden argument that makes a program with this package a helper. The
// helper's end of the socket is descriptor 3.
const Arg = "__rrd-aside"

// Call names a system call, or a few of them.
type Call uint8

// The calls.
const (
	// Recall receives what lies at the worker's end of a channel. Each message goes
	// to Request.Part.
	Recall Call = iota + 1
	// Conn asks what was read from and written to a TCP connection: Answer.Conn.
	Conn
	// Queue asks for the accept queue of a listening TCP socket: Answer.Queue.
	Queue
	// Accept makes a listening socket nonblocking and accepts at most Request.Arg
	// connections: Answer.FDs.
	Accept
	// Listen calls listen(2) with Request.Arg as the backlog.
	Listen
	// RefuseNew attaches the filter that drops new clients of a TCP listener.
	RefuseNew
	// DetachFilter removes the socket filter. ENOENT says that there was none.
	DetachFilter
	// DetachReuseport removes the program that chooses a socket of a reuseport
	// group. ENOENT says that there was none, EINVAL that the socket has no group.
	DetachReuseport
	// Reuseport sets SO_REUSEPORT to Request.Arg.
	Reuseport
	// Shutdown calls shutdown(2) for reading: a listening socket listens no more, for
	// all processes that have it.
	Shutdown
	// discard closes connections that may linger. Only Client.Discard asks for it.
	discard
	lastCall = discard
)

// MaxAccept is how many connections one Accept may bring.
const MaxAccept = 16

// Request is one call. Ask keeps it until Done was called.
type Request struct {
	Call Call
	// FD is the descriptor for the call. It stays the caller's and must stay open
	// until Done is called or Forget was.
	FD handoff.FD
	// Arg is the further argument of the call.
	Arg int
	// Given makes the Client the owner of FD. It closes FD when a helper has its
	// duplicate, or the request is given up.
	Given bool
	// Key names the worker or the socket that can hold the call up. At most one
	// request of a key is with a helper, so one worker hangs one helper.
	Key uint64
	// Part is called with each message that a Recall brings. The message is good
	// during the call only.
	Part func(msg []byte)
	// Done is called once, on the loop, with the outcome. It may be nil.
	Done func(*Answer)

	id       uint64
	deadline int64
	tries    int
}

// Answer is the outcome of a Request.
type Answer struct {
	// Known is set if the call was made. Otherwise no answer came in time, or no helper
	// could be started.
	Known bool
	// Errno is the error of the call; 0: none.
	Errno syscall.Errno
	// FDs are accepted connections. The handler of the answer owns them.
	FDs   []handoff.FD
	conn  ConnFacts
	queue QueueFacts
}

// ConnFacts are the counts of bytes read from and written to a TCP connection.
type ConnFacts struct {
	State    uint8  // include/net/tcp_states.h
	Received uint64 // bytes from the client, a FIN counts as one
	Unread   uint32 // of those that no process has read
	Sent     uint64 // bytes to the client
	Unsent   uint32 // written by a process and not sent
}

// QueueFacts are the counts of clients that wait to be accepted.
type QueueFacts struct {
	Length, Limit uint32
	Drops         uint64 // SYNs and connections that the kernel dropped so far
}

// Conn returns the result of a Conn call. It reports false if the result is not known.
func (a *Answer) Conn() (ConnFacts, bool) { return a.conn, a.Known && a.Errno == 0 }

// Queue returns the result of a Queue call. It reports false if the result is not known.
func (a *Answer) Queue() (QueueFacts, bool) { return a.queue, a.Known && a.Errno == 0 }

func (r *Request) done(a *Answer) {
	if r.Done != nil {
		r.Done(a)
		return
	}
	for i := range a.FDs {
		_ = a.FDs[i].Close()
	}
}

// Config has the functions and limits of a Client. Times are nanoseconds of the loop's
// clock.
type Config struct {
	// Limit is how long an answer may take; then it counts as unknown.
	Limit func() time.Duration
	// Want asks for one more helper. Add or Failed answers it.
	Want func()
	// Kill ends a helper that hangs or sends nonsense.
	Kill func(pid int)
	// Watch and Unwatch tell the poller about a helper's socket.
	Watch   func(fd int, token uint64) error
	Unwatch func(fd int)
}

// Process is a helper as others see it.
type Process struct {
	PID int
	// Out is the age of its request; 0: it has none.
	Out time.Duration
}

func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	errno := syscall.EIO
	_ = errors.As(err, &errno)
	return errno
}
