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

// A leash ends a connection from outside, but only if the Read that waits there has read
// nothing. To close the connection would not do: between the recv(2) that brings a
// request and the server's word that it is active, a goroutine may wait for a CPU. A
// deadline in the past wakes the Read before it reads, and that Read itself then decides.
type leash struct {
	conn  leashed
	reads atomic.Uint32 // Reads that have brought something

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

// pull has the Read that waits time out if no Read has brought anything since reads. net/http
// closes a connection that timed out, without a word in most cases.
func (l *leash) pull(reads uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reads.Load() == reads {
		l.used, l.pulled, l.at = true, true, reads
		_ = l.conn.SetReadDeadline(longAgo)
	}
}

// setDeadline is the program's. It ends a pull; the next sweep tries again.
func (l *leash) setDeadline(t time.Time, set func(time.Time) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deadline, l.pulled = t, false
	return set(t)
}

// finish takes what a Read of conn into b has returned. It reads again if only a pull has
// woken that Read and the pull comes too late.
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

// judge returns with what a Read ends that has met the deadline; nil: it goes on.
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
