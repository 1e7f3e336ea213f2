package dispatcher

import (
	"fmt"
	"os"
	"slices"
	"time"

	"rrd/handoff"
)

// longAgo is the age of a restored loop's clock, so that the ages in a State become
// times above 0, which for some means never.
const longAgo = 100 * 24 * time.Hour

// Restore makes a Dispatcher of a State instead of New: connections, workers and
// listeners are where they were. It owns every descriptor in s once it has returned
// no error; after one, none: the program that wrote the State may be given them back.
//
// The hooks are told again what is so of each worker (Spoke, Reader, Ready and the
// like), as what they were told last may have been lost on the way.
func Restore(cfg Config, s *State, codec ChannelCodec) (*Dispatcher, error) {
	p, err := newPoller()
	if err != nil {
		return nil, fmt.Errorf("make poller: %w", err)
	}
	d := newDispatcher(cfg, p)
	l := newLoop(d)
	l.clock.start = time.Now().Add(-longAgo)
	l.now = l.clock.now()
	l.beatAt = l.now + l.beatEvery()
	if err := l.restore(s, codec); err != nil {
		_ = p.close()
		return nil, fmt.Errorf("restore dispatcher: %w", err)
	}
	for i := range s.Links {
		for j := range s.Links[i].Unsent {
			_ = s.Links[i].Unsent[j].Share.Close()
		}
	}
	d.start(l)
	return d, nil
}

// Check says what is wrong with s, as far as that can be seen without touching a
// descriptor.
func (s *State) Check() error {
	if _, err := restoreTable(&s.Table, 0); err != nil {
		return fmt.Errorf("state of the dispatcher: table: %w", err)
	}
	if s.Tickets != nil {
		if err := s.Tickets.check(); err != nil {
			return fmt.Errorf("state of the dispatcher: %w", err)
		}
	}
	return nil
}

func (l *loop) at(age int64) int64 { return max(l.now-age, 1) }

// atOr is at for times of which 0 means never.
func (l *loop) atOr(age int64) int64 {
	if age == noAge {
		return 0
	}
	return l.at(age)
}

func (l *loop) after(in int64) int64 {
	if in <= 0 {
		return 0
	}
	return l.now + in
}

func (l *loop) restore(s *State, codec ChannelCodec) error {
	catchUp := l.rewind(s)
	if err := s.unescapeNames(); err != nil {
		return err
	}
	var err error
	if l.table, err = restoreTable(&s.Table, l.cfg.QueueLimit); err != nil {
		return fmt.Errorf("table: %w", err)
	}
	l.turns, l.wires = s.Turns, s.Wires
	l.stats.Redispatches, l.stats.Dispatch, l.stats.QueueWait, l.stats.HandoffAck = s.Redispatches, s.Dispatch, s.QueueWait, s.HandoffAck
	l.refsUntil, l.acceptAt, l.pause, l.queueFull = l.after(s.RefsIn), l.after(s.AcceptIn), s.pauseOf(), s.QueueFull
	l.restoreNames(s)
	for i := range s.Slots {
		if slot := s.Slots[i].Slot; slot < 0 || slot >= maxSavedWorkers {
			return fmt.Errorf("slot %d", slot)
		}
		*l.slot(s.Slots[i].Slot) = s.Slots[i]
	}
	for _, step := range []func(*State) error{
		l.restoreTickets, l.restoreSocks, l.restoreListeners, l.restoreAsked,
		func(s *State) error { return l.restoreLinks(s, codec) }, l.restoreRest,
	} {
		if err := step(s); err != nil {
			return err
		}
	}
	catchUp()
	// The limits may be others than before, as after a reload.
	l.setLimits(l.limits())
	for _, k := range l.links {
		if k != nil {
			l.review(k)
			l.tellAgain(k)
			l.askAgain(k)
		}
	}
	return nil
}

// askAgain repeats the questions to which the previous image had no answer.
func (l *loop) askAgain(k *link) {
	switch {
	case k.removal != nil:
		l.removing++
		l.recall(k, RedispatchWorkerExit, false)
		l.afterRecall(k)
	case k.gone:
		l.recall(k, RedispatchWorkerExit, false)
	case k.late:
		l.recall(k, RedispatchRecalled, true)
	}
}

// limits are those in force.
func (l *loop) limits() Limits {
	c := l.cfg
	return Limits{QueueLimit: c.QueueLimit, QueueTimeout: c.QueueTimeout, Window: c.Window, BusyAfter: c.BusyAfter,
		HangTimeout: c.HangTimeout, RescueLimit: c.RescueLimit, MaxActive: c.MaxActive, MaxAsked: c.MaxAsked, DrainTimeout: c.DrainTimeout, TicketRotate: c.TicketRotate, Configured: c.Configured}
}

func (l *loop) restoreSocks(s *State) error {
	l.socks = append(l.socks, make([]sock, len(l.table.conns))...)
	for _, k := range s.Socks {
		if k.ID < 0 || int(k.ID) >= len(l.socks) || l.table.conns[k.ID].state == connGone || !k.FD.Valid() || l.socks[k.ID].fd.Valid() {
			return fmt.Errorf("connection %d with descriptor %d", k.ID, k.FD.Num())
		}
		l.socks[k.ID] = sock{fd: k.FD, accepted: l.at(k.Accepted), sent: l.at(k.Sent), seq: k.Seq, tries: k.Tries, deaths: k.Deaths}
	}
	for c := range l.table.conns {
		if l.table.conns[c].state != connGone && !l.socks[c].fd.Valid() {
			return fmt.Errorf("connection %d has no descriptor", c)
		}
	}
	list := func(q *sockList, ids []connID, state connState) error {
		for _, c := range ids {
			if c < 0 || int(c) >= len(l.socks) || l.table.conns[c].state != state || l.socks[c].listed {
				return fmt.Errorf("connection %d is listed", c)
			}
			q.push(l.socks, c)
		}
		return nil
	}
	if err := list(&l.flight, s.Flight, connInFlight); err != nil {
		return err
	}
	l.keptLen = len(s.Kept)
	return list(&l.kept, s.Kept, connKept)
}

func (l *loop) restoreListeners(s *State) error {
	l.listeners = make([]*listener, len(l.table.listeners))
	for i := range s.Listeners {
		in := &s.Listeners[i]
		if in.ID < 0 || int(in.ID) >= len(l.listeners) || !l.table.listeners[in.ID].used || l.listeners[in.ID] != nil || l.byWire[in.Wire] != nil {
			return fmt.Errorf("listener %d, %q", in.ID, in.Name)
		}
		ln := &listener{
			id: in.ID, wire: in.Wire, conf: in.Conf, shared: in.Shared, waits: in.Waits, foreignFilters: in.Filters, data: in.Data,
			network: in.Network, addr: in.Addr, dropQueue: in.DropQueue, unwanted: in.Unwanted, stats: l.nameStats(in.Name),
		}
		ln.token = l.token(int(ln.id), tokenIsListener)
		ln.neglect.since = l.now
		l.listeners[ln.id], l.byWire[ln.wire] = ln, ln
		if in.Sock != nil {
			ln.sock = restoreSocket(in.Sock)
		}
		for j := range in.BySlot {
			k := &in.BySlot[j]
			ln.bySlot = append(ln.bySlot, &slotSock{socket: restoreSocket(k), slot: k.Slot, taken: k.Taken,
				retiring: k.Retiring, unserved: l.atOr(k.Unserved), closeBy: l.after(k.CloseIn)})
		}
		switch {
		case len(ln.sockets()) == 0:
			l.defunct++
		case ln.shared:
			l.ignoredAt = l.now + ignoredEvery
		}
		if ln.sock != nil && ln.sock.file != nil {
			l.files.at = l.now + int64(l.d.fileEvery)
		}
		if err := l.pollListener(ln); err != nil {
			return fmt.Errorf("listener %q: %w", in.Name, err)
		}
	}
	for i := range s.Listeners {
		if in := &s.Listeners[i]; in.Cover != 0 {
			if l.byWire[in.Wire].cover = l.byWire[in.Cover]; l.byWire[in.Cover] == nil {
				return fmt.Errorf("listener %q is covered by one that is not described", in.Name)
			}
		}
	}
	for id := range l.listeners {
		if l.table.listeners[id].used && l.listeners[id] == nil {
			return fmt.Errorf("listener %d is not described", id)
		}
	}
	return nil
}

func restoreSocket(k *savedSocket) *socket {
	s := &socket{fd: k.FD, network: k.Network, addr: k.Addr, kept: k.Kept}
	if k.Queue != nil {
		s.kernel.QueueFacts, s.kernel.known = *k.Queue, true
	}
	if k.Path != "" {
		s.file = &socketFile{path: k.Path, dev: k.Dev, ino: k.Ino, rights: k.Rights, foreign: k.Foreign}
	}
	return s
}

// pollListener has the poller know the sockets that the loop accepts from.
func (l *loop) pollListener(ln *listener) error {
	want := l.acceptAt == 0 && !l.queueFull
	for _, s := range ln.bySlot {
		if s.taken {
			if err := l.poll.add(s.fd.Num(), ln.token, want, false); err != nil {
				return err
			}
		}
	}
	if ln.sock == nil || ln.shared {
		return nil
	}
	ln.watching = want
	return l.poll.add(ln.sock.fd.Num(), ln.token, want, false)
}

func (l *loop) restoreAsked(s *State) error {
	for i := range s.Asked {
		in := &s.Asked[i]
		if in.Listener < 0 || int(in.Listener) >= len(l.listeners) || l.listeners[in.Listener] == nil || l.asked[in.Key] != nil {
			return fmt.Errorf("asked listener %q", in.Key)
		}
		a := &askedListener{key: in.Key, network: in.Network, address: in.Address, ln: l.listeners[in.Listener],
			backlog: in.Backlog, mode: os.FileMode(in.Mode), reuse: in.Reuse, users: in.Users, private: in.Private}
		if a.users == nil {
			a.users = make(map[int]uint64)
		}
		a.ln.asked = a
		l.asked[a.key] = a
		l.askedSocks += len(a.ln.sockets())
	}
	l.restoreClosedNames()
	return nil
}

func (l *loop) restoreLinks(s *State, codec ChannelCodec) error {
	l.links = make([]*link, len(l.table.workers))
	for i := range s.Links {
		in := &s.Links[i]
		if in.Index < 0 || int(in.Index) >= len(l.links) || !l.table.workers[in.Index].used || l.links[in.Index] != nil ||
			l.byID[in.ID] != nil || in.Slot < 0 || in.Slot >= maxSavedWorkers {
			return fmt.Errorf("worker %d of slot %d", in.ID, in.Slot)
		}
		ch, err := codec.Restore(in.Slot, in.Channel)
		if err != nil {
			return fmt.Errorf("channel of slot %d: %w", in.Slot, err)
		}
		k := l.restoreLink(in, ch)
		l.links[k.idx], l.byID[k.id] = k, k
		if k.replaced {
			l.replaced = append(l.replaced, k)
		}
		if in.Retry {
			l.retries = append(l.retries, k)
		}
		if k.gone {
			continue
		}
		if err := l.poll.add(k.ch.Num(), k.token, true, k.full && !k.held() && !in.Retry); err != nil {
			return fmt.Errorf("channel of slot %d: %w", in.Slot, err)
		}
	}
	for w := range l.table.workers {
		if l.table.workers[w].used && l.links[w] == nil {
			return fmt.Errorf("worker %d is not described", w)
		}
	}
	return nil
}

func (l *loop) restoreLink(in *savedLink, ch handoff.Channel) *link {
	// Not hung: who still is will be found to be so, and told of, again.
	k := &link{
		id: in.ID, slot: in.Slot, idx: in.Index, ch: ch, traits: ch.Traits(), state: in.State, rights: in.Rights,
		stats: l.slot(in.Slot), handoffs: in.Handoffs,
		ready: in.Ready, spoke: in.Spoke, late: in.Late, alive: in.Alive, full: in.Full, gone: in.Gone, drained: in.Drained,
		acks: in.Acks, closed: in.Closed, joined: in.Joined, listens: in.Listens, pings: in.Pings, pause: in.RejectPause,
		lateSince: l.at(in.LateSince), pinged: l.atOr(in.Pinged), heard: l.at(in.Heard), settleAt: l.after(in.SettleIn),
		touches: in.Touches, offered: in.Offered, tickets: in.Tickets, unhealthy: in.Unhealthy, reader: in.Reader, replaced: in.Replaced,
	}
	k.part, _ = ch.(partSender)
	k.hold, _ = ch.(holder)
	k.token = l.token(int(k.idx), tokenIsLink)
	// A handoff that is under way may be answered with closed by a worker that has listened
	// again since: once more is better than never again.
	k.joinedAt = slices.Repeat([]uint64{k.handoffs}, len(l.listeners))
	for _, age := range in.AgainAt {
		k.againAt = append(k.againAt, l.at(age))
	}
	if r := in.Removal; r != nil {
		k.removal = &removal{Removal: r.Removal, rescued: r.Rescued}
	}
	for _, p := range in.Unsent {
		k.unsent = append(k.unsent, parcel{p.Frame})
	}
	return k
}

func (l *loop) restoreRest(s *State) error {
	link := func(w workerIdx) (*link, error) {
		if w < 0 || int(w) >= len(l.links) || l.links[w] == nil {
			return nil, fmt.Errorf("worker %d", w)
		}
		return l.links[w], nil
	}
	for _, p := range s.Agains {
		k, err := link(p.Worker)
		if err != nil || p.Listener < 0 || int(p.Listener) >= len(l.listeners) {
			return fmt.Errorf("pause of worker %d at listener %d", p.Worker, p.Listener)
		}
		l.agains = append(l.agains, pendingAgain{k: k, id: p.Listener, at: l.now + max(p.In, 0)})
	}
	for _, w := range s.Late {
		k, err := link(w)
		if err != nil {
			return fmt.Errorf("late: %w", err)
		}
		l.late = append(l.late, k)
	}
	for _, w := range s.Settling {
		k, err := link(w)
		if err != nil {
			return fmt.Errorf("settling: %w", err)
		}
		l.settling = append(l.settling, k)
	}
	for _, k := range l.links {
		if k != nil && k.ready && !k.gone && k.state == handoff.Serving {
			l.releaseSoon(k)
		}
	}
	return nil
}

// tellAgain has the hooks told what is so of a worker.
func (l *loop) tellAgain(k *link) {
	h := &l.cfg.Hooks
	if k.removal != nil {
		return // the pool has forgotten it
	}
	if k.spoke {
		l.tell(k, h.Spoke)
	}
	if k.reader > 0 && h.Reader != nil {
		id, pid := k.id, k.reader
		l.event(func() { h.Reader(id, pid) })
	}
	if k.ready && !l.isSettling(k) {
		l.tell(k, h.Ready)
	}
	if k.unhealthy {
		l.healths = append(l.healths, k)
	}
	if k.drained {
		l.tell(k, h.Drained)
	}
	switch {
	case k.gone && k.traits.HangsUp:
		l.tell(k, h.HungUp)
	case k.gone && h.Broke != nil:
		id := k.id
		l.event(func() { h.Broke(id, "it had broken the protocol before the upgrade") })
	}
}
