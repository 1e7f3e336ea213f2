package worker

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// Without a master, open connections finish, and then the process ends. The process soon
// gives up the sockets that the master had lent. While a process has such a socket, the next
// master cannot bind its address (none), or the kernel sends clients here that are
// never accepted (reuseport).

// orphanTime is how long this process goes on accepting without a master. A close
// resets the clients in the kernel's queue, and no other process may have it.
const orphanTime = 20 * time.Millisecond

var errGone = errors.New("master of rrd is gone")

// endLocked handles the end of the channel: the master is gone, or sends nonsense, which
// has the same effect. The process still serves what it has read, accepts nothing more, and
// ends when all connections are finished.
func (ch *channel) endLocked(err error) {
	ch.gone = true
	ch.out = ch.out[:0]
	for seq, a := range ch.asks {
		delete(ch.asks, seq)
		a.done, a.err = true, errGone
		ch.wakeLocked(func(w *waiter) bool { return w.ask == a })
	}
	ch.noTicketsLocked()
	if errors.Is(err, os.ErrClosed) {
		ch.listened = false // closed by this process: it lives on
		ch.giveUpLocked()
		return
	}
	// The log may have been a pipe to the master.
	signal.Ignore(syscall.SIGPIPE)
	if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		fmt.Fprintf(os.Stderr, "rrd worker: read channel to the master: %v: finishing\n", err)
	}
	ch.closeDrainC()
	if ch.grace > 0 {
		time.AfterFunc(ch.grace, ch.onGraceOver) // ends with the process
	}
	if ch.lentLocked() && !ch.draining {
		time.AfterFunc(ch.orphanTime, ch.onOrphanTime) // its goroutine does not wait
		return
	}
	ch.giveUpLocked()
}

// lentLocked reports whether this process has a socket of the master.
func (ch *channel) lentLocked() bool {
	for _, ep := range ch.endpoints {
		if len(ep.shared)+len(ep.packets) > 0 {
			return true
		}
	}
	return false
}

// onOrphanTime runs on a timer's goroutine.
func (ch *channel) onOrphanTime() {
	ch.mu.Lock()
	ch.giveUpLocked()
	ch.unlock()
}

// giveUpLocked gives up the sockets of a master that is gone. The program does not
// notice: its Accept and its reads block, as in a drain. A program that ends when
// they fail would cut its open connections.
func (ch *channel) giveUpLocked() {
	ch.gaveUp = true
	for _, ep := range ch.endpoints {
		for _, ln := range ep.shared {
			_ = ln.inner.Close()
		}
		for _, c := range ep.packets {
			// The only error is that the program has closed it, or that no descriptor
			// is left: then it stays bound until this process ends.
			_ = unbind(c)
		}
		ep.packets = nil
	}
	ch.exitIfDoneLocked()
}

// exitIfDoneLocked ends a process that has no master and no connection.
func (ch *channel) exitIfDoneLocked() {
	if !ch.gaveUp || !ch.listened || ch.open > 0 || ch.accepting > 0 {
		return
	}
	for _, ep := range ch.endpoints {
		if len(ep.queue) > 0 {
			return
		}
	}
	ch.exitLocked()
}

// onGraceOver runs on a timer's goroutine.
func (ch *channel) onGraceOver() {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.listened {
		ch.exitLocked()
	}
}

func (ch *channel) exitLocked() {
	if !ch.exited {
		ch.exited = true
		ch.exit(0)
	}
}
