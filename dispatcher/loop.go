package dispatcher

import (
	"runtime"
	"time"

	"rrd/dispatcher/internal/aside"
	"rrd/handoff"
)

// loop is everything that the one dispatching goroutine owns. It runs on one
// locked thread, in turns: wait, read answers, run requests, accept, assign,
// flush. It takes no lock but the request queue's, uses no Go channel and
// allocates nothing while connections pass.
type loop struct {
	d     *Dispatcher
	cfg   *Config
	poll  *poller
	clock clock
	now   int64 // of this turn

	table     *table
	socks     []sock   // by connID
	flight    sockList // in flight, by the time they were sent
	kept      sockList // acked, our copy kept for a rescue; oldest first
	keptLen   int
	beatAt    int64
	tickets   ticketKeys
	files     files
	revivals  revivals
	ignoredAt int64   // when to look for ignored listeners; 0: there is no shared one
	links     []*link // by workerIdx
	byID      map[uint64]*link
	listeners []*listener // by listenerID; nil: unused
	byWire    map[uint32]*listener
	wires     uint32
	asked     map[string]*askedListener
	ready     []*listener // to accept from in this turn
	dirty     []*link     // with a batch to flush
	polled    []polled
	running   []func(*loop) // the requests of this turn

	serial    uint64 // of tokens
	turns     uint   // rotates which listener goes first
	expected  int64  // when this turn should have begun at the latest; 0: whenever
	refsUntil int64  // nothing is sent before: ETOOMANYREFS
	acceptAt  int64  // nothing is accepted before: out of descriptors
	pause     time.Duration
	queueFull bool
	timeoutAt int64 // time of the last drop for DropQueueTimeout; 0: never
	agains    []pendingAgain
	healths   []*link // whose health is to be told
	late      []*link
	settling  []*link // ready, but for their predecessor's listeners
	replaced  []*link // by a roll that is not over; see replaced.go
	releasing []*link // ready, and may ask yet for what their dead predecessor had
	retries   []*link // with frames to be sent after refsUntil
	closing   int     // listeners being closed
	closes    uint64  // listeners that have closed
	giveUpAt  int64   // time at which a bind stops waiting for other workers; 0: none waits
	defunct   int     // closed listeners with connections that are still to be answered
	draining  bool
	idle      []chan struct{} // closed when nothing waits, flies or listens
	stopping  bool
	removing  int             // dead workers that are not forgotten yet
	judged    []chan struct{} // closed when removing is 0
	aside     *aside.Client
	reports   reports
	slotStats []*SlotStats // by slot
	names     []*nameStats // in order of opening, then the closed ones
	byName    map[string]*nameStats
	// closedNames are of asked listeners that have closed, the longest closed first.
	closedNames []*nameStats
	askedSocks  int   // sockets that workers asked for, with those being bound
	stats       Stats // counts that are not by listener or slot
	frame       handoff.Frame
}

// sock is the loop's half of a connection; the table has the other.
type sock struct {
	fd       handoff.FD
	accepted int64
	sent     int64 // last
	seq      uint64
	tries    uint32 // handoffs that were sent
	deaths   uint32 // workers that died having read it
	// Neighbours in the loop's flight or kept list.
	prev, next connID
	listed     bool
}

// acceptBatch bounds what one listener gives in a turn, so that answers and
// other listeners have theirs.
const acceptBatch = 64

// loop runs until stop or until polling fails.
func (d *Dispatcher) loop(l *loop) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var err error
	for err == nil && !l.stopping {
		err = l.turn()
	}
	l.finish()
	d.loopErr = err
	close(d.ended)
}

func newLoop(d *Dispatcher) *loop {
	l := &loop{
		d: d, cfg: &d.cfg, poll: d.poll, clock: clock{start: time.Now()},
		table: newTable(d.cfg.Window, d.cfg.QueueLimit),
		socks: make([]sock, 0, d.cfg.QueueLimit),
		byID:  make(map[uint64]*link), asked: make(map[string]*askedListener),
		byWire: make(map[uint32]*listener), byName: make(map[string]*nameStats),
		flight: emptySocks, kept: emptySocks,
	}
	l.aside = aside.NewClient(aside.Config{Limit: l.asideLimit, Want: l.wantHelper, Kill: l.killHelper,
		Watch: l.watchHelper, Unwatch: l.unwatchHelper})
	l.stats.Policy = d.cfg.Policy
	l.beatAt = l.beatEvery()
	return l
}

func (l *loop) turn() error {
	timeout := time.Duration(-1)
	l.expected = 0
	if at := l.nextDeadline(); at > 0 {
		timeout = time.Duration(max(at-l.clock.now(), 0))
		l.expected = at
	}
	var err error
	l.polled, err = l.poll.wait(l.polled, timeout)
	if err != nil {
		return err
	}
	last := l.now
	l.now = l.clock.now()
	l.noticeStall(last, l.expected)
	l.turns++
	requests := false
	for _, p := range l.polled {
		switch {
		case p.token == tokenWake:
			requests = true
		case p.token&tokenKinds == tokenIsHelper:
			l.aside.Receive(p.token)
		case p.token&tokenKinds == tokenIsLink:
			if k := l.linkByToken(p.token); k != nil {
				l.answers(k, p.writable)
			}
		default:
			if ln := l.listenerByToken(p.token); ln != nil {
				l.ready = append(l.ready, ln)
			}
		}
	}
	if requests {
		l.runRequests()
	}
	l.deadlines()
	for i := range l.ready {
		l.acceptFrom(l.ready[(i+int(l.turns))%len(l.ready)])
	}
	l.ready = l.ready[:0]
	if l.closing > 0 {
		l.closeListeners() // before dispatching: it accepts
	}
	l.dispatch()
	l.afterwards()
	return nil
}

// A token names what was polled: a serial number, so that an event of something
// that is gone finds nothing, an index, and two bits for its kind.
const (
	tokenIsListener = 0
	tokenIsLink     = 1
	tokenIsHelper   = 2
	tokenKinds      = 3
	tokenKindBits   = 2
	tokenIndexBits  = 20
)

func (l *loop) token(index int, kind uint64) uint64 {
	l.serial++
	return l.serial<<(tokenIndexBits+tokenKindBits) | uint64(index)<<tokenKindBits | kind
}

func tokenIndex(token uint64) int { return int(token >> tokenKindBits & (1<<tokenIndexBits - 1)) }

func (l *loop) linkByToken(token uint64) *link {
	if i := tokenIndex(token); i < len(l.links) && l.links[i] != nil && l.links[i].token == token {
		return l.links[i]
	}
	return nil
}

func (l *loop) listenerByToken(token uint64) *listener {
	if i := tokenIndex(token); i < len(l.listeners) && l.listeners[i] != nil && l.listeners[i].token == token {
		return l.listeners[i]
	}
	return nil
}

func (l *loop) runRequests() {
	l.d.mu.Lock()
	l.running, l.d.requests = l.d.requests, l.running[:0]
	l.d.mu.Unlock()
	for i, fn := range l.running {
		fn(l)
		l.running[i] = nil
	}
}

// event has a hook called.
func (l *loop) event(call func()) { l.d.events.push(call) }

// dispatch pairs what waits with who is free and sends it. A worker that cannot
// be sent to gives its batch back and is out, so this ends.
func (l *loop) dispatch() {
	for l.table.waiting > 0 {
		l.assign()
		if len(l.dirty) == 0 {
			return
		}
		for i, k := range l.dirty {
			l.flush(k)
			l.dirty[i] = nil
		}
		l.dirty = l.dirty[:0]
	}
}

func (l *loop) assign() {
	if l.refsUntil > l.now {
		return
	}
	n := len(l.listeners)
	for i := range n {
		id := listenerID((i + int(l.turns)) % n)
		if l.listeners[id] == nil {
			continue
		}
		for l.table.room > 0 && l.refsUntil <= l.now && l.dropIfGone(id) {
			c, w, ok := l.table.pair(id)
			if !ok {
				break
			}
			l.offer(l.links[w], c)
		}
	}
}

// connBits is the part of a sequence number that holds the connection's index;
// the rest counts the handoffs of the channel, so numbers grow and a late or
// invented answer finds no connection that carries it.
const connBits = 24

func (l *loop) offer(k *link, c connID) {
	s := &l.socks[c]
	k.handoffs++
	s.seq = k.handoffs<<connBits | uint64(c)
	s.sent = l.now
	l.flight.push(l.socks, c)
	if len(k.batch) == 0 {
		l.dirty = append(l.dirty, k)
	}
	k.batch = append(k.batch, c)
	if k.ch.Add(s.seq, k.wireOf(l.listeners[l.table.conns[c].listener]), s.deaths, s.fd) {
		l.flush(k)
	}
}

// flush sends a worker's batch. If that fails nothing was sent and all of it is
// back in its place.
func (l *loop) flush(k *link) {
	if len(k.batch) == 0 {
		return
	}
	err := k.ch.Flush()
	if err == nil {
		for _, c := range k.batch {
			s := &l.socks[c]
			if s.tries == 0 {
				l.stats.QueueWait.observe(s.sent - s.accepted)
			}
			s.tries++
		}
		k.stats.Handoffs += uint64(len(k.batch))
		k.batch = k.batch[:0]
		if k.part != nil && k.part.Unsent() {
			l.setFull(k, true)
		}
		return
	}
	n := len(k.batch)
	for i := n - 1; i >= 0; i-- {
		l.takeBack(k.batch[i], RedispatchSendError)
	}
	k.batch = k.batch[:0]
	l.cannotSend(k, err, n)
}

// takeBack puts a connection in flight back in its place.
func (l *loop) takeBack(c connID, why Redispatch) {
	l.unfly(c)
	l.table.back(c)
	l.stats.Redispatches[why]++
}

// unfly ends a connection's flight on the loop's side.
func (l *loop) unfly(c connID) {
	l.flight.remove(l.socks, c)
	l.socks[c].seq = 0
}

// drop closes a waiting connection and counts it.
func (l *loop) drop(c connID, why DropReason) {
	ln := l.listeners[l.table.conns[c].listener]
	l.closeConn(&l.socks[c])
	l.table.drop(c)
	ln.stats.Dropped[why]++
	l.reports.dropsPending = l.cfg.Hooks.Dropped != nil
}

// afterwards ends a turn.
func (l *loop) afterwards() {
	if l.queueFull && l.table.waiting <= l.resumeBelow() {
		l.queueFull = false
		l.watchAll()
	}
	if l.defunct > 0 {
		l.bury()
	}
	l.aside.Flush(l.now)
	if len(l.idle) > 0 && l.closing == 0 && l.removing == 0 && l.table.waiting == 0 && l.inFlight() == 0 {
		for _, c := range l.idle {
			close(c)
		}
		l.idle = nil
	}
}

func (l *loop) inFlight() int {
	n := 0
	for _, ln := range l.listeners {
		if ln != nil {
			n += l.table.listeners[ln.id].flying
		}
	}
	return n
}

// stop makes this turn the last.
func (l *loop) stop() { l.stopping = true }

// finish drops and closes everything.
func (l *loop) finish() {
	for c := range l.socks {
		if l.table.conns[c].state == connKept {
			l.letGo(connID(c))
		}
	}
	for _, k := range l.links {
		if k == nil {
			continue
		}
		for c := l.table.workers[k.idx].flying.head; c != none; c = l.table.workers[k.idx].flying.head {
			l.unfly(c)
			l.table.back(c)
		}
		_ = k.ch.Close()
	}
	l.removeFiles()
	for _, ln := range l.listeners {
		if ln == nil {
			continue
		}
		for c := l.table.listeners[ln.id].waiting.head; c != none; c = l.table.listeners[ln.id].waiting.head {
			l.drop(c, DropShutdown)
		}
		l.closeSockets(ln)
	}
	l.aside.Flush(l.now) // what was given to it
	l.aside.Close()
	l.reportDrops(true)
	// Under the lock that posting takes, so that nobody wakes a poller whose
	// descriptors are closed, or are another's by then.
	l.d.mu.Lock()
	l.d.refusing = true
	_ = l.poll.close()
	l.d.mu.Unlock()
}

// sockList links connections, oldest first.
type sockList struct{ head, tail connID }

var emptySocks = sockList{head: none, tail: none}

func (q *sockList) push(socks []sock, c connID) {
	s := &socks[c]
	s.prev, s.next, s.listed = q.tail, none, true
	if q.tail == none {
		q.head = c
	} else {
		socks[q.tail].next = c
	}
	q.tail = c
}

// pushSent is push for one that was sent earlier than others in the list.
func (q *sockList) pushSent(socks []sock, c connID) {
	after := q.tail
	for after != none && socks[after].sent > socks[c].sent {
		after = socks[after].prev
	}
	if after == q.tail {
		q.push(socks, c)
		return
	}
	next := q.head
	if after != none {
		next = socks[after].next
		socks[after].next = c
	} else {
		q.head = c
	}
	socks[c].prev, socks[c].next, socks[c].listed = after, next, true
	socks[next].prev = c
}

func (q *sockList) remove(socks []sock, c connID) {
	s := &socks[c]
	if !s.listed {
		return
	}
	s.listed = false
	if s.prev == none {
		q.head = s.next
	} else {
		socks[s.prev].next = s.next
	}
	if s.next == none {
		q.tail = s.prev
	} else {
		socks[s.next].prev = s.prev
	}
}

// shutdown begins to close every listener; idle is closed when nothing is left.
func (l *loop) shutdown(idle chan struct{}) {
	l.draining = true
	for _, ln := range l.listeners {
		if ln != nil {
			l.startClosing(ln)
		}
	}
	l.idle = append(l.idle, idle)
}

func (l *loop) copyStats() *Stats {
	s := l.stats
	s.QueueLimit = l.cfg.QueueLimit
	s.Draining = l.draining
	s.Processes = l.copyProcesses()
	s.Helpers = l.copyHelpers()
	s.OldestWait = l.oldestWait()
	if l.timeoutAt != 0 {
		s.LastQueueTimeout = time.Now().Add(-time.Duration(l.now - l.timeoutAt))
	}
	s.Listeners = make([]ListenerStats, len(l.names))
	byName := make(map[*nameStats]*ListenerStats, len(l.names))
	for i, n := range l.names {
		s.Listeners[i] = n.ListenerStats
		byName[n] = &s.Listeners[i]
	}
	for _, ln := range l.listeners {
		if ln != nil {
			ln.addLive(l, byName[ln.stats])
		}
	}
	at := make([]int, len(l.slotStats)) // by slot: where it is in s.Slots
	for slot, st := range l.slotStats {
		if st != nil {
			at[slot] = len(s.Slots)
			s.Slots = append(s.Slots, *st)
		}
	}
	for _, k := range l.links {
		if k != nil {
			c := &s.Slots[at[k.slot]]
			c.InFlight += int(l.table.workers[k.idx].owed)
			c.Active += k.active()
		}
	}
	return &s
}
