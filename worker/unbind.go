package worker

import (
	"net"
	"os"
	"syscall"

	"rrd/handoff"
)

// unbind exchanges the socket of c for one that has no address: reads block, and
// what is written leaves from another port. A program cannot undo bind(2) on the
// socket itself.
//
// N.B. The runtime's poller keeps its entry for the old socket while another process
// has that one. It then wakes a blocked read for nothing, and the read blocks again.
func unbind(c *net.UDPConn) error {
	family := syscall.AF_INET6
	if a, ok := c.LocalAddr().(*net.UDPAddr); ok && a.IP.To4() != nil {
		family = syscall.AF_INET
	}
	syscall.ForkLock.RLock()
	n, err := syscall.Socket(family, syscall.SOCK_DGRAM, 0)
	if err == nil {
		syscall.CloseOnExec(n)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	unbound := handoff.Own(n)
	defer unbound.Close()
	if err := syscall.SetNonblock(n, true); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := rc.Control(func(fd uintptr) { err = replaceFD(n, int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}
