//go:build unix && !linux

package worker

import (
	"net"
	"os"

	"rrd/handoff"
)

// A funnel makes connections of descriptors.
type funnel struct{}

// conn takes ownership of d.
func (*funnel) conn(d *handoff.FD) (net.Conn, error) {
	f := os.NewFile(uintptr(d.Release()), "connection")
	defer f.Close()
	return fileConn(f)
}

func (*funnel) open()  {}
func (*funnel) close() {}
