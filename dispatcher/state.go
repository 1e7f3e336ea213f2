package dispatcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"rrd/dispatcher/internal/aside"
	"rrd/handoff"
)

// An upgrade in place replaces the program by exec(2) in the same process:
// descriptors keep their numbers, workers stay its children. What the loop knows
// besides crosses as a State, taken between two turns.

// ErrBusy is returned (wrapped) by Park while something is under way that a State
// cannot tell of: a listener that is being bound or closed.
var ErrBusy = errors.New("dispatcher is busy")

// State is everything that a Dispatcher knows. It is JSON, whose unknown fields are
// ignored and whose missing ones are zero, so that versions a little apart
// understand each other. It holds secrets of workers (TLS ticket keys): it is for
// no log and no disk.
type State struct {
	Turns        uint
	Wires        uint32
	Table        savedTable
	Socks        []savedSock
	Flight, Kept []connID // in their order
	Links        []savedLink
	Listeners    []savedListener
	Names        []savedName
	Slots        []SlotStats
	Asked        []savedAsked
	Agains       []savedAgain
	Late         []workerIdx
	Settling     []workerIdx
	Redispatches [NumRedispatches]uint64
	Dispatch     Histogram
	QueueWait    Histogram
	HandoffAck   Histogram
	RefsIn       int64 // ns until something may be sent again; 0: now
	AcceptIn     int64 // and accepted
	Pause        int64
	QueueFull    bool
	Escaped      bool          `json:",omitempty"` // names and paths are as Printable spells them
	Tickets      *savedTickets `json:",omitempty"`
	SavedAt      int64         // handoff.Monotonic, in ns; 0: not known
	BeatIn       int64         // ns until the next heartbeat; 0: not known
}

// Ages are nanoseconds before the State was made; noAge stands for "never".
const noAge = int64(-1)

type savedSock struct {
	ID             connID
	FD             handoff.FD
	Accepted, Sent int64 // ages
	Seq            uint64
	Tries, Deaths  uint32
}

type savedLink struct {
	ID       uint64
	Slot     int
	Index    workerIdx
	Channel  json.RawMessage // as ChannelCodec makes it
	FDs      []handoff.FD    // of the channel
	State    handoff.State
	Rights   *Rights
	Handoffs uint64
	Unsent   []savedParcel
	Retry    bool

	Ready, Spoke, Late, Alive, Full, Gone, Hung, Drained bool

	Acks, Closed uint64
	Joined       []uint32
	Listens      int
	Pings        uint64
	AgainAt      []int64 // ages
	RejectPause  int64
	LateSince    int64
	Pinged       int64
	Heard        int64
	SettleIn     int64
	Touches      bool
	Offered      uint16 // flags of its HELLO
	Tickets      bool
	Unhealthy    bool
	Reader       int
	Replaced     bool

	Removal *savedRemoval `json:",omitempty"` // it is dead
}

// savedRemoval is a removal that waits for a helper. Its questions are asked again.
type savedRemoval struct {
	Removal
	Rescued int64
}

type savedParcel struct {
	Frame handoff.Frame
	Share handoff.FD // of an older rrd, which kept a duplicate; Restore closes it
}

type savedSocket struct {
	FD       handoff.FD
	Network  string
	Addr     string
	Path     string // of the file to be removed with it
	Dev, Ino uint64
	Rights   *Rights
	Foreign  bool
	Kept     bool
	Queue    *aside.QueueFacts `json:",omitempty"` // of a shared one, as asked last
	Slot     int               // reuseport
	Taken    bool
	Retiring bool
	Unserved int64 // age
	CloseIn  int64
}

type savedListener struct {
	ID        listenerID
	Wire      uint32
	Conf      ListenerConfig
	Sock      *savedSocket
	BySlot    []savedSocket
	Shared    bool
	Waits     bool
	Filters   bool   // they are of another process
	Asked     string // key of its savedAsked; empty: of the configuration
	Data      []byte
	Name      string
	Network   string
	Addr      string
	DropQueue bool
	Unwanted  bool
	Cover     uint32 `json:",omitempty"` // wire of the listener whose workers take the connections, too
}

type savedName struct {
	ListenerStats
	DropsSeen [NumDropReasons]uint64
}

type savedAsked struct {
	Key, Network, Address string
	Listener              listenerID
	Backlog               int
	Mode                  uint32
	Reuse                 bool
	Users                 map[int]uint64
	Private               bool `json:",omitempty"`
}

type savedAgain struct {
	Worker   workerIdx
	Listener listenerID
	In       int64
}

// ChannelCodec turns channels into data and back; the dispatcher knows no dialect.
type ChannelCodec struct {
	// Save describes a channel and lists its descriptors, which stay its own.
	Save func(handoff.Channel) (json.RawMessage, []handoff.FD, error)
	// Restore makes the channel of a slot's worker again.
	Restore func(slot int, saved json.RawMessage) (handoff.Channel, error)
}

// FDs are all descriptors in the State.
func (s *State) FDs() (fds []handoff.FD) {
	for i := range s.Socks {
		fds = append(fds, s.Socks[i].FD)
	}
	for i := range s.Links {
		fds = append(fds, s.Links[i].FDs...)
		for _, p := range s.Links[i].Unsent {
			if p.Share.Valid() {
				fds = append(fds, p.Share)
			}
		}
	}
	for i := range s.Listeners {
		if k := s.Listeners[i].Sock; k != nil {
			fds = append(fds, k.FD)
		}
		for j := range s.Listeners[i].BySlot {
			fds = append(fds, s.Listeners[i].BySlot[j].FD)
		}
	}
	return fds
}

// Parked is a Dispatcher that stands still between two turns.
type Parked struct {
	// State is what it knows. All descriptors in it are still the Dispatcher's.
	State *State
	// Resume lets it go on as if nothing had happened. Call it once.
	Resume func()
}

// Park has the loop stand still. Until Resume nothing is accepted, sent or read, and
// all other methods wait.
func (d *Dispatcher) Park(ctx context.Context, codec ChannelCodec) (*Parked, error) {
	type outcome struct {
		state *State
		err   error
	}
	savedC, resumeC := make(chan outcome, 1), make(chan struct{})
	posted := d.post(func(l *loop) {
		state, err := l.save(codec)
		savedC <- outcome{state, err}
		if err == nil {
			<-resumeC
			l.stoodUntil(l.clock.now())
		}
	})
	if !posted {
		return nil, fmt.Errorf("park: %w", ErrClosed)
	}
	select {
	case o := <-savedC:
		if o.err != nil {
			return nil, fmt.Errorf("park: %w", o.err)
		}
		return &Parked{State: o.state, Resume: func() { close(resumeC) }}, nil
	case <-d.ended:
		return nil, fmt.Errorf("park: %w", ErrClosed)
	case <-ctx.Done():
		close(resumeC) // it may get there later
		return nil, fmt.Errorf("park: %w", ctx.Err())
	}
}

func (l *loop) age(at int64) int64 { return max(l.now-at, 0) }

// ageOr is age for times of which 0 means never.
func (l *loop) ageOr(at int64) int64 {
	if at == 0 {
		return noAge
	}
	return l.age(at)
}

// in is what is left until a time of which 0 means now.
func (l *loop) in(at int64) int64 {
	if at == 0 {
		return 0
	}
	return max(at-l.now, 1)
}

// save makes a State. Nothing is changed.
func (l *loop) save(codec ChannelCodec) (*State, error) {
	l.now = l.clock.now()
	switch {
	case l.draining || l.stopping:
		return nil, fmt.Errorf("it is being stopped: %w", ErrBusy)
	case l.aside.Fresh(l.now):
		return nil, fmt.Errorf("a helper is about to answer: %w", ErrBusy)
	case l.closing > 0:
		return nil, fmt.Errorf("a listener is being closed: %w", ErrBusy)
	}
	if l.revivals.binds > 0 {
		return nil, fmt.Errorf("the address of a listener is being bound again: %w", ErrBusy)
	}
	if l.files.looking {
		return nil, fmt.Errorf("the files of its sockets are being looked at: %w", ErrBusy)
	}
	for _, ln := range l.listeners {
		if ln != nil && len(ln.leaving) > 0 {
			return nil, fmt.Errorf("the socket of %s was replaced, and its queue is not empty: %w", ln.conf.Name, ErrBusy)
		}
		if ln != nil && ln.rearms.Times > 0 {
			return nil, fmt.Errorf("the replacement of the socket of %s is not reported yet: %w", ln.conf.Name, ErrBusy)
		}
	}
	for _, a := range l.asked {
		if a.ln == nil || len(a.waiting) > 0 || a.closing {
			return nil, fmt.Errorf("%s %s is being bound: %w", a.network, a.address, ErrBusy)
		}
	}
	s := &State{
		Turns: l.turns, Wires: l.wires, Table: l.table.save(),
		Redispatches: l.stats.Redispatches, Dispatch: l.stats.Dispatch, QueueWait: l.stats.QueueWait, HandoffAck: l.stats.HandoffAck,
		SavedAt: int64(handoff.Monotonic()), BeatIn: l.in(l.beatAt),
		RefsIn: l.in(max(l.refsUntil, 0)), AcceptIn: l.in(l.acceptAt), Pause: int64(l.pause), QueueFull: l.queueFull, Tickets: l.saveTickets(),
	}
	for c := range l.socks {
		if k := &l.socks[c]; k.fd.Valid() {
			s.Socks = append(s.Socks, savedSock{connID(c), k.fd, l.age(k.accepted), l.age(k.sent), k.seq, k.tries, k.deaths})
		}
	}
	for c := l.flight.head; c != none; c = l.socks[c].next {
		s.Flight = append(s.Flight, c)
	}
	for c := l.kept.head; c != none; c = l.socks[c].next {
		s.Kept = append(s.Kept, c)
	}
	for c := range l.socks {
		if l.table.conns[c].state == connKept && !l.socks[c].listed {
			s.Kept = append(s.Kept, connID(c)) // a helper is asked about it
		}
	}
	for _, k := range l.links {
		if k == nil {
			continue
		}
		out, err := l.saveLink(k, codec)
		if err != nil {
			return nil, fmt.Errorf("worker of slot %d: %w", k.slot, err)
		}
		s.Links = append(s.Links, *out)
	}
	for _, ln := range l.listeners {
		if ln != nil {
			s.Listeners = append(s.Listeners, l.saveListener(ln))
		}
	}
	l.saveRest(s)
	s.escapeNames()
	return s, nil
}

func (l *loop) saveRest(s *State) {
	for _, n := range l.names {
		s.Names = append(s.Names, savedName{n.ListenerStats, n.dropsSeen})
	}
	for _, st := range l.slotStats {
		if st != nil {
			s.Slots = append(s.Slots, *st)
		}
	}
	for key, a := range l.asked {
		s.Asked = append(s.Asked, savedAsked{key, a.network, a.address, a.ln.id, a.backlog, uint32(a.mode), a.reuse, a.users, a.private})
	}
	for _, p := range l.agains {
		s.Agains = append(s.Agains, savedAgain{p.k.idx, p.id, l.in(p.at)})
	}
	for _, k := range l.late {
		s.Late = append(s.Late, k.idx)
	}
	for _, k := range l.settling {
		s.Settling = append(s.Settling, k.idx)
	}
}

func (l *loop) saveLink(k *link, codec ChannelCodec) (*savedLink, error) {
	channel, fds, err := codec.Save(k.ch)
	if err != nil {
		return nil, err
	}
	out := &savedLink{
		ID: k.id, Slot: k.slot, Index: k.idx, Channel: channel, FDs: fds, State: k.state, Rights: k.rights, Handoffs: k.handoffs,
		Ready: k.ready, Spoke: k.spoke, Late: k.late, Alive: k.alive, Full: k.full, Gone: k.gone, Hung: k.hung, Drained: k.drained,
		Acks: k.acks, Closed: k.closed, Joined: k.joined, Listens: k.listens, Pings: k.pings, RejectPause: k.pause,
		LateSince: l.age(k.lateSince), Pinged: l.ageOr(k.pinged), Heard: l.age(k.heard), SettleIn: l.in(k.settleAt),
		Touches: k.touches, Offered: k.offered, Tickets: k.tickets, Unhealthy: k.unhealthy, Reader: k.reader, Replaced: k.replaced,
	}
	if r := k.removal; r != nil {
		out.Removal = &savedRemoval{r.Removal, r.rescued}
	}
	for _, at := range k.againAt {
		out.AgainAt = append(out.AgainAt, l.age(at))
	}
	for _, p := range k.unsent {
		out.Unsent = append(out.Unsent, savedParcel{Frame: p.frame})
	}
	for _, r := range l.retries {
		out.Retry = out.Retry || r == k
	}
	return out, nil
}

func (l *loop) saveListener(ln *listener) savedListener {
	out := savedListener{
		ID: ln.id, Wire: ln.wire, Conf: ln.conf, Shared: ln.shared, Waits: ln.waits, Filters: ln.foreignFilters, Data: ln.data, Name: ln.stats.Name,
		Network: ln.network, Addr: ln.addr, DropQueue: ln.dropQueue, Unwanted: ln.unwanted,
	}
	out.Conf.File = nil
	if ln.cover != nil {
		out.Cover = ln.cover.wire
	}
	if ln.asked != nil {
		out.Asked = ln.asked.key
	}
	if ln.sock != nil {
		k := saveSocket(ln.sock)
		out.Sock = &k
	}
	for _, s := range ln.bySlot {
		k := saveSocket(s.socket)
		k.Slot, k.Taken, k.Retiring, k.Unserved, k.CloseIn = s.slot, s.taken, s.retiring, l.ageOr(s.unserved), l.in(s.closeBy)
		out.BySlot = append(out.BySlot, k)
	}
	return out
}

func saveSocket(s *socket) savedSocket {
	out := savedSocket{FD: s.fd, Network: s.network, Addr: s.addr, Kept: s.kept}
	if f := s.file; f != nil {
		out.Path, out.Dev, out.Ino, out.Rights, out.Foreign = f.path, f.dev, f.ino, f.rights, f.foreign
	}
	if s.kernel.known {
		out.Queue = &s.kernel.QueueFacts
	}
	return out
}

// pauseOf is Pause as time.Duration.
func (s *State) pauseOf() time.Duration { return time.Duration(s.Pause) }
