package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"rrd/dispatcher/internal/aside"
)

// A listening socket outlives the master when somebody else holds it too: the
// service manager, in its descriptor store. The next master is given it back and
// serves the same queue.

// Sockets returns duplicates of a configured listener's sockets, for somebody to hold
// them; the caller closes them. Never put one into blocking mode (os.File.Fd does): the
// flag is the socket's, not the duplicate's. There are none of a listener whose slots
// have sockets of their own: a socket that nobody accepts from would be given its
// share of the connections all the same.
func (d *Dispatcher) Sockets(name, address string) (files []*os.File, err error) {
	err = d.do(context.Background(), func(l *loop) {
		for _, ln := range l.listeners {
			if ln == nil || ln.closing || ln.sock == nil || !ln.isOpen(name, address) {
				continue
			}
			if dup, derr := ln.sock.fd.Dup(); derr == nil {
				files = append(files, os.NewFile(uintptr(dup.Release()), name))
			} else {
				files, err = nil, derr
			}
			return
		}
	})
	if err != nil {
		return nil, fmt.Errorf("duplicate the socket of %s: %w", name, err)
	}
	return files, nil
}

// errOtherSocket says that a kept socket is not that of the listener's address.
var errOtherSocket = errors.New("the kept socket is of another address")

// kept makes the socket of a listener out of one that was kept for it, and takes its
// descriptor. It is ours in every way: closing it closes the listener.
func kept(c ListenerConfig) (*socket, error) {
	s, err := inherited(c.File)
	if err != nil {
		return nil, err
	}
	if err := s.becomes(c); err != nil {
		_ = s.fd.Close()
		return nil, err
	}
	// Who held it may have been ended while it closed the listener.
	_ = aside.DetachFilterInline(s.fd)
	if !s.packet() {
		setBacklog(s.fd, backlogOr(c.Backlog))
	}
	s.kept = true
	return s, nil
}

// becomes checks that the socket is what c would bind.
func (s *socket) becomes(c ListenerConfig) error {
	if s.network != strings.TrimRight(c.Network, "46") {
		return errOtherSocket
	}
	s.network = c.Network
	if c.Network == "unix" {
		return s.findFile(c.Address)
	}
	want, err := parseInet(c.Address)
	if err != nil {
		return err
	}
	is, err := netip.ParseAddrPort(s.addr)
	if err != nil {
		return err
	}
	switch {
	case want.Port() != 0 && want.Port() != is.Port():
		return errOtherSocket
	case !want.Addr().IsValid() || want.Addr().IsUnspecified():
		only4 := want.Addr().Is4() || strings.HasSuffix(c.Network, "4")
		if !is.Addr().IsUnspecified() || only4 && !is.Addr().Is4() || strings.HasSuffix(c.Network, "6") && is.Addr().Is4() {
			return errOtherSocket
		}
	case want.Addr().WithZone("") != is.Addr().WithZone(""):
		return errOtherSocket
	}
	return nil
}

// bind opens the socket of a listener, or takes the one that was kept for it if that
// fits.
func (d *Dispatcher) bind(c ListenerConfig) (*socket, error) {
	o := bindOptions{replaceStale: true, backlog: c.Backlog, mode: c.Mode, uid: c.UID, gid: c.GID}
	o.reuseport = d.cfg.Policy == SchedReuseport && isTCP(c.Network)
	switch {
	case c.Network == "fd":
		return inherited(c.File)
	case c.File != nil && o.reuseport:
		_ = c.File.Close() // one socket cannot be that of every slot
	case c.File != nil:
		if s, err := kept(c); err == nil {
			return s, nil
		}
	}
	return bindSocket(c.Network, c.Address, o)
}

// ProcessStats are the counts and the state of one process. Several processes of a slot may
// serve at the same time, as in a roll.
type ProcessStats struct {
	ID   uint64 // of its Worker
	Slot int
	Acks uint64
	// Late is set while it gets nothing more because it did not answer in time.
	Late bool
	// LateFor is the time by which its oldest answer is later than BusyAfter; 0: it is
	// not late.
	LateFor time.Duration
	// Unhealthy is set while the program's own check fails.
	Unhealthy bool
	// Heard is the time of its last message; zero: none yet.
	Heard time.Time
}

func (l *loop) copyProcesses() []ProcessStats {
	out := make([]ProcessStats, 0, len(l.byID))
	for _, k := range l.links {
		if k == nil {
			continue
		}
		p := ProcessStats{ID: k.id, Slot: k.slot, Acks: k.acks, Late: k.late, LateFor: l.lateFor(k), Unhealthy: k.unhealthy}
		if k.spoke {
			p.Heard = time.Now().Add(-time.Duration(l.now - k.heard))
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b ProcessStats) int { return a.Slot - b.Slot })
	return out
}

func (l *loop) lateFor(k *link) time.Duration {
	if !k.late {
		return 0
	}
	return time.Duration(max(l.now-k.lateSince-int64(l.cfg.BusyAfter), 0))
}
