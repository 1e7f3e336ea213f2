package dispatcher

import (
	"cmp"
	"fmt"
	"slices"
)

// The table as data, for an upgrade in place. Indexes stay what they were, since
// sequence numbers hold them, and so does every order.

type savedTable struct {
	Window    int32
	Arrivals  uint64
	Conns     []savedConn // in no order
	Workers   []savedWorker
	Listeners []savedNodes
}

type savedConn struct {
	ID       connID
	State    connState
	Listener listenerID
	Worker   workerIdx // in flight or kept
	Arrival  uint64
}

type savedWorker struct {
	ID      workerIdx
	Blocked bool
	Window  int32
	Flying  []connID // oldest first
}

type savedNodes struct {
	ID       listenerID
	Last     connID
	Serves   []workerIdx
	Rejected []workerIdx
	Free     []workerIdx // longest free first
	Owing    []workerIdx
}

func (t *table) save() savedTable {
	s := savedTable{Window: t.window, Arrivals: t.arrivals}
	for c := range t.conns {
		if e := &t.conns[c]; e.state != connGone {
			s.Conns = append(s.Conns, savedConn{connID(c), e.state, e.listener, e.worker, e.arrival})
		}
	}
	for w := range t.workers {
		ws := &t.workers[w]
		if !ws.used {
			continue
		}
		out := savedWorker{ID: workerIdx(w), Blocked: ws.blocked, Window: ws.window}
		for c := ws.flying.head; c != none; c = t.conns[c].next {
			out.Flying = append(out.Flying, c)
		}
		s.Workers = append(s.Workers, out)
	}
	for l := range t.listeners {
		ls := &t.listeners[l]
		if !ls.used {
			continue
		}
		out := savedNodes{ID: listenerID(l), Last: ls.last}
		for w := range ls.nodes {
			if ls.nodes[w].serves {
				out.Serves = append(out.Serves, workerIdx(w))
			}
			if ls.nodes[w].rejected {
				out.Rejected = append(out.Rejected, workerIdx(w))
			}
		}
		for w := ls.free.head; w != none; w = ls.nodes[w].next {
			out.Free = append(out.Free, w)
		}
		for w := ls.owing.head; w != none; w = ls.nodes[w].next {
			out.Owing = append(out.Owing, w)
		}
		s.Listeners = append(s.Listeners, out)
	}
	return s
}

// Bounds on what a saved table is believed.
const (
	maxSavedConns   = 1 << connBits
	maxSavedWorkers = 1 << 16
)

// restoreTable is the opposite of save. What cannot be is an error.
func restoreTable(s *savedTable, conns int) (*table, error) {
	if s.Window < 1 {
		return nil, fmt.Errorf("window %d", s.Window)
	}
	t := newTable(int(s.Window), conns)
	t.arrivals = s.Arrivals
	if err := t.restoreWorkers(s); err != nil {
		return nil, err
	}
	for i := range s.Listeners {
		id := s.Listeners[i].ID
		if id < 0 || int(id) >= maxSavedWorkers {
			return nil, fmt.Errorf("listener %d", id)
		}
		for int(id) >= len(t.listeners) {
			t.listeners = append(t.listeners, listenerState{waiting: emptyConns, last: none, free: emptyNodes, owing: emptyNodes})
		}
		ls := &t.listeners[id]
		if ls.used {
			return nil, fmt.Errorf("listener %d twice", id)
		}
		ls.used, ls.nodes = true, make([]node, len(t.workers))
	}
	if err := t.restoreConns(s); err != nil {
		return nil, err
	}
	for i := range s.Listeners {
		if err := t.restoreNodes(&s.Listeners[i]); err != nil {
			return nil, fmt.Errorf("listener %d: %w", s.Listeners[i].ID, err)
		}
	}
	for w := range t.workers {
		if t.workers[w].used {
			t.settleAll(workerIdx(w)) // whoever was in no list
		}
	}
	return t, nil
}

func (t *table) restoreWorkers(s *savedTable) error {
	for _, w := range s.Workers {
		if w.ID < 0 || int(w.ID) >= maxSavedWorkers || w.Window < 1 {
			return fmt.Errorf("worker %d with window %d", w.ID, w.Window)
		}
		for int(w.ID) >= len(t.workers) {
			t.workers = append(t.workers, workerState{flying: emptyConns})
		}
		ws := &t.workers[w.ID]
		if ws.used {
			return fmt.Errorf("worker %d twice", w.ID)
		}
		*ws = workerState{used: true, blocked: w.Blocked, window: w.Window, owed: int32(len(w.Flying)), flying: emptyConns}
		t.count(ws)
	}
	return nil
}

func (t *table) restoreConns(s *savedTable) error {
	last := connID(none)
	for _, c := range s.Conns {
		if c.ID < 0 || int(c.ID) >= maxSavedConns || c.State < connWaiting || c.State > connKept {
			return fmt.Errorf("connection %d in state %d", c.ID, c.State)
		}
		if c.Listener < 0 || int(c.Listener) >= len(t.listeners) || !t.listeners[c.Listener].used {
			return fmt.Errorf("connection %d of listener %d", c.ID, c.Listener)
		}
		if c.State == connInFlight && (c.Worker < 0 || int(c.Worker) >= len(t.workers) || !t.workers[c.Worker].used) {
			return fmt.Errorf("connection %d of worker %d", c.ID, c.Worker)
		}
		last = max(last, c.ID)
	}
	t.conns = append(t.conns, make([]conn, last+1)...)
	byArrival := slices.SortedFunc(slices.Values(s.Conns), func(a, b savedConn) int { return cmp.Compare(a.Arrival, b.Arrival) })
	for i, c := range byArrival {
		if i > 0 && byArrival[i-1].Arrival == c.Arrival {
			return fmt.Errorf("connections %d and %d with arrival %d", byArrival[i-1].ID, c.ID, c.Arrival)
		}
		e := &t.conns[c.ID]
		if e.state != connGone {
			return fmt.Errorf("connection %d twice", c.ID)
		}
		*e = conn{state: c.State, listener: c.Listener, worker: c.Worker, arrival: c.Arrival, prev: none, next: none}
		ls := &t.listeners[c.Listener]
		switch c.State {
		case connWaiting:
			e.worker = none
			t.pushConn(&ls.waiting, c.ID)
			t.waiting++
		case connInFlight:
			ls.flying++
			ls.nodes[c.Worker].owes++
		case connKept, connGone:
			ls.kept++
		}
	}
	flying := 0
	for _, w := range s.Workers {
		for _, c := range w.Flying {
			if c < 0 || int(c) >= len(t.conns) || t.conns[c].state != connInFlight || t.conns[c].worker != w.ID ||
				t.conns[c].prev != none || t.workers[w.ID].flying.tail == c {
				return fmt.Errorf("worker %d owes connection %d, which is not in flight to it", w.ID, c)
			}
			t.pushConn(&t.workers[w.ID].flying, c)
			flying++
		}
	}
	for _, c := range s.Conns {
		if c.State == connInFlight {
			flying--
		}
	}
	if flying != 0 {
		return fmt.Errorf("%d connections in flight are nobody's", -flying)
	}
	for c := range t.conns {
		if t.conns[c].state == connGone {
			t.release(connID(c))
		}
	}
	return nil
}

func (t *table) restoreNodes(s *savedNodes) error {
	ls := &t.listeners[s.ID]
	known := func(w workerIdx) bool { return w >= 0 && int(w) < len(t.workers) && t.workers[w].used }
	for _, w := range s.Serves {
		if !known(w) {
			return fmt.Errorf("served by worker %d", w)
		}
		ls.nodes[w].serves = true
	}
	for _, w := range s.Rejected {
		if !known(w) {
			return fmt.Errorf("rejected by worker %d", w)
		}
		ls.nodes[w].rejected = true
	}
	// Only the order is taken from the lists; who belongs into which is settled here.
	for _, w := range slices.Concat(s.Free, s.Owing) {
		if !known(w) {
			return fmt.Errorf("free of worker %d", w)
		}
		t.settle(w, s.ID)
	}
	if c := s.Last; c != none && c >= 0 && int(c) < len(t.conns) && t.conns[c].state == connWaiting && t.conns[c].listener == s.ID {
		ls.last = c
	}
	return nil
}
