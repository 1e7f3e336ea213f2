package dispatcher

import (
	"context"
	"strings"
)

// Port is a TCP or UDP socket that workers have too.
type Port struct {
	Listener string
	Address  string
	Inode    uint64 // as /proc/net/tcp and /proc/PID/fd name it
}

// LentPorts returns the ports that close with this program and its workers. It leaves out
// those that a supervisor has opened or keeps.
func (d *Dispatcher) LentPorts(ctx context.Context) (ports []Port, err error) {
	out := make(chan []Port, 1)
	if err := d.do(ctx, func(l *loop) { out <- l.lentPorts() }); err != nil {
		return nil, err
	}
	return <-out, nil
}

func (l *loop) lentPorts() (ports []Port) {
	for _, ln := range l.listeners {
		if ln == nil || !ln.shared || ln.inherited() || strings.HasPrefix(ln.network, "unix") {
			continue
		}
		for _, s := range ln.sockets() {
			if inode := inodeOf(s.fd); inode != 0 && !s.kept {
				ports = append(ports, Port{ln.conf.Name, s.addr, inode})
			}
		}
	}
	return ports
}
