package worker

import (
	"net"
	"os"
	"sync"
	"syscall"

	"rrd/handoff"
)

// A funnel makes connections of descriptors, by one file for all of them, whose descriptor
// is each connection in turn. A file of its own for each would be put into the runtime's
// poller and taken out again, unread, and have a finalizer: a fifth of all that making a
// connection costs (BenchmarkFileConn).
type funnel struct {
	mu   sync.Mutex
	file *os.File   // is idle, or the connection that is being made
	idle handoff.FD // a socket that nobody uses
}

// open is for where the numbers of descriptors are still low: a number above a limit that
// was lowered later cannot be given to another socket (dup2(2), EBADF). What fails is
// tried again by conn.
func (u *funnel) open() {
	u.mu.Lock()
	defer u.mu.Unlock()
	_ = u.openLocked()
}

// conn takes ownership of d.
func (u *funnel) conn(d *handoff.FD) (net.Conn, error) {
	defer d.Close()
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.openLocked(); err != nil {
		return nil, err
	}
	if err := u.beLocked(*d); err != nil {
		return nil, err
	}
	// Package net is about to need a descriptor, and this process may be at its limit.
	_ = d.Close()
	c, err := fileConn(u.file)
	if berr := u.beLocked(u.idle); berr != nil && c != nil {
		// It would hold the connection open after its Close.
		_ = c.Close()
		return nil, berr
	}
	return c, err
}

// openLocked makes what conn needs. The file is in blocking mode, or else it would be in
// the poller.
func (u *funnel) openLocked() error {
	if u.file != nil {
		return nil
	}
	n, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_DGRAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	idle := handoff.Own(n)
	file, err := idle.Dup()
	if err != nil {
		_ = idle.Close()
		return err
	}
	u.idle, u.file = idle, os.NewFile(uintptr(file.Release()), "connection")
	return nil
}

// beLocked makes the file the same as d.
func (u *funnel) beLocked(d handoff.FD) error {
	for {
		err := syscall.Dup3(d.Num(), int(u.file.Fd()), syscall.O_CLOEXEC)
		if err != syscall.EINTR {
			return os.NewSyscallError("dup3", err)
		}
	}
}

func (u *funnel) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	_ = u.file.Close() // nil: an error, and nothing done
	_ = u.idle.Close()
	u.file = nil
}
