package dispatcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"rrd/handoff"
)

// Listeners that workers ask for. With --listen a worker gets one of those.
// Without, the first asker of an address has it bound, later ones join, and an
// error reaches every asker, whereupon the next may try again.

// askedListener is an address that workers asked for.
//
//	binding --ok--> open --last user gone--> closing --asked again--> binding
//	   \--error--> gone                          \--closed--> gone
type askedListener struct {
	key     string
	network string
	address string
	ln      *listener // nil: binding
	waiting []asker
	backlog int
	closing bool
	// users has the slots that use it: by which worker, or 0 while the slot waits
	// for a successor, which may want it again.
	users map[int]uint64
}

type asker struct {
	k   *link
	seq uint64
}

// listenAsked answers a LISTEN, now or when the socket is bound.
func (l *loop) listenAsked(k *link, f *handoff.Frame) {
	if k.listens++; k.listens > maxListens {
		l.broke(k, "more than 64 LISTENs")
		return
	}
	network, address, ok := bytes.Cut(f.Payload, []byte{0})
	if !ok || !knownNetwork(string(network)) {
		l.refuse(k, f.Seq, string(network), string(address), fmt.Errorf("unknown network %q: %w", network, syscall.EINVAL))
		return
	}
	if l.draining || k.state == handoff.Draining {
		l.refuse(k, f.Seq, string(network), string(address), fmt.Errorf("this worker is being stopped: %w", syscall.ECANCELED))
		return
	}
	if l.cfg.Configured {
		ln, err := l.resolve(string(network), string(address))
		if err != nil {
			l.refuse(k, f.Seq, string(network), string(address), err)
			return
		}
		l.join(k, f.Seq, ln)
		return
	}
	l.ask(k, f.Seq, string(network), string(address), int(f.Arg))
}

func knownNetwork(n string) bool {
	switch n {
	case "tcp", "tcp4", "tcp6", "unix", "udp", "udp4", "udp6":
		return true
	}
	return false
}

// resolve finds the configured listener that a worker means.
func (l *loop) resolve(network, address string) (*listener, error) {
	family := strings.TrimRight(network, "46")
	var same []*listener
	for _, ln := range l.listeners {
		if ln == nil || ln.closing || !ln.stats.Open || ln.asked != nil {
			continue
		}
		if ln.conf.Name == address {
			return ln, nil
		}
		if strings.TrimRight(ln.network, "46") == family {
			same = append(same, ln)
		}
	}
	key := addressKey(network, address)
	for _, ln := range same {
		if key == addressKey(ln.conf.Network, ln.conf.Address) || key == addressKey(ln.network, ln.addr) {
			return ln, nil
		}
	}
	if len(same) == 1 {
		return same[0], nil
	}
	names := make([]string, len(same))
	for i, ln := range same {
		names[i] = ln.conf.Name
	}
	if len(same) == 0 {
		return nil, fmt.Errorf("no --listen of rrd is for %s: %w", family, syscall.EADDRNOTAVAIL)
	}
	return nil, fmt.Errorf("%s is none of rrd's --listen addresses (%s); ask for one of them: %w",
		address, strings.Join(names, ", "), syscall.EADDRNOTAVAIL)
}

// addressKey makes addresses comparable: ":80" and "[::]:80" are one under
// "tcp", as are a name's and an address's spelling.
func addressKey(network, address string) string {
	family := strings.TrimRight(network, "46")
	if family == "unix" {
		return "unix|" + address
	}
	ap, err := parseInet(address)
	if err != nil {
		return family + "|?" + address
	}
	a := ap.Addr()
	switch {
	case a.IsValid() && !a.IsUnspecified():
	case strings.HasSuffix(network, "4") || a.Is4():
		a = netip.IPv4Unspecified()
	case strings.HasSuffix(network, "6"):
		return family + "|only" + netip.AddrPortFrom(netip.IPv6Unspecified(), ap.Port()).String()
	default:
		a = netip.IPv6Unspecified()
	}
	return family + "|" + netip.AddrPortFrom(a, ap.Port()).String()
}

// join makes k a worker of ln and tells it so.
func (l *loop) join(k *link, seq uint64, ln *listener) {
	f := handoff.Frame{Type: handoff.Listening, Seq: seq, Listener: ln.wire,
		Payload: []byte(ln.network + "\x00" + ln.addr)}
	var share handoff.FD
	if ln.shared {
		f.Flags = handoff.ListeningShared
		if strings.HasPrefix(ln.network, "udp") {
			f.Flags |= handoff.ListeningPacket
		}
		if share = ln.lendTo(k.slot); !share.Valid() {
			l.refuse(k, seq, ln.network, ln.addr, fmt.Errorf("no socket for slot %d: %w", k.slot, syscall.EADDRNOTAVAIL))
			return
		}
	}
	if !ln.shared || len(ln.bySlot) > 0 {
		l.table.serve(k.idx, ln.id) // under reuseport for what takeover.go accepts
	}
	if ln.asked != nil {
		ln.asked.users[k.slot] = k.id
	}
	l.say(k, f, share)
}

// refuse answers with the errno in err and its text.
func (l *loop) refuse(k *link, seq uint64, network, address string, err error) {
	errno := syscall.EINVAL
	_ = errors.As(err, &errno)
	text := err.Error()
	l.say(k, handoff.Frame{Type: handoff.Listening, Seq: seq, Arg: uint32(errno),
		Payload: []byte(text[:min(len(text), handoff.MaxPayload)])}, handoff.FD{})
	if hook := l.cfg.Hooks.Refused; hook != nil {
		id := k.id
		l.event(func() { hook(id, network, address, err) })
	}
}

// ask joins or makes the listener of an address.
func (l *loop) ask(k *link, seq uint64, network, address string, backlog int) {
	key := addressKey(network, address)
	a := l.asked[key]
	if a == nil {
		a = &askedListener{key: key, network: network, address: address, users: make(map[int]uint64)}
		l.asked[key] = a
	}
	larger := backlog > a.backlog
	a.backlog = max(a.backlog, backlog)
	if a.ln != nil && !a.closing && (!a.ln.shared || a.ln.lendTo(k.slot).Valid()) {
		if larger {
			for _, s := range a.ln.sockets() {
				setBacklog(s.fd, backlog)
			}
		}
		l.join(k, seq, a.ln)
		return
	}
	a.waiting = append(a.waiting, asker{k: k, seq: seq})
	if len(a.waiting) == 1 && !a.closing {
		l.bind(a, k)
	}
}

// bind has a's socket made, with the rights of the worker that asked.
func (l *loop) bind(a *askedListener, k *link) {
	d, rights, network, address := l.d, k.rights, a.network, a.address
	o := bindOptions{backlog: a.backlog, uid: -1, gid: -1,
		reuseport: l.cfg.Policy == SchedReuseport && isTCP(network)}
	if a.ln != nil {
		address = a.ln.addr // one more slot's socket; port 0 is resolved
	}
	d.helpers.Add(1)
	go d.bindAsked(a.key, network, address, o, rights, k.slot) // Close waits for it
}

func (d *Dispatcher) bindAsked(key, network, address string, o bindOptions, r *Rights, slot int) {
	defer d.helpers.Done()
	s, err := bindWithRights(network, address, o, r)
	if d.do(context.Background(), func(l *loop) { l.bound(key, slot, s, err) }) != nil && err == nil {
		_ = s.close()
	}
}

// bindWithRights refuses what the worker could not do itself.
func bindWithRights(network, address string, o bindOptions, r *Rights) (*socket, error) {
	if network != "unix" {
		uid := os.Geteuid()
		if r != nil {
			uid = r.UID
		}
		if ap, err := parseInet(address); err == nil && uid != 0 && ap.Port() > 0 && ap.Port() < 1024 {
			return nil, fmt.Errorf("port %d is below 1024 and this worker is not root: %w", ap.Port(), syscall.EACCES)
		}
		return bindSocket(network, address, o)
	}
	var s *socket
	var err error
	if rerr := withRights(r, func() { s, err = bindSocket(network, address, o) }); rerr != nil {
		return nil, rerr
	}
	if s != nil {
		s.file.setRights(r)
	}
	return s, err
}

// bound ends a bind: everyone who asked is answered.
func (l *loop) bound(key string, slot int, s *socket, err error) {
	a := l.asked[key]
	if err == nil && a == nil {
		_ = s.close()
		return
	}
	if a == nil {
		return
	}
	first := a.ln == nil
	switch {
	case err == nil && first:
		a.ln, err = l.open(ListenerConfig{Name: a.address, Network: a.network, Address: a.address,
			Backlog: a.backlog, UID: -1, GID: -1}, s, a)
		if err != nil {
			_ = s.close()
			break
		}
		if a.backlog > 0 {
			setBacklog(s.fd, a.backlog) // others may have asked for more meanwhile
		}
		l.setAsked(a, slot)
	case err == nil && !a.ln.addSlot(slot, s):
		_ = s.close()
	}
	waiting := a.waiting
	a.waiting = nil
	if err != nil && first {
		delete(l.asked, key)
	}
	for _, w := range waiting {
		if l.links[w.k.idx] != w.k || w.k.gone {
			continue
		}
		switch {
		case err != nil:
			l.refuse(w.k, w.seq, a.network, a.address, err)
		case a.ln.shared && !a.ln.lendTo(w.k.slot).Valid():
			a.waiting = append(a.waiting, w) // its slot's socket is still to be made
		default:
			l.join(w.k, w.seq, a.ln)
		}
	}
	if len(a.waiting) > 0 {
		l.bind(a, a.waiting[0].k)
		return
	}
	if err == nil {
		l.closeUnused(a)
	}
}

// setAsked marks a listener as asked for, and under reuseport gives its first
// socket to the slot that asked.
func (l *loop) setAsked(a *askedListener, slot int) {
	a.ln.asked = a
	a.ln.stats.Asked = true
	if a.ln.sock == nil {
		a.ln.bySlot[0].slot = slot
	}
}

// left: a program has closed its listener.
func (l *loop) left(k *link, wire uint32) {
	ln := l.byWire[wire]
	if ln == nil {
		return // it crossed the listener's closing
	}
	l.table.leave(k.idx, ln.id)
	if a := ln.asked; a != nil && a.users[k.slot] == k.id {
		delete(a.users, k.slot)
		l.closeUnused(a)
	}
}

// leaveAsked: a worker is dead. Its slot's successor may want the same.
func (l *loop) leaveAsked(k *link) {
	for _, a := range l.asked {
		if id, ok := a.users[k.slot]; ok && id == k.id {
			a.users[k.slot] = 0
		}
	}
}

// settleAsked: a worker is ready. What its predecessor used and it has not asked
// for, its slot uses no longer.
func (l *loop) settleAsked(k *link) { l.releaseAsked(k.slot) }

func (l *loop) forgetSlot(slot int) {
	l.retireSlot(slot)
	l.releaseAsked(slot)
}

// releaseAsked: the slot uses no longer what its dead worker used.
func (l *loop) releaseAsked(slot int) {
	for _, a := range l.asked {
		if id, ok := a.users[slot]; ok && id == 0 {
			delete(a.users, slot)
			l.closeUnused(a)
		}
	}
}

// closeUnused closes an asked listener whose last user is gone. What waits then
// has nobody to serve it.
func (l *loop) closeUnused(a *askedListener) {
	if a.ln == nil || a.closing || len(a.users) > 0 || len(a.waiting) > 0 {
		return
	}
	a.closing = true
	a.ln.dropQueue = true
	l.startClosing(a.ln)
}

// askedClosed: the socket is closed; whoever asked meanwhile gets a new one.
func (l *loop) askedClosed(a *askedListener) {
	a.closing, a.ln = false, nil
	alive := a.waiting[:0]
	for _, w := range a.waiting {
		if l.links[w.k.idx] == w.k && !w.k.gone {
			alive = append(alive, w)
		}
	}
	a.waiting = alive
	if len(a.waiting) == 0 {
		delete(l.asked, a.key)
		return
	}
	l.bind(a, a.waiting[0].k)
}
