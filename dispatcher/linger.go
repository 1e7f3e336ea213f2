package dispatcher

import (
	"sync"
	"time"

	"rrd/handoff"
)

// close(2) of the last copy of a socket waits for as long as its SO_LINGER says,
// also where the socket does not block (inet_release and tcp_close in the
// kernel's net/ipv4), and the option is the worker's to set. So the loop never
// closes a socket that lingers: a few closers do. Who has set the option in good
// faith has the connection open, so our copy is not the last and nothing waits. If
// all closers wait, some worker means harm: then the option goes before the
// socket does.
const (
	closers     = 2
	lingerQueue = 64
)

// lingering is what is to be closed where nobody minds the wait.
type lingering struct {
	fds  chan handoff.FD
	done sync.WaitGroup
	once sync.Once // Close may be called again
}

// start starts the closers; stop ends them.
func (q *lingering) start() {
	q.fds = make(chan handoff.FD, lingerQueue)
	for range closers {
		q.done.Go(q.run)
	}
}

func (q *lingering) run() {
	for d := range q.fds {
		_ = d.Close()
	}
}

// closersLeft is how long stop waits for closers. One that waits in the kernel
// for a worker's SO_LINGER is left behind: the process is about to end.
const closersLeft = time.Second

// stop ends the closers once what is queued is closed.
func (q *lingering) stop() {
	q.once.Do(func() { close(q.fds) })
	ended := make(chan struct{})
	go q.wait(ended) // ends with the closers
	select {
	case <-ended:
	case <-time.After(closersLeft):
	}
}

func (q *lingering) wait(ended chan<- struct{}) {
	q.done.Wait()
	close(ended)
}

// closeConn closes our copy of a connection without ever waiting.
func (l *loop) closeConn(s *sock) {
	if lingers(s.fd) {
		d := handoff.Own(s.fd.Release())
		select {
		case l.d.lingering.fds <- d:
			return
		default:
			s.fd = d
			doNotLinger(d)
		}
	}
	_ = s.fd.Close()
}
