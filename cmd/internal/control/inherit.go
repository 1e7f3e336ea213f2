//go:build unix

package control

import (
	"fmt"
	"net"
	"os"
	"syscall"
)

// SyscallConn gives access to the listening descriptor, which stays the Listener's.
func (l *Listener) SyscallConn() (syscall.RawConn, error) { return l.ln.SyscallConn() }

// Made returns the directory that was made for the socket; empty: it was there.
func (l *Listener) Made() string { return l.dir }

// Inherit makes a Listener of an open control socket, as another image of this
// process had it: its path, the directory that was made for it (Made), and uids as
// for Listen. f stays the caller's.
func Inherit(f *os.File, path, made string, uids []int) (*Listener, error) {
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("inherit control socket %s: %w", path, err)
	}
	ul, ok := ln.(*net.UnixListener)
	if !ok {
		_ = ln.Close()
		return nil, fmt.Errorf("inherit control socket %s: it is a %s socket", path, ln.Addr().Network())
	}
	ul.SetUnlinkOnClose(false)
	info, err := os.Lstat(path)
	if err != nil {
		info = nil // somebody has removed it: it is not ours to remove
	}
	return &Listener{ln: ul, path: path, file: info, uids: uids, dir: made}, nil
}
