package dispatcher

import (
	"cmp"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"rrd/dispatcher/internal/aside"
	"rrd/handoff"
)

// listener is one place that clients connect to.
//
//	open <--> paused (no descriptors, queue full)      open, paused --> closing --> closed
//
// Under rr the loop accepts from it. A shared one (none, reuseport, UDP) is lent
// to the workers, who accept by themselves; see shared.go.
type listener struct {
	id       listenerID
	wire     uint32 // its name on the channels, never used twice
	token    uint64
	conf     ListenerConfig
	sock     *socket // nil under reuseport, whose sockets are in bySlot
	bySlot   []*slotSock
	shared   bool
	waits    bool           // shared, and blocking
	asked    *askedListener // nil: of the configuration
	data     []byte         // what its first worker left with it; a secret of theirs
	stats    *nameStats
	network  string
	addr     string
	watching bool
	leaving  []*socket // rr: replaced, and with clients in their queues

	neglect neglect
	rearms  rearms
	filters filters
	// unreachable is the reason why no client can connect, by cause; "" if that cause does
	// not apply.
	unreachable    [numCauses]string
	foreignFilters bool // leave filters alone: the process that opened the socket may own them

	cover     *listener // whose workers take the connections, too; see overlap.go
	stopped   bool      // StopListener: new clients are turned away
	closing   bool
	closeBy   int64 // handshakes are waited for until then
	checkAt   int64 // when to look at them again
	looking   bool  // a look is under way
	unlinking int   // files that are being removed
	shaking   bool  // the last look found some, or there was none yet
	filtering bool  // a helper turns new clients away
	unwanted  bool  // CloseListener closes it
	dropQueue bool  // nobody is left to serve what waits
	// waitClosed is closed when the sockets are.
	waitClosed []chan struct{}
}

// closeWait bounds how long a closing listener waits for handshakes.
const (
	closeWait  = int64(time.Second)
	closeCheck = int64(5 * time.Millisecond)
)

func isTCP(network string) bool { return strings.HasPrefix(network, "tcp") }

// ending reports whether rrd turns new clients of ln away. Its filter and its shutdown are
// then rrd's own.
func (ln *listener) ending() bool { return ln.closing || ln.stopped }

// inherited says that others have the socket too: the supervisor that opened it.
func (ln *listener) inherited() bool { return ln.conf.Network == "fd" }

func (ln *listener) info() ListenerInfo {
	return ListenerInfo{Name: ln.conf.Name, Network: ln.network, Address: ln.addr,
		Asked: ln.asked != nil, Shared: ln.shared, Backlog: ln.conf.Backlog}
}

// open makes s a listener, of the configuration or asked for. It owns s once it
// has returned no error.
func (l *loop) open(c ListenerConfig, s *socket, a *askedListener) (*listener, error) {
	if l.draining {
		return nil, ErrClosed
	}
	ln := &listener{conf: c, asked: a, sock: s, network: s.network, addr: s.addr}
	ln.shared = s.packet() || l.cfg.Policy != SchedRR || a != nil && a.private
	ln.foreignFilters = ln.inherited() && s.ownFilters
	ln.id = l.table.addListener()
	ln.token = l.token(int(ln.id), tokenIsListener)
	if int(ln.id) == len(l.listeners) {
		l.listeners = append(l.listeners, nil)
	}
	l.wires++
	ln.wire = l.wires
	ln.stats = l.nameStats(c.Name)
	if ln.shared {
		ln.neglect.since = l.now
		if l.ignoredAt == 0 {
			l.ignoredAt = l.now + ignoredEvery
		}
		// Workers wait in accept(2), as with systemd's sockets: programs that
		// inherit a listener expect that. Those that do not set it themselves,
		// Node apart, which takes a socket as it comes.
		ln.waits = !l.cfg.NonblockingShared
		if ln.waits {
			if err := waitInAccept(s.fd); err != nil {
				l.table.removeListener(ln.id)
				return nil, err
			}
		}
		if !s.kept && !ln.inherited() {
			s.noteQueue() // here: no worker has it yet
		}
	} else if err := l.poll.add(s.fd.Num(), ln.token, false, false); err != nil {
		l.table.removeListener(ln.id)
		return nil, err
	}
	l.listeners[ln.id] = ln
	l.byWire[ln.wire] = ln
	if s.file != nil && l.files.at == 0 {
		l.files.at = l.now + int64(l.d.fileEvery)
	}
	if n := ln.stats; !n.Open || n.Shared || !ln.shared {
		// One name for TCP and UDP, whose workers asked for the same address, is
		// described by what the counts are of.
		n.ListenerInfo = ln.info()
	}
	ln.stats.Open = true
	if l.cfg.Policy == SchedReuseport && s.tcp() && c.Network != "fd" {
		// The first slot's own; the others' are bound to the address it got.
		ln.sock = nil
		ln.addSlot(0, s)
	}
	l.watch(ln)
	if hook := l.cfg.Hooks.Opened; hook != nil {
		info := ln.info()
		l.event(func() { hook(info) })
	}
	return ln, nil
}

// watch makes the poller report the listener exactly while it is to be accepted
// from.
func (l *loop) watch(ln *listener) {
	want := l.acceptAt == 0 && !l.queueFull && !l.stopping
	for _, s := range ln.bySlot {
		if s.taken {
			_ = l.poll.set(s.fd.Num(), ln.token, want && !s.asking, false)
		}
	}
	if ln.sock == nil || ln.shared || want == ln.watching {
		return
	}
	if err := l.poll.set(ln.sock.fd.Num(), ln.token, want, false); err != nil {
		l.fatal("poll listener", err)
		return
	}
	for _, s := range ln.leaving {
		_ = l.poll.set(s.fd.Num(), ln.token, want, false)
	}
	ln.watching = want
}

// accepts says whether the loop takes connections from the listener.
func (ln *listener) accepts() bool {
	for _, s := range ln.bySlot {
		if s.taken {
			return true
		}
	}
	return ln.sock != nil && !ln.shared
}

func (l *loop) watchAll() {
	for _, ln := range l.listeners {
		if ln != nil {
			l.watch(ln)
		}
	}
}

// startClosing turns new clients away; closeListeners ends it.
func (l *loop) startClosing(ln *listener) {
	if ln.closing {
		return
	}
	ln.closing = true
	l.closing++
	ln.closeBy = l.now + closeWait
	ln.checkAt = l.now
	ln.shaking = false
	ln.stats.Pauses[PauseDrain]++
	l.uncover(ln)
	for _, s := range ln.sockets() {
		switch {
		case ln.inherited():
			// Whoever opened it has it too, and a filter or a shutdown would be for
			// them as well. What we leave in its queue is theirs.
		case ln.stopped:
			// Its workers were asked to drain, and may hold it for long. No client waits in it.
			if dup, err := s.fd.Dup(); err == nil {
				l.askHelper(aside.Request{Call: aside.Shutdown, FD: dup, Given: true, Key: s.key()})
			}
		case s.tcp():
			ln.filtering = ln.shared && aside.MaxHelpers > 0
			l.refuseNew(ln, s, func() { ln.shaking, ln.filtering = true, false })
		case s.network == "unix":
			if f := s.file; f != nil {
				s.file = nil
				ln.unlinking++
				l.d.helpers.Add(1)
				go l.d.unlink(ln, f) // Close waits for it
			}
			if !ln.shared {
				// New clients are refused, queued ones can still be accepted.
				// A shared one stays as it is: its workers' Accept would fail.
				refuseUnix(s.fd)
			}
		}
	}
	l.watch(ln)
}

// closeListeners brings every closing listener a step further.
func (l *loop) closeListeners() {
	for _, ln := range l.listeners {
		if ln == nil || !ln.closing || ln.checkAt > l.now {
			continue
		}
		if l.finishClosing(ln) {
			l.closed(ln)
		}
	}
}

// finishClosing reports whether nobody is left in the listener's queues.
func (l *loop) finishClosing(ln *listener) bool {
	ln.checkAt = l.now + closeCheck
	if ln.unlinking > 0 && l.now < ln.closeBy {
		return false // the next bind there must find no file
	}
	if ln.shaking && l.now < ln.closeBy {
		l.look(ln)
		return false
	}
	if ln.filtering && l.now < ln.closeBy {
		return false
	}
	if ln.shared {
		return ln.stopped || l.now >= ln.closeBy || !ln.queued()
	}
	if l.acceptAt != 0 || l.queueFull {
		return ln.inherited() // what is in the kernel's queue waits there
	}
	return !l.acceptFrom(ln) || ln.inherited() && l.now >= ln.closeBy
}

// look counts the handshakes under way, off the loop.
func (l *loop) look(ln *listener) {
	if ln.looking {
		return
	}
	ln.looking = true
	_, p, _ := net.SplitHostPort(ln.addr)
	port, _ := strconv.ParseUint(p, 10, 16)
	l.d.helpers.Add(1)
	go l.d.countHandshakes(ln, uint16(port)) // Close waits for it
}

// countHandshakes looks for the loop, which must not wait. ln is only passed on.
func (d *Dispatcher) countHandshakes(ln *listener, port uint16) {
	defer d.helpers.Done()
	n, err := handshakes(port)
	d.post(func(l *loop) {
		ln.looking = false
		ln.shaking = err == nil && n > 0
		ln.checkAt = l.now + closeCheck
		if !ln.shaking {
			ln.checkAt = l.now
		}
	})
}

// queued reports whether a client waits in the kernel for a worker to accept.
func (ln *listener) queued() bool {
	for _, s := range ln.sockets() {
		if s.packet() {
			continue
		}
		if isReadable(s.fd) {
			return true
		}
	}
	return false
}

// closed ends a listener. Its connections live on in the table until they are
// answered, so the entry goes when the last of them has.
func (l *loop) closed(ln *listener) {
	l.closing--
	ln.closing = false
	ln.dropQueue = ln.dropQueue || ln.unwanted && !l.isServed(ln)
	ln.checkAt = 0
	if ln.sock != nil && !ln.shared {
		_ = l.poll.remove(ln.sock.fd.Num())
	}
	for _, s := range ln.leaving {
		_ = l.poll.remove(s.fd.Num())
	}
	for _, s := range ln.bySlot {
		l.giveBack(s)
	}
	if ln.asked != nil {
		l.askedSocks -= len(ln.sockets())
	}
	l.closeSockets(ln)
	for _, c := range ln.waitClosed {
		close(c)
	}
	ln.waitClosed = nil
	ln.stats.Open = slices.ContainsFunc(l.listeners, func(o *listener) bool {
		return o != nil && o.stats == ln.stats && len(o.sockets()) > 0 // it has the same name
	})
	l.defunct++
	if hook := l.cfg.Hooks.Closed; hook != nil {
		info := ln.info()
		l.event(func() { hook(info) })
	}
	if ln.dropQueue {
		for c := l.table.listeners[ln.id].waiting.head; c != none; c = l.table.listeners[ln.id].waiting.head {
			l.drop(c, DropListenerClosed)
		}
	}
	if a := ln.asked; a != nil {
		ln.asked = nil
		l.askedClosed(a)
	}
	l.portFreed(ln)
}

// bury forgets closed listeners whose last connection has been answered.
func (l *loop) bury() {
	for i, ln := range l.listeners {
		if ln == nil || ln.closing || len(ln.sockets()) > 0 {
			continue
		}
		t := &l.table.listeners[ln.id]
		if t.waiting.len > 0 && ln.unwanted && !l.isServed(ln) {
			ln.dropQueue = true // its last worker has ended since
		}
		for c := t.waiting.head; c != none && ln.dropQueue; c = t.waiting.head {
			l.drop(c, DropListenerClosed) // it came back: rejected by who has left, too
		}
		if t.waiting.len == 0 && t.flying == 0 && t.kept == 0 {
			l.table.removeListener(ln.id)
			delete(l.byWire, ln.wire)
			l.listeners[i] = nil
			l.defunct--
			l.forgetName(ln.stats)
		}
	}
}

func (ln *listener) sockets() []*socket {
	if ln.sock != nil {
		return []*socket{ln.sock}
	}
	var out []*socket
	for _, s := range ln.bySlot {
		out = append(out, s.socket)
	}
	return out
}

func (l *loop) closeSockets(ln *listener) {
	for _, s := range append(ln.sockets(), ln.leaving...) {
		l.closeSocket(ln, s)
	}
	ln.sock, ln.bySlot, ln.leaving = nil, nil, nil
}

// addLive adds what is not counted but is so now.
func (ln *listener) addLive(l *loop, s *ListenerStats) {
	t := &l.table.listeners[ln.id]
	s.Queued += t.waiting.len
	s.InFlight += t.flying
	s.Unreachable = cmp.Or(ln.unreachable[causeFile], ln.unreachable[causeDead], s.Unreachable)
	s.Paused = s.Paused || ln.accepts() && (l.acceptAt != 0 || l.queueFull)
	for _, k := range ln.sockets() {
		if !k.tcp() {
			continue
		}
		l.askQueue(ln, k)
		if q := &k.kernel; q.known {
			s.KernelQueue += q.Length
			s.KernelLimit += q.Limit
			s.KernelKnown = true
			s.KernelDrops += q.Drops
		}
	}
}

// lendTo lends the descriptor that the worker of slot is to accept from; an
// empty one under reuseport means that the slot has none yet.
func (ln *listener) lendTo(slot int) handoff.FD {
	if ln.sock != nil {
		return ln.sock.fd
	}
	for _, s := range ln.bySlot {
		if s.slot == slot && !s.retiring {
			return s.fd
		}
	}
	return handoff.FD{}
}

// Lent is a listening socket for a program that is to inherit it.
type Lent struct {
	Name    string
	Address string   // as its ListenerConfig has it
	File    *os.File // a duplicate; the caller closes it
}
