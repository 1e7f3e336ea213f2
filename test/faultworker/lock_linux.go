package main

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// Attacks on a master that would wait for a lock of a worker's, or trust a flag of the
// worker's. The kernel holds the lock of a socket while it copies to or from memory, and a
// page that userfaultfd(2) never fills makes that last for as long as the process lives.

// attacks are what a mode does right after READY.
var attacks = map[string]func(*worker) error{
	"lock-channel": (*worker).lockChannel,
	"trim":         (*worker).trim,
	"block-accept": (*worker).blockAccept,
}

// Of linux/userfaultfd.h, for amd64 and arm64.
const (
	uffdioAPI            = 0xc018aa3f
	uffdioRegister       = 0xc020aa00
	uffdAPI              = 0xaa
	registerModeMissing  = 1
	lockedFor            = 40 * time.Second // a test that fails leaves nothing behind for longer
	connectionOfTheChild = 3
)

// page returns memory whose first use never ends.
func page() ([]byte, error) {
	fd, _, errno := syscall.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		return nil, os.NewSyscallError("userfaultfd", errno)
	}
	api := [3]uint64{uffdAPI}
	if _, _, errno = syscall.Syscall(unix.SYS_IOCTL, fd, uffdioAPI, uintptr(unsafe.Pointer(&api))); errno != 0 {
		return nil, os.NewSyscallError("UFFDIO_API", errno)
	}
	size := os.Getpagesize()
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	reg := [4]uint64{uint64(uintptr(unsafe.Pointer(&b[0]))), uint64(size), registerModeMissing}
	if _, _, errno = syscall.Syscall(unix.SYS_IOCTL, fd, uffdioRegister, uintptr(unsafe.Pointer(&reg))); errno != 0 {
		return nil, os.NewSyscallError("UFFDIO_REGISTER", errno)
	}
	return b, nil
}

// dieLater ends a process that may be left behind.
func dieLater() {
	time.Sleep(lockedFor)
	os.Exit(0)
}

// lockChannel receives the next message into memory that never comes: from then on the
// lock of this end of the channel is held.
func (w *worker) lockChannel() error {
	b, err := page()
	if err != nil {
		return err
	}
	go dieLater() // ends the process
	for {
		// Raw: Go looks at nothing that the kernel writes to.
		_, _, errno := syscall.Syscall6(unix.SYS_RECVFROM, uintptr(w.channel), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0, 0)
		if errno != unix.EAGAIN && errno != unix.EINTR {
			return os.NewSyscallError("recvfrom", errno)
		}
		p := []unix.PollFd{{Fd: int32(w.channel), Events: unix.POLLIN}}
		_, _ = unix.Poll(p, -1)
	}
}

// lockConnection acks a connection that a process of another group sends from memory that
// never comes, and dies: whoever asks the kernel about the connection waits.
func (w *worker) lockConnection(f *handoff.Frame, fd handoff.FD) error {
	if err := w.say(handoff.Frame{Type: handoff.Ack, Seq: f.Seq}); err != nil {
		return err
	}
	if err := stranger("hold-connection", fd.Release()); err != nil {
		return err
	}
	die()
	return nil
}

// stranger starts this program in a mode that has a descriptor, in a session of its own.
// It returns once that process has begun.
func stranger(mode string, fd int) error {
	f := os.NewFile(uintptr(fd), mode)
	r, begun, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", mode)
	cmd.ExtraFiles = []*os.File{f, begun}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_, _ = f.Close(), begun.Close()
	if err == nil {
		_, _ = r.Read(make([]byte, 1))
	}
	_ = r.Close()
	return err
}

// hasBegun tells who has started this stranger.
func hasBegun() {
	f := os.NewFile(connectionOfTheChild+1, "begun")
	_ = f.Close()
}

// holdConnection is the stranger of lockConnection.
func holdConnection() error {
	b, err := page()
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(connectionOfTheChild, false); err != nil {
		return err
	}
	go dieLater() // ends the process
	go hasBegunSoon()
	_, _, errno := syscall.Syscall6(unix.SYS_SENDTO, connectionOfTheChild, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0, 0)
	return os.NewSyscallError("sendto", errno)
}

// hasBegunSoon tells so once the connection is locked: then its state cannot be read.
func hasBegunSoon() {
	locked := make(chan struct{})
	go func() {
		for {
			done := make(chan struct{})
			go func() {
				_, _ = unix.GetsockoptTCPInfo(connectionOfTheChild, unix.IPPROTO_TCP, unix.TCP_INFO)
				close(done)
			}()
			select {
			case <-done:
			case <-time.After(20 * time.Millisecond):
				close(locked)
				return
			}
		}
	}()
	<-locked
	hasBegun()
}

// trim attaches a filter to this end of the channel that cuts each message, and reads
// nothing any more.
func (w *worker) trim() error {
	n, err := strconv.ParseUint(w.kind, 10, 32)
	if err != nil {
		return err
	}
	prog := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: uint32(n)}}
	fprog := unix.SockFprog{Len: 1, Filter: &prog[0]}
	if err := unix.SetsockoptSockFprog(w.channel, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &fprog); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	forever()
	return nil
}

// blockAccept gives its listening socket to a process of another group that clears
// O_NONBLOCK again and again, and crashes.
func (w *worker) blockAccept() error {
	if w.lent == 0 {
		return errors.New("block-accept: no listener was lent: use --policy reuseport")
	}
	if err := stranger("clear-nonblock", w.lent); err != nil {
		return err
	}
	die()
	return nil
}

// clearNonblock is the stranger of blockAccept.
func clearNonblock() error {
	hasBegun()
	go dieLater() // ends the process
	for {
		if err := unix.SetNonblock(connectionOfTheChild, false); err != nil {
			return err
		}
		time.Sleep(100 * time.Microsecond)
	}
}
