package dispatcher

import (
	"io"
	"sync"
	"time"

	"rrd/handoff"
)

// close(2) of the last copy of a socket waits for as long as its SO_LINGER says,
// also where the socket does not block (inet_release and tcp_close in the
// kernel's net/ipv4), and the option is the worker's to set. So the loop never
// closes a socket that lingers: a few closers do. Who has set the option in good
// faith has the connection open, so our copy is not the last and nothing waits. If
// all closers wait, some worker means harm. A helper then takes the option away before it
// closes the socket.
const (
	closers     = 2
	lingerQueue = 64
)

// lingering is what is to be closed where nobody minds the wait.
type lingering struct {
	closers chan io.Closer
	done    sync.WaitGroup
	once    sync.Once // Close may be called again
}

// start starts the closers; stop ends them.
func (q *lingering) start() {
	q.closers = make(chan io.Closer, lingerQueue)
	for range closers {
		q.done.Go(q.run)
	}
}

func (q *lingering) run() {
	for c := range q.closers {
		_ = c.Close()
	}
}

// later closes c where waiting does no harm.
func (q *lingering) later(c io.Closer) {
	select {
	case q.closers <- c:
	default:
		go closeAlone(c) // not waited for: it may hang for as long as a worker likes
	}
}

func closeAlone(c io.Closer) { _ = c.Close() }

// closersLeft is how long stop waits for closers. One that waits in the kernel
// for a worker's SO_LINGER is left behind: the process is about to end.
const closersLeft = time.Second

// stop ends the closers once what is queued is closed.
func (q *lingering) stop() {
	q.once.Do(func() { close(q.closers) })
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
		case l.d.lingering.closers <- &d:
			return
		default:
			if l.aside.Discard(&d) {
				return
			}
		}
		s.fd = d
	}
	_ = s.fd.Close()
}
