//go:build unix

package control

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// A client finds the socket by its file. If the file is removed, the socket looks open
// and no client can connect, so the master looks at the file again and again.

// leaveTime is how long accept goes on with a replaced socket, for clients in its queue.
const leaveTime = 10 * time.Millisecond

var (
	// ErrRemoved is the reason of Renew if the file was removed.
	ErrRemoved = errors.New("its file was removed")
	// ErrReplaced is the reason of Renew if another file has taken the place of the file.
	ErrReplaced = errors.New("another file has taken the place of its file")
)

// Renew looks at the file of the socket. If it was removed or replaced, Renew makes the
// socket again by the rules of Listen and returns the reason. Connected clients
// stay connected.
func (l *Listener) Renew() (why, err error) {
	l.mu.Lock()
	closed := l.closed
	l.mu.Unlock()
	why = l.state()
	if closed || why == nil {
		return nil, nil
	}
	if err := l.renew(); err != nil {
		return why, fmt.Errorf("make control socket %s again: %w", l.path, err)
	}
	return why, nil
}

func (l *Listener) renew() error {
	if l.dir != "" {
		if _, err := makeDirectory(l.dir, l.uids); err != nil {
			return err
		}
	}
	next, err := listen(l.path, l.uids)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return next.Close()
	}
	_ = l.ln.SetDeadline(time.Now().Add(leaveTime)) // an error: it is closed, and accept finds that
	l.leaving = append(l.leaving, l.ln)
	l.ln, l.file = next.ln, next.file
	return nil
}

// state returns ErrRemoved or ErrReplaced. It returns nil if the file is there or cannot
// be looked at.
func (l *Listener) state() error {
	file := l.File()
	switch info, err := os.Lstat(l.path); {
	case errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
		return ErrRemoved
	case err == nil && fileIDOf(info) != file:
		return ErrReplaced
	}
	return nil
}

// FileID names a file as long as it exists.
type FileID struct{ Dev, Ino uint64 }

func fileIDOf(info os.FileInfo) FileID {
	st := info.Sys().(*syscall.Stat_t)
	return FileID{uint64(st.Dev), st.Ino} //nolint:unconvert // Dev is int32 on darwin
}

// File returns which file the socket has.
func (l *Listener) File() FileID {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file
}

func (l *Listener) socket() *net.UnixListener {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ln
}

// accept waits for a client. It goes on if Renew replaces the socket.
func (l *Listener) accept() (*net.UnixConn, error) {
	for {
		ln := l.oldest()
		c, err := ln.AcceptUnix()
		if err == nil || !l.leave(ln) {
			return c, err
		}
	}
}

// oldest returns the socket whose queue comes first.
func (l *Listener) oldest() *net.UnixListener {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.leaving) > 0 {
		return l.leaving[0]
	}
	return l.ln
}

// leave closes ln if Renew has replaced it, and reports whether that is so.
func (l *Listener) leave(ln *net.UnixListener) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.leaving) == 0 || l.leaving[0] != ln {
		return false
	}
	_ = ln.Close()
	l.leaving = l.leaving[1:]
	return true
}
