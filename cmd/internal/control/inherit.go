//go:build unix

package control

import (
	"fmt"
	"net"
	"os"
	"syscall"
)

// SyscallConn gives access to the listening descriptor, which stays the Listener's.
func (l *Listener) SyscallConn() (syscall.RawConn, error) { return l.socket().SyscallConn() }

// Made returns the directory that was made for the socket; empty: it was there.
func (l *Listener) Made() string { return l.dir }

// Inherit makes a Listener of an open control socket, as another image of this
// process had it: its path, its file (File; zero: the file at path now), the directory
// that was made for it (Made), and uids as for Listen. f stays the caller's.
func Inherit(f *os.File, path string, file FileID, made string, uids []int) (*Listener, error) {
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
	if info, err := os.Lstat(path); err == nil && file == (FileID{}) {
		file = fileIDOf(info)
	}
	return &Listener{ln: ul, path: path, file: file, uids: uids, dir: made}, nil
}
