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
type poller struct {
	ep, event handoff.FD
	woken     atomic.Bool // a wake is on its way
	buf       [maxEvents]unix.EpollEvent
}

const maxEvents = 256

// polled is what wait tells of one descriptor.
type polled struct {
	token    uint64
	writable bool
}

// tokenWake is reported when wake was called.
const tokenWake = 0

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
	return p, nil
}

func (p *poller) close() error {
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

// wait fills out with what is ready, waiting at most d (negative: for ever). The
// first look does not enter the scheduler: under load there is always something,
// and telling the scheduler twice for each wait is what costs.
func (p *poller) wait(out []polled, d time.Duration) ([]polled, error) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.ep.Num()),
		uintptr(unsafe.Pointer(&p.buf[0])), maxEvents, 0, 0, 0)
	if errno == 0 && n == 0 && d != 0 {
		n, _, errno = syscall.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.ep.Num()),
			uintptr(unsafe.Pointer(&p.buf[0])), maxEvents, uintptr(millis(d)), 0, 0)
	}
	out = out[:0]
	if errno == unix.EINTR {
		return out, nil
	}
	if errno != 0 {
		return out, os.NewSyscallError("epoll_pwait", errno)
	}
	for i := range p.buf[:n] {
		ev := &p.buf[i]
		token := uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32
		if token == tokenWake {
			p.sleepAgain()
		}
		out = append(out, polled{token: token, writable: ev.Events&unix.EPOLLOUT != 0})
	}
	return out, nil
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
