package worker

import (
	"net"
	"os"
)

// fileConn makes f a *net.TCPConn or a *net.UnixConn. Package net offers this way only: it
// duplicates the descriptor (docs/performance.md tells what that costs).
func fileConn(f *os.File) (net.Conn, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	switch c.(type) {
	case *net.TCPConn, *net.UnixConn:
		return c, nil
	}
	_ = c.Close()
	return nil, errWrongKind
}
