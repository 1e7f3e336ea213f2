package metrics

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Listen opens the listener that a Server serves. network is "tcp", "tcp4",
// "tcp6" or "unix"; a unix socket that nobody answers is replaced, one that is
// alive is not. The caller owns the listener; closing it also unlinks a unix
// socket.
func Listen(network, address string) (net.Listener, error) {
	ln, err := net.Listen(network, address)
	if network != "unix" || !errors.Is(err, syscall.EADDRINUSE) {
		return ln, err
	}
	info, statErr := os.Lstat(address)
	if statErr != nil || info.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("listen on %s: it exists and is no socket", address)
	}
	c, dialErr := net.DialTimeout("unix", address, time.Second)
	if dialErr == nil {
		c.Close()
		return nil, err
	}
	if !errors.Is(dialErr, syscall.ECONNREFUSED) {
		return nil, err
	}
	if err := os.Remove(address); err != nil {
		return nil, fmt.Errorf("replace stale socket: %w", err)
	}
	return net.Listen(network, address)
}

// limitListener accepts at most n connections at a time; others wait in the
// kernel's backlog. Without it a peer that opens connections and sends nothing
// would take descriptors that the dispatcher has planned for.
type limitListener struct {
	net.Listener
	slots  chan struct{}
	closeC chan struct{}
	once   sync.Once
}

func newLimitListener(ln net.Listener, n int) *limitListener {
	return &limitListener{Listener: ln, slots: make(chan struct{}, n), closeC: make(chan struct{})}
}

func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closeC:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitConn{Conn: c, release: sync.OnceFunc(l.release)}, nil
}

func (l *limitListener) release() { <-l.slots }

func (l *limitListener) Close() error {
	l.once.Do(func() { close(l.closeC) })
	return l.Listener.Close()
}

type limitConn struct {
	net.Conn
	release func()
}

func (c *limitConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
