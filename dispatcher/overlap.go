package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"rrd/dispatcher/internal/aside"
)

// A reload may change an address to one that overlaps it: :80 to 127.0.0.1:80, back, or
// 0.0.0.0:80 to :80. The kernel refuses the second socket unless both have SO_REUSEPORT.
// So both have it for the moment of the bind, and no longer, because any process of the
// same user could join them.
//
// Both are open until the reload has succeeded or failed. The kernel gives a client to
// the narrower one. So under rr the workers of the wider one take its connections too.
// Only one of the two generations may have workers, and the client must not wait.

// A leaver reports whether a listener will close soon.
type leaver func(*listener) bool

func isOneOf(list []ListenerConfig) leaver {
	return func(ln *listener) bool {
		return slices.ContainsFunc(list, func(c ListenerConfig) bool { return ln.isConfigured(c.Name, c.Address) })
	}
}

// bindBeside binds an address that overlaps those of leaving listeners, or only tries to.
func (d *Dispatcher) bindBeside(c ListenerConfig, leaving leaver, try bool) (*socket, error) {
	o := bindOptions{backlog: c.Backlog, uid: -1, gid: -1, reuseport: true, boundOnly: try}
	inUse := os.NewSyscallError("bind", syscall.EADDRINUSE)
	switch {
	case c.Network == "unix" || c.Network == "fd":
		return nil, inUse
	case d.cfg.Policy == SchedReuseport && isTCP(c.Network):
		return bindSocket(c.Network, c.Address, o) // all of them have the option
	}
	set, err := d.setReuseport(c, leaving, 1)
	if err != nil {
		_, undo := d.setReuseport(c, leaving, 0) // some may have it
		return nil, errors.Join(err, undo)
	}
	if set == 0 {
		return nil, inUse // by another process
	}
	s, err := bindSocket(c.Network, c.Address, o)
	_, undo := d.setReuseport(c, leaving, 0)
	if err != nil {
		return nil, errors.Join(err, undo)
	}
	if errno := aside.ReuseportInline(s.fd, 0); errno != 0 {
		undo = errors.Join(undo, os.NewSyscallError("setsockopt", errno))
	}
	if undo != nil { // otherwise the port stays open to other processes
		_ = s.close()
		return nil, undo
	}
	_ = d.seal(s) // again by Seal, when the other socket is closed
	return s, nil
}

// TryBeside reports whether ListenBeside would get the address now. If it could not
// seal the port of a wider listener again, it does not try.
func (d *Dispatcher) TryBeside(c ListenerConfig, leaving []ListenerConfig) error {
	if !maySeal() && slices.ContainsFunc(leaving, func(l ListenerConfig) bool { return Covers(l, c) }) {
		return nil
	}
	s, err := d.bindBeside(c, isOneOf(leaving), true)
	if err != nil {
		return fmt.Errorf("listen %s: %w", c.Name, err)
	}
	_ = s.close()
	_ = d.seal(s) // nothing of it is in the way now
	return nil
}

// setReuseport sets SO_REUSEPORT on the sockets of leaving listeners that have the port of
// c, and returns how many there are. Those of a reuseport listener have it always.
func (d *Dispatcher) setReuseport(c ListenerConfig, leaving leaver, on int) (n int, err error) {
	var answers chan syscall.Errno
	_, port, _ := net.SplitHostPort(c.Address)
	family := strings.TrimRight(c.Network, "46")
	derr := d.do(context.Background(), func(l *loop) {
		answers = make(chan syscall.Errno, len(l.listeners))
		for _, ln := range l.listeners {
			if ln == nil || ln.closing || ln.sock == nil || ln.inherited() || strings.TrimRight(ln.network, "46") != family || !leaving(ln) {
				continue
			}
			if _, p, _ := net.SplitHostPort(ln.addr); p != port {
				continue
			}
			n++
			if !ln.shared {
				answers <- aside.ReuseportInline(ln.sock.fd, on)
				continue
			}
			l.askHelper(aside.Request{Call: aside.Reuseport, FD: ln.sock.fd, Arg: on, Key: ln.sock.key(), Done: func(a *aside.Answer) {
				if !a.Known {
					a.Errno = syscall.ETIMEDOUT
				}
				answers <- a.Errno
			}})
		}
	})
	if derr != nil {
		return 0, derr
	}
	for range n {
		select {
		case errno := <-answers:
			if errno != 0 {
				err = errors.Join(err, os.NewSyscallError("setsockopt", errno))
			}
		case <-d.ended:
			return n, ErrClosed
		}
	}
	return n, err
}

// Seal makes sure that no other process can join the port of an open listener after
// ListenBeside. Call it when the other listeners are closed. It fails for a wildcard
// address without CAP_NET_ADMIN: then a process of the same user can join.
func (d *Dispatcher) Seal(name, address string) error {
	var s *socket
	err := d.do(context.Background(), func(l *loop) {
		for _, ln := range l.listeners {
			if ln != nil && ln.isOpen(name, address) && ln.sock != nil && ln.sock.tcp() {
				s = &socket{network: ln.sock.network, addr: ln.sock.addr}
			}
		}
	})
	if err == nil && s != nil {
		err = d.seal(s)
	}
	if err != nil {
		return fmt.Errorf("seal port of %s: %w", name, err)
	}
	return nil
}

func (d *Dispatcher) seal(s *socket) error {
	if d.cfg.Policy == SchedReuseport || !s.tcp() {
		return nil
	}
	return sealPort(s.network, s.addr)
}

// replacedBy selects the listeners that an older worker of k's slot asked for and k did
// not. It selects none except under rr, because workers that hold a socket keep it.
func (l *loop) replacedBy(k *link) leaver {
	return func(ln *listener) bool {
		return ln.asked != nil && !ln.shared && !slices.Contains(k.joined, ln.wire) && slices.ContainsFunc(l.links, func(o *link) bool {
			return o != nil && o.slot == k.slot && o.id < k.id && slices.Contains(o.joined, ln.wire)
		})
	}
}

// cover joins a new listener with the leaving ones that it overlaps.
func (l *loop) cover(ln *listener, leaving leaver) {
	if ln.shared {
		return
	}
	for _, old := range l.listeners {
		switch {
		case old == nil || old == ln || old.shared || old.closing || !leaving(old):
			continue
		case covers(ln, old):
			old.cover = ln
		case covers(old, ln):
			ln.cover = old
		default:
			continue
		}
		for _, k := range l.links {
			if k != nil && !k.gone {
				for _, wire := range k.joined {
					l.serveCovered(k, l.byWire[wire])
				}
			}
		}
	}
}

// covers reports whether the addresses of w include those of n.
func covers(w, n *listener) bool {
	a, aerr := netip.ParseAddrPort(w.addr)
	b, berr := netip.ParseAddrPort(n.addr)
	if aerr != nil || berr != nil || a == b || a.Port() != b.Port() || !isTCP(w.network) || !isTCP(n.network) || !a.Addr().IsUnspecified() {
		return false
	}
	dual := a.Addr().Is6() && w.network == "tcp"
	return dual || a.Addr().Is4() == b.Addr().Is4()
}

// serveCovered lets a worker that has ln take connections of the listeners that ln covers.
func (l *loop) serveCovered(k *link, ln *listener) {
	for _, o := range l.listeners {
		if ln != nil && o != nil && o.cover == ln && !slices.Contains(k.joined, o.wire) {
			l.table.serve(k.idx, o.id)
		}
	}
}

// leaveCovered undoes serveCovered.
func (l *loop) leaveCovered(k *link, ln *listener) {
	for _, o := range l.listeners {
		if o != nil && o.cover == ln && !slices.Contains(k.joined, o.wire) {
			l.table.leave(k.idx, o.id)
		}
	}
}

// serveAgain ends a reject, also of a connection of a listener that ln covers.
func (l *loop) serveAgain(k *link, ln *listener) {
	l.table.serve(k.idx, ln.id)
	for _, o := range l.listeners {
		if o != nil && o.cover == ln && l.table.serves(k.idx, o.id) {
			l.table.serve(k.idx, o.id)
		}
	}
}

// uncover ends the cover by ln, which is being closed.
func (l *loop) uncover(ln *listener) {
	for _, k := range l.links {
		if k != nil {
			l.leaveCovered(k, ln)
		}
	}
	for _, o := range l.listeners {
		if o != nil && o.cover == ln {
			o.cover = nil
		}
	}
}

// wireOf returns the number by which k knows the listener of a connection.
func (k *link) wireOf(ln *listener) uint32 {
	if ln.cover != nil && !slices.Contains(k.joined, ln.wire) {
		return ln.cover.wire
	}
	return ln.wire
}

// Covers reports whether the TCP address of wide includes that of narrow, and more.
func Covers(wide, narrow ListenerConfig) bool {
	w, n := listener{addr: bindAddress(wide), network: wide.Network}, listener{addr: bindAddress(narrow), network: narrow.Network}
	return covers(&w, &n)
}

// bindAddress is the address that a listener without a host is bound to.
func bindAddress(c ListenerConfig) string {
	ap, err := parseInet(c.Address)
	if err != nil {
		return ""
	}
	if !ap.Addr().IsValid() {
		all := netip.IPv6Unspecified()
		if strings.HasSuffix(c.Network, "4") {
			all = netip.IPv4Unspecified()
		}
		ap = netip.AddrPortFrom(all, ap.Port())
	}
	return ap.String()
}

// StopListener turns new clients of a TCP listener away and returns when its workers have
// accepted those that wait, or ctx ends. The listener stays open. CloseListener then shuts
// the socket down, which its workers may still hold, so that clients reach the wider
// listener.
func (d *Dispatcher) StopListener(ctx context.Context, name, address string) error {
	var port uint16
	var ln *listener
	refused := make(chan struct{})
	err := d.do(ctx, func(l *loop) {
		for _, o := range l.listeners {
			if o == nil || !o.isOpen(name, address) || !isTCP(o.network) || o.closing {
				continue
			}
			ln = o
			ln.stopped = true
			if at, err := netip.ParseAddrPort(ln.addr); err == nil {
				port = at.Port()
			}
			left := len(ln.sockets())
			for _, s := range ln.sockets() {
				l.askHelper(aside.Request{Call: aside.RefuseNew, FD: s.fd, Key: s.key(), Done: func(*aside.Answer) {
					if left--; left == 0 {
						close(refused)
					}
				}})
			}
			return
		}
	})
	switch {
	case err != nil:
		return fmt.Errorf("stop listener %s: %w", name, err)
	case ln == nil:
		return fmt.Errorf("stop listener %s: there is none", name)
	}
	select {
	case <-refused:
	case <-d.ended:
		return fmt.Errorf("stop listener %s: %w", name, ErrClosed)
	case <-ctx.Done():
		return fmt.Errorf("stop listener %s: %w", name, ctx.Err())
	}
	return d.awaitEmpty(ctx, name, port, ln)
}

// awaitEmpty waits until no client of ln is in a handshake or waits to be accepted.
func (d *Dispatcher) awaitEmpty(ctx context.Context, name string, port uint16, ln *listener) error {
	tick := time.NewTicker(time.Duration(closeCheck))
	defer tick.Stop()
	for {
		n, err := handshakes(port)
		queued := false
		if derr := d.do(ctx, func(*loop) { queued = ln.queued() }); derr != nil {
			return fmt.Errorf("stop listener %s: %w", name, derr)
		}
		if (err != nil || n == 0) && !queued {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("stop listener %s: %w", name, ctx.Err())
		}
	}
}
