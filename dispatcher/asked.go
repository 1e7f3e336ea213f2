package dispatcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"rrd/handoff"
)

// Listeners that workers ask for. With --listen a worker gets one of those.
// Without, the first asker of an address has it bound, later ones join, and an
// error reaches every asker, whereupon the next may try again. A worker that asks
// for port 0 several times numbers these requests, and gets as many ports.

// askedListener is an address that workers asked for.
//
//	binding --ok--> open --last user gone--> closing --asked again--> binding
//	  |  ^ \--error--> gone                       \--closed--> gone
//	  |  +--listener closed--+
//	  +--taken by a listener of ours--> waiting
type askedListener struct {
	key     string
	network string
	address string
	ln      *listener // nil: binding
	waiting []asker
	backlog int
	mode    os.FileMode // added to that of a socket file
	reuse   bool        // SO_REUSEADDR on a datagram socket
	private bool        // its worker accepts by itself under every policy
	closing bool
	// refused is the error of the last bind, if another try may succeed; see collide.go.
	// giveUpAt is the time of the last try; 0: there is no limit, the port will be free.
	refused  error
	giveUpAt int64
	// users has the slots that use it: by which worker, or 0 while the slot waits
	// for a successor, which may want it again.
	users map[int]uint64
}

// name is the address, as it was asked for. No path is mistaken for ClosedListeners.
func (a *askedListener) name() string {
	if a.address == ClosedListeners {
		return "./" + a.address
	}
	return a.address
}

type asker struct {
	k *link
	r *request
}

// request is a LISTEN.
type request struct {
	seq              uint64
	network, address string
	ordinal          uint32 // which of this worker's equal requests for port 0
	backlog          int
	flags            uint16
	private          bool   // only for the process that asks
	data             []byte // for all workers of the listener, from the first that has some
}

func (r *request) exact() bool { return r.flags&handoff.ListenExact != 0 }

// asksPrivately reports whether f asks for a socket that a Node tool has made for itself.
// Package node sets that flag. In a worker's own frame it means nothing.
func (k *link) asksPrivately(f *handoff.Frame) bool {
	return f.Type == handoff.Listen && k.traits.HangsUp && f.Flags&handoff.ListenPrivate != 0
}

// key names the listener. Only port 0 can be had several times.
func (r *request) key() string {
	key := addressKey(r.network, r.address)
	if r.ordinal > 0 && strings.HasSuffix(key, ":0") {
		key += "#" + strconv.FormatUint(uint64(r.ordinal), 10)
	}
	return key
}

// fileMode is what the request adds to the mode of a socket file.
func (r *request) fileMode() (m os.FileMode) {
	if r.flags&handoff.ListenReadable != 0 {
		m |= 0o444
	}
	if r.flags&handoff.ListenWritable != 0 {
		m |= 0o222
	}
	return m
}

// listenAsked answers a LISTEN, now or when the socket is bound.
func (l *loop) listenAsked(k *link, f *handoff.Frame) {
	k.listens++ // refuse takes it back
	network, address, ok := bytes.Cut(f.Payload, []byte{0})
	r := request{seq: f.Seq, network: string(network), address: string(address),
		ordinal: f.Listener, backlog: int(f.Arg), flags: f.Flags, data: bytes.Clone(f.Data), private: k.asksPrivately(f)}
	switch {
	case k.listens > maxListens:
		l.refuse(k, &r, errTooManyListens)
	case !ok || !knownNetwork(r.network):
		l.refuse(k, &r, fmt.Errorf("unknown network %q: %w", network, syscall.EINVAL))
	case l.draining || k.state == handoff.Draining:
		l.refuse(k, &r, fmt.Errorf("this worker is being stopped: %w", syscall.ECANCELED))
	case l.cfg.Configured:
		ln, err := l.resolve(k, &r)
		if err != nil {
			l.refuse(k, &r, err)
			return
		}
		l.join(k, &r, ln)
	case r.network == "fd":
		l.refuse(k, &r, unknownFD(r.address))
	default:
		l.ask(k, &r)
	}
}

// hides says whether ln is not for k.
func (k *link) hides(ln *listener) bool {
	return slices.ContainsFunc(k.hidden, func(c ListenerConfig) bool { return ln.isConfigured(c.Name, c.Address) })
}

func knownNetwork(n string) bool {
	switch n {
	case "tcp", "tcp4", "tcp6", "unix", "udp", "udp4", "udp6", "fd":
		return true
	}
	return false
}

// resolve finds the configured listener that a worker means.
func (l *loop) resolve(k *link, r *request) (*listener, error) {
	family := strings.TrimRight(r.network, "46")
	var same []*listener
	for _, ln := range l.listeners {
		if ln == nil || ln.closing || len(ln.sockets()) == 0 || ln.asked != nil || k.hides(ln) {
			continue
		}
		if ln.conf.Name == r.address || ln.inherited() && r.network == "fd" && ln.conf.Address == r.address {
			return ln, nil
		}
		if strings.TrimRight(ln.network, "46") == family {
			same = append(same, ln)
		}
	}
	if r.network == "fd" {
		return nil, unknownFD(r.address)
	}
	key := addressKey(r.network, r.address)
	for _, ln := range same {
		if ln.conf.As > 0 && strings.HasSuffix(key, ":"+strconv.Itoa(ln.conf.As)) {
			return ln, nil
		}
	}
	for _, ln := range same {
		if ln.conf.As == 0 && (key == addressKey(ln.conf.Network, ln.conf.Address) || key == addressKey(ln.network, ln.addr)) {
			return ln, nil
		}
	}
	if len(same) == 1 && !r.exact() {
		return same[0], nil
	}
	names := make([]string, len(same))
	for i, ln := range same {
		names[i] = ln.conf.Name
	}
	if len(same) == 0 {
		return nil, fmt.Errorf("no --listen of rrd is for %s: %w", family, syscall.EADDRNOTAVAIL)
	}
	hint := "ask for one of them"
	if _, port, err := net.SplitHostPort(r.address); err == nil && r.exact() {
		hint = fmt.Sprintf("ask for one of them, or map it with --listen %s,as=%s", same[0].conf.Address, port)
	}
	return nil, fmt.Errorf("%s is none of rrd's --listen addresses (%s): %s: %w",
		r.address, strings.Join(names, ", "), hint, syscall.EADDRNOTAVAIL)
}

// unknownFD refuses a descriptor number: a program could make the master listen
// on one of its own.
func unknownFD(number string) error {
	return fmt.Errorf("descriptor %s is none that rrd was given for its workers, as --listen fd:%s would: %w", number, number, syscall.EINVAL)
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
func (l *loop) join(k *link, r *request, ln *listener) {
	if len(ln.data) == 0 {
		ln.data = r.data
	}
	f := handoff.Frame{Type: handoff.Listening, Seq: r.seq, Listener: ln.wire,
		Payload: []byte(ln.network + "\x00" + ln.addr), Data: ln.data}
	var share handoff.FD
	if ln.shared {
		f.Flags = handoff.ListeningShared
		if strings.HasPrefix(ln.network, "udp") {
			f.Flags |= handoff.ListeningPacket
		}
		if share = ln.lendTo(k.slot); !share.Valid() {
			l.refuse(k, r, fmt.Errorf("no socket for slot %d: %w", k.slot, syscall.EADDRNOTAVAIL))
			return
		}
	}
	if !ln.shared || len(ln.bySlot) > 0 {
		l.table.serve(k.idx, ln.id) // under reuseport for what takeover.go accepts
		l.serveCovered(k, ln)
	}
	if ln.asked != nil {
		ln.asked.users[k.slot] = k.id
	}
	k.joined = append(k.joined, ln.wire)
	for len(k.joinedAt) <= int(ln.id) {
		k.joinedAt = append(k.joinedAt, 0)
	}
	k.joinedAt[ln.id] = k.handoffs
	l.reviewReplaced(k.slot)
	if k.settleAt != 0 {
		k.settleAt = l.now + settleAfter
	}
	if k.releaseAt != 0 {
		k.releaseAt = l.now + settleAfter
	}
	if len(ln.bySlot) > 0 {
		l.reviewSlots()
	}
	l.say(k, f, share)
}

// refuse answers with the errno in err and its text.
func (l *loop) refuse(k *link, r *request, err error) {
	k.listens-- // it got no listener, and may try again
	errno := syscall.EINVAL
	_ = errors.As(err, &errno)
	text := err.Error()
	l.say(k, handoff.Frame{Type: handoff.Listening, Seq: r.seq, Arg: uint32(errno),
		Payload: []byte(text[:min(len(text), handoff.MaxPayload)]), Data: r.data}, handoff.FD{})
	if hook := l.cfg.Hooks.Refused; hook != nil {
		id, network, address := k.id, r.network, r.address
		l.event(func() { hook(id, network, address, err) })
	}
}

// ask joins or makes the listener of an address.
func (l *loop) ask(k *link, r *request) {
	key := r.key()
	a := l.asked[key]
	if a == nil {
		a = l.askedAs(k, key)
	}
	if a == nil {
		a = &askedListener{key: key, network: r.network, address: r.address, mode: r.fileMode(),
			reuse: r.flags&handoff.ListenReuse != 0, private: r.private, users: make(map[int]uint64)}
		l.asked[key] = a
	}
	larger := r.backlog > a.backlog
	a.backlog = max(a.backlog, r.backlog)
	if a.ln != nil && !a.closing && (!a.ln.shared || a.ln.lendTo(k.slot).Valid()) {
		if larger {
			for _, s := range a.ln.sockets() {
				l.changeBacklog(a.ln, s, r.backlog)
			}
		}
		l.join(k, r, a.ln)
		return
	}
	a.waiting = append(a.waiting, asker{k: k, r: r})
	if len(a.waiting) == 1 && !a.closing {
		l.bind(a, k)
	}
}

// bind has a's socket made, with the rights of the worker that asked.
func (l *loop) bind(a *askedListener, k *link) {
	l.askedSocks++ // bound corrects it if no socket was made
	if !l.mayAsk() {
		l.bound(a.key, k, l.closes, nil, errNoDescriptor)
		return
	}
	d, rights, network, address := l.d, k.rights, a.network, a.address
	o := bindOptions{backlog: a.backlog, uid: -1, gid: -1, addMode: a.mode, reuseaddr: a.reuse,
		reuseport: l.cfg.Policy == SchedReuseport && isTCP(network)}
	if a.ln != nil {
		address = a.ln.addr // one more slot's socket; port 0 is resolved
	}
	d.helpers.Add(1)
	go d.bindAsked(a.key, network, address, o, rights, k, l.closes) // Close waits for it
}

// bindAsked binds for the loop. Of k it reads the slot, which never changes.
func (d *Dispatcher) bindAsked(key, network, address string, o bindOptions, r *Rights, k *link, closes uint64) {
	defer d.helpers.Done()
	bind := func() (*socket, error) { return bindWithRights(network, address, o, r) }
	var s *socket
	var err error
	if network == "unix" {
		s, err = d.gates.bindInTime(k.slot, bindLimit, bind)
	} else {
		s, err = bind()
	}
	if errors.Is(err, syscall.EADDRINUSE) && isTCP(network) {
		// Its predecessor may have an address that overlaps.
		var leaving leaver
		c := ListenerConfig{Network: network, Address: address, Backlog: o.backlog}
		if derr := d.do(context.Background(), func(l *loop) { leaving = l.replacedBy(k) }); derr == nil {
			if beside, berr := d.bindBeside(c, leaving, false); berr == nil {
				s, err = beside, nil
			}
		}
	}
	if d.do(context.Background(), func(l *loop) { l.bound(key, k, closes, s, err) }) != nil && err == nil {
		_ = s.close()
	}
}

// bindWithRights refuses what the worker could not do itself. Without rights of its own
// it has the master's, and the system judges.
func bindWithRights(network, address string, o bindOptions, r *Rights) (*socket, error) {
	if network != "unix" {
		if ap, err := parseInet(address); err == nil && r != nil && r.UID != 0 && ap.Port() > 0 && ap.Port() < 1024 {
			return nil, fmt.Errorf("port %d is below 1024 and this worker is not root: %w", ap.Port(), syscall.EACCES)
		}
		return bindSocket(network, address, o)
	}
	var s *socket
	var err error
	o.rights = r
	if rerr := withRights(r, func() { s, err = bindSocket(network, address, o) }); rerr != nil {
		return nil, rerr
	}
	return s, err
}

// bound ends a bind and answers all workers that asked. closes is the number of listeners
// that had closed when the bind began.
func (l *loop) bound(key string, k *link, closes uint64, s *socket, err error) {
	a, slot := l.asked[key], k.slot
	if err != nil {
		l.askedSocks--
	}
	if a == nil {
		if err == nil {
			l.closeUnasked(s)
		}
		return
	}
	first := a.ln == nil
	if err != nil && first && l.waitsForPort(a, closes, err) {
		return
	}
	a.giveUpAt = 0 // another bind of it waits anew
	switch {
	case err == nil && first:
		a.ln, err = l.open(ListenerConfig{Name: a.name(), Network: a.network, Address: a.address,
			Backlog: a.backlog, UID: -1, GID: -1}, s, a)
		if err != nil {
			l.closeUnasked(s)
			break
		}
		if a.backlog > 0 {
			setBacklog(s.fd, a.backlog) // others may have asked for more; no worker has it yet
		}
		l.setAsked(a, slot)
		l.cover(a.ln, l.replacedBy(k))
	case err == nil && !a.ln.addSlot(slot, s):
		l.closeUnasked(s)
	}
	l.answerAskers(a, err)
}

// answerAskers joins the workers that wait for a, or refuses them with err.
func (l *loop) answerAskers(a *askedListener, err error) {
	waiting := a.waiting
	a.waiting = nil
	if err != nil && a.ln == nil {
		delete(l.asked, a.key)
	}
	for _, w := range waiting {
		if l.links[w.k.idx] != w.k || w.k.gone {
			continue
		}
		switch {
		case err != nil:
			l.refuse(w.k, w.r, err)
		case a.ln.shared && !a.ln.lendTo(w.k.slot).Valid():
			a.waiting = append(a.waiting, w) // its slot's socket is still to be made
		default:
			l.join(w.k, w.r, a.ln)
		}
	}
	if len(a.waiting) > 0 {
		l.bind(a, a.waiting[0].k)
		return
	}
	l.closeUnused(a)
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
	before := len(k.joined)
	k.joined = slices.DeleteFunc(k.joined, func(w uint32) bool { return w == wire })
	k.listens -= before - len(k.joined)
	ln := l.byWire[wire]
	if ln == nil {
		return // it crossed the listener's closing
	}
	l.table.leave(k.idx, ln.id)
	l.leaveCovered(k, ln)
	l.reviewReplaced(k.slot)
	if len(ln.bySlot) > 0 {
		l.reviewSlots()
	}
	a := ln.asked
	switch {
	case a == nil || a.users[k.slot] != k.id:
	case l.heir(a, k) != 0:
		a.users[k.slot] = l.heir(a, k)
	case k.state == handoff.Draining:
		a.users[k.slot] = 0 // it goes because it was asked to: its successor may want it
	default:
		delete(a.users, k.slot)
		l.closeUnused(a)
	}
}

// heir is another worker of k's slot that has a's listener and goes on with it, as
// the predecessor of one that has failed; 0: there is none.
func (l *loop) heir(a *askedListener, k *link) uint64 {
	for _, o := range l.links {
		if o != nil && o != k && o.slot == k.slot && !o.gone && o.state < handoff.Draining && a.ln != nil && slices.Contains(o.joined, a.ln.wire) {
			return o.id
		}
	}
	return 0
}

// leaveAsked: a worker is dead. Its slot's successor may want the same, and its
// predecessor may have it still.
func (l *loop) leaveAsked(k *link) {
	for _, a := range l.asked {
		if id, ok := a.users[k.slot]; ok && id == k.id {
			a.users[k.slot] = l.heir(a, k)
		}
	}
}

// releaseSoon: a worker is ready. What its dead predecessor used, its slot uses no longer
// if it has not asked for that either when it has asked for nothing new for settleAfter:
// programs open one listener after another, and are ready with the first.
func (l *loop) releaseSoon(k *link) {
	for _, a := range l.asked {
		if id, ok := a.users[k.slot]; ok && id == 0 {
			k.releaseAt = l.now + settleAfter
			l.releasing = append(l.releasing, k)
			return
		}
	}
}

func (l *loop) release() {
	l.releasing = slices.DeleteFunc(l.releasing, func(k *link) bool {
		due := k.releaseAt <= l.now
		if due {
			k.releaseAt = 0
			l.releaseAsked(k.slot)
		}
		return due
	})
}

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
	a.ln.unwanted = a.ln.cover != nil // whose workers serve who waits
	a.ln.dropQueue = !a.ln.unwanted
	l.startClosing(a.ln)
}

// askedClosed: the socket is closed; whoever asked meanwhile gets a new one.
func (l *loop) askedClosed(a *askedListener) {
	a.closing, a.ln = false, nil
	l.bindAgain(a)
}

// bindAgain makes another try for the workers that still wait for a.
func (l *loop) bindAgain(a *askedListener) {
	a.waiting = slices.DeleteFunc(a.waiting, func(w asker) bool { return l.links[w.k.idx] != w.k || w.k.gone })
	if len(a.waiting) == 0 {
		delete(l.asked, a.key)
		return
	}
	l.bind(a, a.waiting[0].k)
}
