package dispatcher

import (
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// poller is epoll(7), level-triggered, with an eventfd to wake it. add, set,
// remove and wait belong to the loop; wake may be called from anywhere until
// close.
//
// A thread that waits in a system call tells the scheduler twice, and the
// scheduler's monitor then looks every 20 us whether it still waits: a tenth of
// the master's CPU under load. And a wait with a timeout arms a timer. So a busy
// poller waits untold and without a timeout; a pulse, a timer that runs only
// then, ends the wait for deadlines, and finds when it is busy no more. While it
// waits untold, other goroutines have one processor less (GOMAXPROCS is 2 at
// least), and the collector, if it wants the world to stop, sends a signal.
type poller struct {
	ep, event handoff.FD
	woken     atomic.Bool // a wake is on its way
	buf       [maxEvents]unix.EpollEvent

	pulse   handoff.FD
	beating bool
	waits   int // since the last pulse, or since from
	from    time.Time
}

const (
	pulseEvery = 5 * time.Millisecond
	// Waits in pulseEvery that make a poller busy, and fewer than make it so no more.
	busyFrom = 16
	busyTo   = 8
)

const maxEvents = 256

// polled is what wait tells of one descriptor.
type polled struct {
	token    uint64
	writable bool
}

const (
	// tokenWake is reported when wake was called.
	tokenWake = 0
	// tokenPulse is not reported. No other token is as small.
	tokenPulse = 2
)

func newPoller() (*poller, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	p := &poller{ep: handoff.Own(ep)}
	ev, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		_ = p.close()
		return nil, os.NewSyscallError("eventfd", err)
	}
	p.event = handoff.Own(ev)
	if err := p.add(ev, tokenWake, true, false); err != nil {
		_ = p.close()
		return nil, err
	}
	timer, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		_ = p.close()
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	p.pulse = handoff.Own(timer)
	// Edge-triggered, it need not be read.
	edge := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: tokenPulse}
	if err := unix.EpollCtl(p.ep.Num(), unix.EPOLL_CTL_ADD, timer, &edge); err != nil {
		_ = p.close()
		return nil, os.NewSyscallError("epoll_ctl", err)
	}
	return p, nil
}

func (p *poller) close() error {
	_ = p.pulse.Close()
	err := p.event.Close()
	if eerr := p.ep.Close(); err == nil {
		err = eerr
	}
	return err
}

// add watches fd; what happens to it is reported with token.
func (p *poller) add(fd int, token uint64, read, write bool) error {
	return p.ctl(unix.EPOLL_CTL_ADD, fd, token, read, write)
}

// set changes what is watched.
func (p *poller) set(fd int, token uint64, read, write bool) error {
	return p.ctl(unix.EPOLL_CTL_MOD, fd, token, read, write)
}

// remove must come before fd is closed: a duplicate of a closed descriptor in
// another process would go on being reported (epoll(7), Questions and answers).
func (p *poller) remove(fd int) error {
	return p.ctl(unix.EPOLL_CTL_DEL, fd, 0, false, false)
}

func (p *poller) ctl(op, fd int, token uint64, read, write bool) error {
	ev := unix.EpollEvent{Fd: int32(uint32(token)), Pad: int32(uint32(token >> 32))}
	if read {
		ev.Events |= unix.EPOLLIN
	}
	if write {
		ev.Events |= unix.EPOLLOUT
	}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.ep.Num(), op, fd, &ev))
}

// wait fills out with what is ready, waiting at most d (negative: for ever).
func (p *poller) wait(out []polled, d time.Duration) ([]polled, error) {
	for {
		n, errno := p.once(d)
		out = out[:0]
		if errno == unix.EINTR {
			return out, nil
		}
		if errno != 0 {
			return out, os.NewSyscallError("epoll_pwait", errno)
		}
		pulsed := false
		for i := range p.buf[:n] {
			ev := &p.buf[i]
			token := uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32
			switch token {
			case tokenPulse:
				pulsed = true
				p.pulsed()
				continue
			case tokenWake:
				p.sleepAgain()
			}
			out = append(out, polled{token: token, writable: ev.Events&unix.EPOLLOUT != 0})
		}
		if !pulsed || len(out) > 0 {
			return out, nil
		}
		if d >= 0 {
			d = max(d-pulseEvery, 0) // rather too early than too late
		}
	}
}

// once waits for something, the pulse included.
func (p *poller) once(d time.Duration) (int, syscall.Errno) {
	p.waits++
	ms := millis(d)
	if p.beating {
		if d >= pulseEvery {
			ms = -1
		}
		n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.ep.Num()),
			uintptr(unsafe.Pointer(&p.buf[0])), maxEvents, uintptr(ms), 0, 0)
		return int(n), errno
	}
	if p.waits >= busyFrom {
		now := time.Now()
		if now.Sub(p.from) < pulseEvery {
			p.beat(pulseEvery)
		}
		p.waits, p.from = 0, now
	}
	n, _, errno := syscall.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.ep.Num()),
		uintptr(unsafe.Pointer(&p.buf[0])), maxEvents, uintptr(ms), 0, 0)
	return int(n), errno
}

// pulsed: a pulse has come.
func (p *poller) pulsed() {
	if p.beating && p.waits < busyTo {
		p.beat(0)
	}
	p.waits = 0
}

// beat starts the pulse, or stops it with 0.
func (p *poller) beat(every time.Duration) {
	t := unix.NsecToTimespec(int64(every))
	err := unix.TimerfdSettime(p.pulse.Num(), 0, &unix.ItimerSpec{Interval: t, Value: t}, nil)
	p.beating = err == nil && every > 0
}

// millis rounds up, so that a deadline has passed when wait returns for it.
func millis(d time.Duration) int {
	if d < 0 {
		return -1
	}
	return int(min((d+time.Millisecond-1)/time.Millisecond, 1<<30))
}

// wake makes wait return, now or the next time.
func (p *poller) wake() {
	if p.woken.Swap(true) {
		return
	}
	one := [8]byte{1}
	_, _ = unix.Write(p.event.Num(), one[:]) // it can only fail when it is full, which wakes as well
}

func (p *poller) sleepAgain() {
	var b [8]byte
	_, _ = unix.Read(p.event.Num(), b[:])
	p.woken.Store(false)
}
