//go:build darwin || freebsd

package dispatcher

import (
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// poller is kqueue(2), level-triggered, with a user event to wake it: the same
// methods as on Linux.
type poller struct {
	kq    handoff.FD
	woken atomic.Bool
	// token and filters by descriptor: kqueue's udata is a pointer, which must not
	// hold a number that the garbage collector would follow.
	tokens map[int]watch
	buf    [maxEvents]unix.Kevent_t
}

type watch struct {
	token       uint64
	read, write bool
}

const maxEvents = 256

type polled struct {
	token    uint64
	writable bool
}

const tokenWake = 0

func newPoller() (*poller, error) {
	kq, err := unix.Kqueue()
	if err != nil {
		return nil, os.NewSyscallError("kqueue", err)
	}
	unix.CloseOnExec(kq)
	p := &poller{kq: handoff.Own(kq), tokens: make(map[int]watch)}
	var ev unix.Kevent_t
	unix.SetKevent(&ev, 0, unix.EVFILT_USER, unix.EV_ADD|unix.EV_CLEAR)
	if _, err := unix.Kevent(kq, []unix.Kevent_t{ev}, nil, nil); err != nil {
		_ = p.close()
		return nil, os.NewSyscallError("kevent", err)
	}
	return p, nil
}

func (p *poller) close() error { return p.kq.Close() }

func (p *poller) add(fd int, token uint64, read, write bool) error {
	p.tokens[fd] = watch{token: token}
	return p.set(fd, token, read, write)
}

func (p *poller) set(fd int, token uint64, read, write bool) error {
	w := p.tokens[fd]
	changes := make([]unix.Kevent_t, 0, 2)
	change := func(filter int, had, want bool) {
		if had == want {
			return
		}
		flags := unix.EV_ADD
		if !want {
			flags = unix.EV_DELETE
		}
		var ev unix.Kevent_t
		unix.SetKevent(&ev, fd, filter, flags)
		changes = append(changes, ev)
	}
	change(unix.EVFILT_READ, w.read, read)
	change(unix.EVFILT_WRITE, w.write, write)
	p.tokens[fd] = watch{token: token, read: read, write: write}
	if len(changes) == 0 {
		return nil
	}
	_, err := unix.Kevent(p.kq.Num(), changes, nil, nil)
	return os.NewSyscallError("kevent", err)
}

func (p *poller) remove(fd int) error {
	err := p.set(fd, 0, false, false)
	delete(p.tokens, fd)
	return err
}

func (p *poller) wait(out []polled, d time.Duration) ([]polled, error) {
	var ts *unix.Timespec
	if d >= 0 {
		t := unix.NsecToTimespec(int64(d))
		ts = &t
	}
	n, err := unix.Kevent(p.kq.Num(), nil, p.buf[:], ts)
	out = out[:0]
	if err == unix.EINTR {
		return out, nil
	}
	if err != nil {
		return out, os.NewSyscallError("kevent", err)
	}
	for i := range p.buf[:n] {
		ev := &p.buf[i]
		if ev.Filter == unix.EVFILT_USER {
			p.woken.Store(false)
			out = append(out, polled{token: tokenWake})
			continue
		}
		if w, ok := p.tokens[int(ev.Ident)]; ok {
			out = append(out, polled{token: w.token, writable: ev.Filter == unix.EVFILT_WRITE})
		}
	}
	return out, nil
}

func (p *poller) wake() {
	if p.woken.Swap(true) {
		return
	}
	var ev unix.Kevent_t
	unix.SetKevent(&ev, 0, unix.EVFILT_USER, 0)
	ev.Fflags = unix.NOTE_TRIGGER
	_, _ = unix.Kevent(p.kq.Num(), []unix.Kevent_t{ev}, nil, nil)
}
