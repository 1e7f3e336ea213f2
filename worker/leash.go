package worker

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A leash ends a connection from outside, but only if its waiting Read has read
// nothing. A plain close could lose a request: a goroutine may have received the request
// and wait for a CPU before the server marks the connection active. A deadline in the past
// wakes the Read before it reads, and that Read itself then decides.
type leash struct {
	conn  leashed
	reads atomic.Uint32 // Reads that have returned bytes

	mu       sync.Mutex
	deadline time.Time // of the program, for Read
	used     bool      // pull was called: a time-out may be ours
	pulled   bool      // the deadline of conn is ours
	at       uint32    // reads when it was pulled
}

type leashed interface {
	net.Conn
	syscall.Conn
}

// leashOf puts a leash on the Conn or UnixConn below c, which it finds through
// connections that have NetConn, as *tls.Conn. If there is none it returns nil.
func leashOf(c net.Conn) *leash {
	for {
		switch inner := c.(type) {
		case *Conn:
			return inner.h.putLeash(inner.TCPConn)
		case *UnixConn:
			return inner.h.putLeash(inner.UnixConn)
		case interface{ NetConn() net.Conn }:
			c = inner.NetConn()
		default:
			return nil
		}
	}
}

func (h *hold) putLeash(c leashed) *leash {
	l := &leash{conn: c}
	h.leash.Store(l)
	return l
}

// pull makes the waiting Read time out if no Read has returned bytes since reads. net/http
// closes a connection that timed out, in most cases without an answer.
func (l *leash) pull(reads uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reads.Load() == reads {
		l.used, l.pulled, l.at = true, true, reads
		_ = l.conn.SetReadDeadline(longAgo)
	}
}

// setDeadline sets the deadline of the program. It ends a pull, and the next sweep tries
// again.
func (l *leash) setDeadline(t time.Time, set func(time.Time) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deadline, l.pulled = t, false
	return set(t)
}

// finish takes the result of a Read of conn into b. It reads again if only a pull has
// woken that Read and the pull came too late.
func (l *leash) finish(b []byte, n int, err error) (int, error) {
	for {
		if n > 0 {
			l.reads.Add(1)
			return n, err
		}
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if verdict := l.judge(err); verdict != nil {
			return 0, verdict
		}
		n, err = l.conn.Read(b)
	}
}

// judge returns the error of a Read that has met the deadline. If it is nil, the Read goes
// on.
func (l *leash) judge(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	expired := !l.deadline.IsZero() && !time.Now().Before(l.deadline)
	if !l.used || expired {
		return err
	}
	if l.pulled && l.reads.Load() == l.at && !hasUnread(l.conn) {
		return err
	}
	l.pulled = false
	if err := l.conn.SetReadDeadline(l.deadline); err != nil {
		return err
	}
	return nil
}

// hasUnread reports whether the kernel has bytes that this process had no time to read.
func hasUnread(c syscall.Conn) bool {
	rc, err := c.SyscallConn()
	if err != nil {
		return false
	}
	n := 0
	_ = rc.Control(func(fd uintptr) {
		n, _, _ = syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	})
	return n > 0
}
