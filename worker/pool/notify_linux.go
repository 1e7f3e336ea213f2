package pool

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// notifySocket is a datagram socket in the abstract namespace, with a name that the
// kernel picked (unix(7), autobind): nothing to make in a directory, to give to a
// uid, or to remove. Anybody on the machine can send to such a name, so only
// messages that carry the credentials of one of the worker's own processes count.
type notifySocket struct{ conn *net.UnixConn }

func listenNotify() (notifySource, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("make notify socket: %w", err)
	}
	rc, err := conn.SyscallConn()
	if err == nil {
		var e error
		err = rc.Control(func(fd uintptr) {
			e = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
		})
		if err == nil {
			err = os.NewSyscallError("setsockopt", e)
		}
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("make notify socket: %w", err)
	}
	return &notifySocket{conn}, nil
}

func (n *notifySocket) name() string { return n.conn.LocalAddr().String() }

func (n *notifySocket) Close() error { return n.conn.Close() }

func (n *notifySocket) SetReadDeadline(t time.Time) error { return n.conn.SetReadDeadline(t) }

func (n *notifySocket) fd() handoff.FD { return lend(n.conn) }

// adoptNotify takes over the socket of a worker that was started by another program. It
// takes ownership of fd and keeps the socket under another number.
func adoptNotify(fd handoff.FD) (notifySource, error) {
	f := os.NewFile(uintptr(fd.Release()), "notify")
	defer f.Close()
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("adopt notify socket: %w", err)
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("adopt notify socket: it is one of %s", c.LocalAddr().Network())
	}
	return &notifySocket{conn}, nil
}

func (n *notifySocket) receive(leader int) (bool, error) {
	var b [4096]byte // more is cut off
	// No room for descriptors: the kernel closes those that are sent along, which
	// is also the answer that BARRIER=1 waits for.
	oob := make([]byte, unix.CmsgSpace(unix.SizeofUcred))
	size, oobSize, _, _, err := n.conn.ReadMsgUnix(b[:], oob)
	if err != nil {
		return false, err
	}
	return saysReady(string(b[:size])) && fromGroup(oob[:oobSize], leader), nil
}

// fromGroup says whether the sender is the leader or in its process group. One that
// is gone already cannot be judged and is not believed.
func fromGroup(oob []byte, leader int) bool {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return false
	}
	for i := range messages {
		if cred, err := unix.ParseUnixCredentials(&messages[i]); err == nil && cred.Pid > 0 {
			group, err := syscall.Getpgid(int(cred.Pid))
			return int(cred.Pid) == leader || err == nil && group == leader
		}
	}
	return false
}
