package dispatcher

// The table decides who gets which connection. It holds no descriptor, reads no
// clock and runs no goroutine, so that the whole policy is tested in
// microseconds. Everything is an index into a slice, linked by indices: no
// allocation per connection, nothing for the garbage collector to walk.
//
// A connection is waiting (in its listener's waiting queue, in order of
// arrival), in flight (offered to one worker, unanswered), kept (acked, but the
// master still has its copy) or gone.
//
//	arrive --> waiting --pair--> in flight --ack--> gone
//	            ^  ^                |   |              ^
//	            |  +-reject, death--+   +--keep--> kept+--forget
//	            +------------------rescue-----------+
//
// What comes back takes its place by arrival.
//
// A worker stands, for every listener that it serves, in one of
//
//	free     owes nothing for this listener; longest free first
//	owing    owes answers for it and may take more; longest waiting first
//	parked   owes answers for it and its window is full
//	out      not to be offered anything: rejected and has not said AGAIN,
//	         does not serve this listener, replaced there, or blocked
//
// The window is per worker, the order per listener. Who owes nothing at all is
// always chosen before who owes something. Every step is O(1) in the number of
// workers; only where several listeners share workers may a choice step over
// those that are busy with another listener.
//
// What happens when all have rejected: all are out, the connection waits, and
// nothing is done until one of them says AGAIN or another joins.

type (
	connID     int32
	workerIdx  int32
	listenerID int32
)

const none = -1

type place uint8

const (
	placeOut place = iota
	placeFree
	placeOwing
	placeParked
)

type connState uint8

const (
	connGone connState = iota
	connWaiting
	connInFlight
	connKept
)

type conn struct {
	state    connState
	listener listenerID
	worker   workerIdx // in flight or kept: whose
	arrival  uint64
	// Neighbours in the waiting queue, or among what the worker owes.
	prev, next connID
}

type node struct { // a worker's place at one listener
	place      place
	serves     bool // the worker takes this listener
	rejected   bool // and rejected without AGAIN since
	held       bool // and is offered nothing while another worker has its place
	owes       int32
	prev, next workerIdx
}

type listenerState struct {
	used    bool
	waiting connList
	last    connID // the connection that was put back last, while it waits
	nodes   []node // by worker
	free    nodeList
	owing   nodeList
	// flying and kept count the connections in flight and kept.
	flying, kept int
}

type workerState struct {
	used    bool
	blocked bool // late, draining, unreachable: in no list
	parked  bool // some node is parked
	owed    int32
	window  int32    // how many it may owe
	flying  connList // what it owes, oldest first
}

type connList struct {
	head, tail connID
	len        int
}

type nodeList struct{ head, tail workerIdx }

type table struct {
	window    int32
	arrivals  uint64
	conns     []conn
	freeConn  connID // list of unused entries, by next
	workers   []workerState
	listeners []listenerState
	waiting   int // over all listeners
	idle      int // unblocked workers that owe nothing
	room      int // unblocked workers that owe less than the window
}

func newTable(window, conns int) *table {
	t := &table{window: int32(window), freeConn: none, conns: make([]conn, 0, conns)}
	return t
}

// addListener makes a listener that no worker serves yet.
func (t *table) addListener() listenerID {
	l := listenerState{used: true, waiting: emptyConns, last: none, free: emptyNodes, owing: emptyNodes,
		nodes: make([]node, len(t.workers))}
	for i := range t.listeners {
		if !t.listeners[i].used {
			t.listeners[i] = l
			return listenerID(i)
		}
	}
	t.listeners = append(t.listeners, l)
	return listenerID(len(t.listeners) - 1)
}

// removeListener forgets a listener. Preconditions: nothing waits or is in
// flight for it.
func (t *table) removeListener(l listenerID) {
	for w := range t.listeners[l].nodes {
		t.leave(workerIdx(w), l)
	}
	t.listeners[l] = listenerState{waiting: emptyConns, last: none, free: emptyNodes, owing: emptyNodes}
}

// addWorker makes a worker that serves nothing yet and is blocked.
func (t *table) addWorker() workerIdx {
	ws := workerState{used: true, blocked: true, window: t.window, flying: emptyConns}
	for i := range t.workers {
		if !t.workers[i].used {
			t.workers[i] = ws
			return workerIdx(i)
		}
	}
	t.workers = append(t.workers, ws)
	for i := range t.listeners {
		if t.listeners[i].used {
			t.listeners[i].nodes = append(t.listeners[i].nodes, node{})
		}
	}
	return workerIdx(len(t.workers) - 1)
}

// removeWorker forgets a worker. Preconditions: it owes nothing.
func (t *table) removeWorker(w workerIdx) {
	t.block(w)
	for i := range t.listeners {
		if t.listeners[i].used {
			t.listeners[i].nodes[w] = node{}
		}
	}
	t.workers[w] = workerState{flying: emptyConns}
}

// serve puts a worker behind the others of that listener. It also ends a reject.
func (t *table) serve(w workerIdx, l listenerID) {
	n := &t.listeners[l].nodes[w]
	n.serves, n.rejected = true, false
	t.settle(w, l)
}

// serves reports whether serve was called and leave was not.
func (t *table) serves(w workerIdx, l listenerID) bool {
	return t.listeners[l].nodes[w].serves
}

// hold keeps a worker from being offered connections of one listener, or ends that.
func (t *table) hold(w workerIdx, l listenerID, held bool) {
	if n := &t.listeners[l].nodes[w]; n.held != held {
		n.held = held
		t.settle(w, l)
	}
}

// leave takes a worker out of a listener; what it owes for it stays in flight.
func (t *table) leave(w workerIdx, l listenerID) {
	t.listeners[l].nodes[w].serves = false
	t.settle(w, l)
}

// block keeps a worker from being offered anything; unblock ends that and puts
// it behind the others.
func (t *table) block(w workerIdx) {
	ws := &t.workers[w]
	if ws.blocked {
		return
	}
	t.uncount(ws)
	ws.blocked = true
	t.settleAll(w)
}

func (t *table) unblock(w workerIdx) {
	ws := &t.workers[w]
	if !ws.blocked {
		return
	}
	ws.blocked = false
	t.count(ws)
	t.settleAll(w)
}

// setWindow changes how many answers a worker may owe, from 1 to the table's
// window. Who may owe none is blocked.
func (t *table) setWindow(w workerIdx, n int) {
	ws := &t.workers[w]
	if n := min(max(int32(n), 1), t.window); n != ws.window {
		t.uncount(ws)
		ws.window = n
		t.count(ws)
		ws.parked = false
		t.settleAll(w)
	}
}

// arrive makes a connection of l that waits behind all others.
func (t *table) arrive(l listenerID) connID {
	c := t.freeConn
	if c == none {
		t.conns = append(t.conns, conn{})
		c = connID(len(t.conns) - 1)
	} else {
		t.freeConn = t.conns[c].next
	}
	t.arrivals++
	t.conns[c] = conn{state: connWaiting, listener: l, worker: none, arrival: t.arrivals, prev: none, next: none}
	t.insert(c)
	return c
}

// pair takes the oldest waiting connection of l and the worker to be offered it,
// and puts the connection in flight. It reports false if nothing waits or nobody
// can take it.
func (t *table) pair(l listenerID) (connID, workerIdx, bool) {
	ls := &t.listeners[l]
	c := ls.waiting.head
	if c == none {
		return none, none, false
	}
	w := t.choose(l)
	if w == none {
		return none, none, false
	}
	t.unwait(c)
	e := &t.conns[c]
	e.state, e.worker = connInFlight, w
	t.pushConn(&t.workers[w].flying, c)
	ls.flying++
	ls.nodes[w].owes++
	ws := &t.workers[w]
	t.uncount(ws)
	ws.owed++
	t.count(ws)
	t.unlinkNode(w, l) // behind the others that owe
	t.settle(w, l)
	return c, w, true
}

// choose finds the worker to be offered the next connection of l.
func (t *table) choose(l listenerID) workerIdx {
	ls := &t.listeners[l]
	if t.idle > 0 {
		for w := ls.free.head; w != none; w = ls.nodes[w].next {
			if t.workers[w].owed == 0 {
				return w
			}
		}
	}
	if t.room == 0 {
		return none
	}
	for w := ls.free.head; w != none; w = ls.nodes[w].next {
		if t.workers[w].owed < t.workers[w].window {
			return w
		}
	}
	for w := ls.owing.head; w != none; {
		if t.workers[w].owed < t.workers[w].window {
			return w
		}
		next := ls.nodes[w].next
		t.settle(w, l) // filled by another listener: parked until it has room
		w = next
	}
	return none
}

// ack ends a connection in flight: the worker serves it.
func (t *table) ack(c connID) {
	t.land(c)
	t.release(c)
}

// keep is ack for a connection that may yet be rescued: it has its entry until
// forget or rescue.
func (t *table) keep(c connID) {
	t.land(c)
	e := &t.conns[c]
	e.state = connKept
	t.listeners[e.listener].kept++
}

// forget ends a kept connection.
func (t *table) forget(c connID) {
	t.listeners[t.conns[c].listener].kept--
	t.release(c)
}

// rescue puts a kept connection back in its place.
func (t *table) rescue(c connID) {
	e := &t.conns[c]
	t.listeners[e.listener].kept--
	e.state, e.worker = connWaiting, none
	t.insert(c)
}

// reject puts a connection in flight back in its place, and its worker out
// until serve. That holds for busy as for any other reason: a reject speaks of
// the worker.
func (t *table) reject(c connID) {
	e := &t.conns[c]
	t.listeners[e.listener].nodes[e.worker].rejected = true
	t.back(c)
}

// back puts a connection in flight back in its place without a word on its
// worker: it was never sent, was recalled, or its worker is dead.
func (t *table) back(c connID) {
	t.land(c)
	e := &t.conns[c]
	e.state, e.worker = connWaiting, none
	t.insert(c)
}

// drop ends a waiting connection.
func (t *table) drop(c connID) {
	t.unwait(c)
	t.release(c)
}

// land takes a connection out of flight and gives its worker room.
func (t *table) land(c connID) {
	e := &t.conns[c]
	w, l := e.worker, e.listener
	ws, ls := &t.workers[w], &t.listeners[l]
	t.unlinkConn(&ws.flying, c)
	ls.flying--
	ls.nodes[w].owes--
	t.uncount(ws)
	ws.owed--
	t.count(ws)
	if ws.parked && ws.owed < ws.window {
		ws.parked = false
		t.settleAll(w)
	}
	t.unlinkNode(w, l) // behind the others: it has been used just now
	t.settle(w, l)
}

func (t *table) release(c connID) {
	t.conns[c] = conn{next: t.freeConn}
	t.freeConn = c
}

// count and uncount keep idle and room.
func (t *table) count(ws *workerState) {
	if ws.blocked {
		return
	}
	if ws.owed == 0 {
		t.idle++
	}
	if ws.owed < ws.window {
		t.room++
	}
}

func (t *table) uncount(ws *workerState) {
	if ws.blocked {
		return
	}
	if ws.owed == 0 {
		t.idle--
	}
	if ws.owed < ws.window {
		t.room--
	}
}

func (t *table) settleAll(w workerIdx) {
	for l := range t.listeners {
		if t.listeners[l].used {
			t.settle(w, listenerID(l))
		}
	}
}

// settle puts w into the list of l that it belongs to now. Staying in a list
// keeps the place in it.
func (t *table) settle(w workerIdx, l listenerID) {
	ls, ws := &t.listeners[l], &t.workers[w]
	n := &ls.nodes[w]
	want := placeOut
	switch {
	case ws.blocked || !n.serves || n.rejected || n.held:
	case n.owes == 0:
		want = placeFree
	case ws.owed < ws.window:
		want = placeOwing
	default:
		want = placeParked
		ws.parked = true
	}
	if n.place == want {
		return
	}
	t.unlinkNode(w, l)
	n.place = want
	switch want {
	case placeFree:
		t.pushNode(ls, &ls.free, w)
	case placeOwing:
		t.pushNode(ls, &ls.owing, w)
	case placeOut, placeParked:
	}
}

func (t *table) pushNode(ls *listenerState, q *nodeList, w workerIdx) {
	n := &ls.nodes[w]
	n.prev, n.next = q.tail, none
	if q.tail == none {
		q.head = w
	} else {
		ls.nodes[q.tail].next = w
	}
	q.tail = w
}

// unlinkNode takes w out of its list at l, if it is in one.
func (t *table) unlinkNode(w workerIdx, l listenerID) {
	ls := &t.listeners[l]
	n := &ls.nodes[w]
	var q *nodeList
	switch n.place {
	case placeFree:
		q = &ls.free
	case placeOwing:
		q = &ls.owing
	case placeOut, placeParked:
		n.place = placeOut
		return
	}
	if n.prev == none {
		q.head = n.next
	} else {
		ls.nodes[n.prev].next = n.next
	}
	if n.next == none {
		q.tail = n.prev
	} else {
		ls.nodes[n.next].prev = n.prev
	}
	n.place = placeOut
}

// insert puts c into its listener's waiting queue, which is in order of arrival:
// new ones at the end, what comes back near the front. Those that come back
// together come in order, so each finds its place right behind the one before.
func (t *table) insert(c connID) {
	e := &t.conns[c]
	ls := &t.listeners[e.listener]
	q := &ls.waiting
	t.waiting++
	if q.tail == none || t.conns[q.tail].arrival < e.arrival {
		t.pushConn(q, c)
		return
	}
	next := q.head
	if ls.last != none && t.conns[ls.last].arrival < e.arrival {
		next = t.conns[ls.last].next
	}
	for t.conns[next].arrival < e.arrival {
		next = t.conns[next].next
	}
	n := &t.conns[next]
	e.prev, e.next = n.prev, next
	if n.prev == none {
		q.head = c
	} else {
		t.conns[n.prev].next = c
	}
	n.prev = c
	q.len++
	ls.last = c
}

// unwait takes c out of the waiting queue.
func (t *table) unwait(c connID) {
	ls := &t.listeners[t.conns[c].listener]
	if ls.last == c {
		ls.last = none
	}
	t.unlinkConn(&ls.waiting, c)
	t.waiting--
}

func (t *table) pushConn(q *connList, c connID) {
	e := &t.conns[c]
	e.prev, e.next = q.tail, none
	if q.tail == none {
		q.head = c
	} else {
		t.conns[q.tail].next = c
	}
	q.tail = c
	q.len++
}

func (t *table) unlinkConn(q *connList, c connID) {
	e := &t.conns[c]
	if e.prev == none {
		q.head = e.next
	} else {
		t.conns[e.prev].next = e.next
	}
	if e.next == none {
		q.tail = e.prev
	} else {
		t.conns[e.next].prev = e.prev
	}
	e.prev, e.next = none, none
	q.len--
}

var (
	emptyConns = connList{head: none, tail: none}
	emptyNodes = nodeList{head: none, tail: none}
)
