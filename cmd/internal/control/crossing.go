//go:build unix

package control

import (
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
)

// A Crossing is a request under way that another image of this process will answer, on
// the same connection: what the new one must know besides the descriptor.
type Crossing struct {
	ID    uint64 // of the request
	Cmd   string
	Input []byte // what the client has sent after it and was read

	conn net.Conn
}

// Cross returns what it takes to answer r in another image of this process. It is for
// the goroutine that Handle was called by.
func (r Request) Cross() Crossing {
	if r.of == nil {
		return Crossing{}
	}
	in := &r.of.in
	return Crossing{ID: r.ID, Cmd: r.Cmd, Input: slices.Clone(in.buf[:in.n]), conn: r.of.c}
}

// SyscallConn lends the connection. There is none if nobody waits for an answer.
func (c Crossing) SyscallConn() (syscall.RawConn, error) {
	if sc, ok := c.conn.(syscall.Conn); ok {
		return sc.SyscallConn()
	}
	return nil, net.ErrClosed
}

// Resume has Serve, which is not yet called, first answer a request of the image before,
// and go on with its client. f is that client's connection and is closed here; the copy
// that the Server has of it is closed by Serve.
func (s *Server) Resume(f *os.File, c Crossing, result any, answer error) error {
	defer f.Close() //nolint:errcheck // nothing was written
	conn, err := net.FileConn(f)
	if err != nil {
		return fmt.Errorf("resume control connection: %w", err)
	}
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		_ = conn.Close()
		return fmt.Errorf("resume control connection: it is a %s socket", conn.LocalAddr().Network())
	}
	peer, err := peerOf(uc)
	if err != nil {
		_ = uc.Close()
		return fmt.Errorf("resume control connection: %w", err)
	}
	k := &client{s: s, c: uc, peer: peer, in: lineReader{r: uc, buf: c.Input, n: len(c.Input)}}
	k.first = func() bool { return k.finish(Request{ID: c.ID, Cmd: c.Cmd}, result, answer) }
	s.resumed = k
	return nil
}
