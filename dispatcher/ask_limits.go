package dispatcher

import (
	"fmt"
	"syscall"
)

// Workers open sockets in the master by asking. These limits leave the queue and the
// handoffs the descriptors that they need. Beyond them a LISTEN fails with EMFILE, as
// it would in a program that has used up its own limit, and the worker lives.

// maxListens is how many listeners a worker may have or wait for.
const maxListens = 1024

var (
	errTooManyListens = fmt.Errorf("this worker has %d listeners, which is the limit: close some: %w", maxListens, syscall.EMFILE)
	errNoDescriptor   = fmt.Errorf("rrd has no descriptor left for another listener: close some, or raise rrd's limit of open files: %w", syscall.EMFILE)
)

// mayAsk reports whether the sockets that workers have asked for are within MaxAsked.
func (l *loop) mayAsk() bool {
	return l.cfg.MaxAsked == 0 || l.askedSocks <= l.cfg.MaxAsked
}

// closeUnasked closes a socket that was bound for asked listeners and is not needed.
func (l *loop) closeUnasked(s *socket) {
	l.askedSocks--
	_ = s.close()
}
