package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"
)

// Files of unix sockets. A client finds a socket by its file, and a process that may
// write in the directory can remove that file. The socket then looks open, and no
// client can connect. So the files are looked at again and again, off the loop: a
// file system may hang.

const fileEvery = 2 * time.Second

var (
	errFileRemoved  = errors.New("its file was removed")
	errFileReplaced = errors.New("another file has taken the place of its file")
)

// files has the time of the next look at the files, and the callers that wait for it. The
// loop owns it.
type files struct {
	at      int64 // of the next look; 0: no listener has a file
	looking bool
	waiting []chan<- []FileCheck // for the result of the next look
}

// FileCheck is a file that was not there.
type FileCheck struct {
	Listener ListenerInfo
	// Err is the reason why it could not be made again; nil: it was made again.
	Err error
}

// fileLook is one file to look at.
type fileLook struct {
	id          listenerID
	wire        uint32
	info        ListenerInfo
	file        socketFile
	address     string
	options     bindOptions
	unreachable bool // by the last look
}

// CheckFiles looks at the files of all unix listeners now and makes those again that
// were removed. It returns the files that were not there. A socket of another process is
// left alone.
func (d *Dispatcher) CheckFiles(ctx context.Context) ([]FileCheck, error) {
	d.awaitRevival() // the sockets are checked together with the files
	doneC := make(chan []FileCheck, 1)
	if err := d.do(ctx, func(l *loop) {
		l.files.waiting = append(l.files.waiting, doneC)
		l.lookAtFiles()
	}); err != nil {
		return nil, fmt.Errorf("check socket files: %w", err)
	}
	select {
	case r := <-doneC:
		return r, nil
	case <-d.ended:
		return nil, fmt.Errorf("check socket files: %w", ErrClosed)
	case <-ctx.Done():
		return nil, fmt.Errorf("check socket files: %w", ctx.Err())
	}
}

// lookAtFiles starts a look. While one is under way the next waits for its end.
func (l *loop) lookAtFiles() {
	if l.files.looking {
		return
	}
	l.files.looking = true
	waiting := l.files.waiting
	l.files.waiting = nil
	l.d.helpers.Add(1)
	go l.d.lookAtFiles(l.fileLooks(), waiting) // Close waits for it
}

func (l *loop) fileLooks() (looks []fileLook) {
	for _, ln := range l.listeners {
		if ln == nil || ln.closing || ln.sock == nil || ln.sock.file == nil {
			continue
		}
		k := fileLook{id: ln.id, wire: ln.wire, info: ln.info(), file: *ln.sock.file, address: ln.addr, unreachable: ln.unreachable[causeFile] != ""}
		if a := ln.asked; a != nil {
			k.options = bindOptions{backlog: a.backlog, addMode: a.mode, uid: -1, gid: -1}
		} else {
			c := &ln.conf
			k.options = bindOptions{replaceStale: true, backlog: c.Backlog, mode: c.Mode, uid: c.UID, gid: c.GID}
		}
		looks = append(looks, k)
	}
	return looks
}

// lookAtFiles is one look.
func (d *Dispatcher) lookAtFiles(looks []fileLook, waiting []chan<- []FileCheck) {
	defer d.helpers.Done()
	var r []FileCheck
	for i := range looks {
		if again, err := d.lookAtFile(&looks[i]); again || err != nil {
			r = append(r, FileCheck{looks[i].info, err})
		}
	}
	for _, c := range waiting {
		c <- r // has room
	}
	d.post(func(l *loop) { // false: closing
		l.files.looking = false
		l.files.at = 0
		if len(l.fileLooks()) > 0 {
			l.files.at = l.now + int64(l.d.fileEvery)
		}
		if len(l.files.waiting) > 0 {
			l.lookAtFiles()
		}
	})
}

// lookAtFile reports whether the file was made again. The error tells why it could not be.
func (d *Dispatcher) lookAtFile(k *fileLook) (again bool, err error) {
	why := d.lookInTime(k.id, k.file.state)
	if errors.Is(why, syscall.ETIMEDOUT) {
		return false, nil // the file system hangs, so the state of the file is unknown
	}
	if why == nil {
		if k.unreachable {
			d.post(func(l *loop) { l.reachable(l.withFile(k), causeFile) })
		}
		return false, nil
	}
	if k.file.foreign {
		err = fmt.Errorf("%w (%s): restart the service that has opened it, such as its socket unit", why, k.file.path)
		d.post(func(l *loop) { l.setUnreachable(l.withFile(k), causeFile, err) })
		return false, err
	}
	address, options, rights := k.address, k.options, k.file.rights
	s, err := d.gates.bindInTime(gateOf(k.id), bindLimit, func() (*socket, error) {
		return bindWithRights("unix", address, options, rights)
	})
	if err != nil {
		err = fmt.Errorf("%w, and it cannot be made again: %w", why, err)
		d.post(func(l *loop) { l.setUnreachable(l.withFile(k), causeFile, err) })
		return false, err
	}
	if d.do(context.Background(), func(l *loop) {
		ln := l.withFile(k)
		if ln == nil || l.draining {
			return
		}
		err = l.replaceSocket(ln, s, causeFile, why)
		again = err == nil
	}) != nil || !again {
		_ = s.close()
	}
	return again, err
}

// gateOf returns the gate for the binds of a listener. The slots have gates of their own.
func gateOf(id listenerID) int { return -1 - int(id) }

// lookInTime calls look, which may hang: the directory may be in a file system of a worker.
func (d *Dispatcher) lookInTime(id listenerID, look func() error) error {
	_, err := d.gates.bindInTime(gateOf(id), bindLimit, func() (*socket, error) { return nil, look() })
	return err
}

// withFile returns the listener that still has the file that was looked at, or nil.
func (l *loop) withFile(k *fileLook) *listener {
	ln := l.byWire[k.wire]
	if ln == nil || ln.closing || ln.sock == nil || ln.sock.file == nil || *ln.sock.file != k.file {
		return nil
	}
	return ln
}
