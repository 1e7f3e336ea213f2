//go:build unix

package main

import (
	"context"
	"net"
	"slices"
	"time"

	"rrd/dispatcher"
)

// A reload that changes an address to one that overlaps it has both open for a while; see
// dispatcher/overlap.go. Under none and reuseport workers hold the sockets. A worker that
// drains may hold the narrower one for long, and the kernel would give it clients that
// no process accepts. So that socket is stopped, its workers are asked to drain, and then it
// is shut down.

// drainNotice is how long rrd waits after DRAIN before it shuts the workers' socket down.
// It is below the second after which a client tries again.
const drainNotice = 300 * time.Millisecond

// emptyWait is how long workers may take to accept the clients of a stopped socket.
const emptyWait = 5 * time.Second

// overlaps reports whether a new address and an old one overlap.
func (d *listenerDiff) overlaps() bool {
	return slices.ContainsFunc(d.open, func(o dispatcher.ListenerConfig) bool {
		return slices.ContainsFunc(d.removed, func(r dispatcher.ListenerConfig) bool {
			return dispatcher.Covers(o, r) || dispatcher.Covers(r, o)
		})
	})
}

// takesPortOf reports whether an old listener has the port of ln.
func (d *listenerDiff) takesPortOf(ln *dispatcher.ListenerConfig) bool {
	_, port, _ := net.SplitHostPort(ln.Address)
	return slices.ContainsFunc(d.removed, func(r dispatcher.ListenerConfig) bool {
		_, p, err := net.SplitHostPort(r.Address)
		return err == nil && p == port && base(&r) == base(ln)
	})
}

// stopsFirst returns those of leaving whose workers hold the socket, and whose clients a
// wider address of staying is to get.
func (m *master) stopsFirst(leaving, staying []dispatcher.ListenerConfig) (list []dispatcher.ListenerConfig) {
	if m.cfg.Policy == dispatcher.SchedRR {
		return nil
	}
	for _, l := range leaving {
		if slices.ContainsFunc(staying, func(s dispatcher.ListenerConfig) bool { return dispatcher.Covers(s, l) }) {
			list = append(list, l)
		}
	}
	return list
}

func without(list, other []dispatcher.ListenerConfig) []dispatcher.ListenerConfig {
	return slices.DeleteFunc(slices.Clone(list), func(c dispatcher.ListenerConfig) bool {
		return slices.ContainsFunc(other, func(o dispatcher.ListenerConfig) bool { return o.Name == c.Name && o.Address == c.Address })
	})
}

// stopListeners turns new clients away, and waits until the workers have accepted the
// others.
func (m *master) stopListeners(ctx context.Context, list []dispatcher.ListenerConfig) {
	ctx, cancel := context.WithTimeout(ctx, emptyWait)
	defer cancel()
	for _, c := range list {
		if err := m.dispatcher.StopListener(ctx, c.Name, c.Address); err != nil {
			m.log.Error().Str("event", "listener.close").Str("listener", c.Name).Err(err).Msg("clients still wait at the listener that is being closed")
		}
	}
}

// closeStopped closes stopped listeners. Their workers were asked to drain before.
func (m *master) closeStopped(ctx context.Context, list []dispatcher.ListenerConfig) {
	if len(list) == 0 {
		return
	}
	timer := time.NewTimer(drainNotice)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	m.closeListeners(ctx, list)
}

// sealPorts closes the ports to other processes of this user.
func (m *master) sealPorts(diff *listenerDiff) {
	for i := range diff.open {
		c := &diff.open[i]
		if !diff.takesPortOf(c) {
			continue
		}
		if err := m.dispatcher.Seal(c.Name, c.Address); err != nil {
			m.log.Warn().Str("event", "listener.unsealed").Str("listener", c.Name).Err(err).
				Msg("other processes of this user can listen on this port with SO_REUSEPORT until rrd is started again")
		}
	}
}
