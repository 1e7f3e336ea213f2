//go:build unix

package main

import (
	"errors"
	"io"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// steadyWriter writes to a file that other processes have too: stdout and stderr. Any of
// them may set O_NONBLOCK, which belongs to the open file and not to the process (a Node
// program with raw output does). A full pipe then gives EAGAIN or takes a part, and
// steadyWriter waits for room as a blocking write would. So only a goroutine of its own
// may write, behind a bounded queue.
type steadyWriter struct {
	f     *os.File
	piece int  // the most for one write
	torn  bool // a failed write has left half a line

	accepted atomic.Uint64 // bytes
}

// pipePiece is what a pipe takes whole (PIPE_BUF, pipe(7)). A long record in such pieces
// shows that a slow reader reads.
const pipePiece = 4096

func newSteadyWriter(f *os.File) *steadyWriter {
	w := &steadyWriter{f: f, piece: 1 << 30}
	if info, err := f.Stat(); err == nil && info.Mode()&(os.ModeNamedPipe|os.ModeSocket) != 0 {
		w.piece = pipePiece
	}
	return w
}

// Stat is that of the file.
func (w *steadyWriter) Stat() (os.FileInfo, error) { return w.f.Stat() }

// Write returns when all of p is written, or with the error of a write that failed.
func (w *steadyWriter) Write(p []byte) (n int, err error) {
	if w.torn {
		if _, err := w.writeAll([]byte("\n")); err != nil {
			return 0, err
		}
		w.torn = false
	}
	n, err = w.writeAll(p)
	w.torn = err != nil && n > 0 && p[n-1] != '\n'
	return n, err
}

func (w *steadyWriter) writeAll(p []byte) (n int, err error) {
	for n < len(p) {
		k, err := w.f.Write(p[n:min(n+w.piece, len(p))])
		n += k
		w.accepted.Add(uint64(k))
		if errors.Is(err, syscall.EAGAIN) {
			err = w.awaitRoom()
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// awaitRoom waits until the file takes bytes, or a write to it fails.
func (w *steadyWriter) awaitRoom() error {
	rc, err := w.f.SyscallConn()
	if err != nil {
		return err
	}
	var perr error
	err = rc.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		if _, perr = unix.Poll(fds, -1); errors.Is(perr, unix.EINTR) {
			perr = nil
		}
	})
	return errors.Join(err, perr)
}

// steady returns a steadyWriter for w if w is a file, and otherwise w.
func steady(w io.Writer) io.Writer {
	if f, ok := w.(*os.File); ok {
		return newSteadyWriter(f)
	}
	return w
}
