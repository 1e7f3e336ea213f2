package dispatcher

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// script drives a table with one command a line and shows what it says, so that
// order, which is the whole story here, can be read. Workers and connections are
// named by number in order of making, connections from 1.
//
//	workers N / listeners N   make them; every worker serves every listener
//	arrive [L] [N]            N connections (1) of listener L (0)
//	pair [L]                  until nobody can take any more: "1>0" = connection 1 to worker 0
//	ack C.. reject C.. back C.. drop C..
//	block W.. unblock W.. serve W [L] leave W [L]
//	queue [L]                 what waits
type script struct {
	t      *table
	conns  []connID // by number less one
	number map[connID]int
}

func (s *script) run(line string) string {
	f := strings.Fields(line)
	arg := func(i, otherwise int) int {
		if len(f) <= i {
			return otherwise
		}
		n, err := strconv.Atoi(f[i])
		if err != nil {
			panic(err)
		}
		return n
	}
	each := func(fn func(n int)) string {
		for i := 1; i < len(f); i++ {
			fn(arg(i, 0))
		}
		return ""
	}
	conn := func(fn func(connID)) string {
		return each(func(n int) { fn(s.conns[n-1]) })
	}
	switch f[0] {
	case "listeners":
		for range arg(1, 1) {
			s.t.addListener()
		}
	case "workers":
		for range arg(1, 1) {
			w := s.t.addWorker()
			for l := range s.t.listeners {
				s.t.serve(w, listenerID(l))
			}
			s.t.unblock(w)
		}
	case "arrive":
		for range arg(2, 1) {
			c := s.t.arrive(listenerID(arg(1, 0)))
			s.conns = append(s.conns, c)
			s.number[c] = len(s.conns)
		}
	case "pair":
		var out []string
		for {
			c, w, ok := s.t.pair(listenerID(arg(1, 0)))
			if !ok {
				return strings.Join(out, " ")
			}
			out = append(out, fmt.Sprintf("%d>%d", s.number[c], w))
		}
	case "ack":
		return conn(s.t.ack)
	case "reject":
		return conn(s.t.reject)
	case "back":
		return conn(s.t.back)
	case "drop":
		return conn(s.t.drop)
	case "block":
		return each(func(n int) { s.t.block(workerIdx(n)) })
	case "unblock":
		return each(func(n int) { s.t.unblock(workerIdx(n)) })
	case "serve":
		s.t.serve(workerIdx(arg(1, 0)), listenerID(arg(2, 0)))
	case "leave":
		s.t.leave(workerIdx(arg(1, 0)), listenerID(arg(2, 0)))
	case "queue":
		var out []string
		for c := s.t.listeners[arg(1, 0)].waiting.head; c != none; c = s.t.conns[c].next {
			out = append(out, strconv.Itoa(s.number[c]))
		}
		return strings.Join(out, " ")
	default:
		panic(line)
	}
	return ""
}

func TestTableScripts(t *testing.T) {
	for _, tt := range []struct {
		name   string
		window int
		script string // command [= what it says]
	}{
		{"longest free first, in the order they became free", 1, `
			listeners 1
			workers 3
			arrive 0 3
			pair = 1>0 2>1 3>2
			ack 2 1 3
			arrive 0 3
			pair = 4>1 5>0 6>2`},
		{"who owes nothing before who owes something", 4, `
			listeners 1
			workers 2
			arrive 0 3
			pair = 1>0 2>1 3>0
			ack 2
			arrive 0 1
			pair = 4>1`},
		{"a window that is full takes nothing", 2, `
			listeners 1
			workers 2
			arrive 0 6
			pair = 1>0 2>1 3>0 4>1
			queue = 5 6
			ack 4
			pair = 5>1
			ack 1 3
			pair = 6>0`},
		{"a window of one is node's strict rule", 1, `
			listeners 1
			workers 1
			arrive 0 2
			pair = 1>0
			pair =
			ack 1
			pair = 2>0`},
		{"a rejecting worker is out until it says again", 1, `
			listeners 1
			workers 2
			arrive 0 1
			pair = 1>0
			reject 1
			pair = 1>1
			reject 1
			pair =
			serve 0
			pair = 1>0`},
		{"a reject goes to the front", 2, `
			listeners 1
			workers 1
			arrive 0 4
			pair = 1>0 2>0
			reject 2
			queue = 2 3 4
			reject 1
			queue = 1 2 3 4`},
		{"a batch that could not be sent comes back in its place, from either end", 4, `
			listeners 1
			workers 1
			arrive 0 6
			pair = 1>0 2>0 3>0 4>0
			back 4 3 2 1
			queue = 1 2 3 4 5 6
			pair = 1>0 2>0 3>0 4>0
			back 1 2 3 4
			queue = 1 2 3 4 5 6
			pair = 1>0 2>0 3>0 4>0
			back 2 4 1 3
			queue = 1 2 3 4 5 6`},
		{"the one that was put back last is dropped, then its neighbours come back", 4, `
			listeners 1
			workers 1
			arrive 0 5
			pair = 1>0 2>0 3>0 4>0
			back 3
			drop 3
			back 4 2 1
			queue = 1 2 4 5`},
		{"blocked is offered nothing and stands last when it comes back", 1, `
			listeners 1
			workers 2
			block 0
			arrive 0 1
			pair = 1>1
			ack 1
			unblock 0
			arrive 0 2
			pair = 2>1 3>0`},
		{"blocked twice is blocked once", 1, `
			listeners 1
			workers 1
			block 0 0
			unblock 0 0
			arrive 0 1
			pair = 1>0`},
		{"block while it owes, answer, unblock", 1, `
			listeners 1
			workers 1
			arrive 0 2
			pair = 1>0
			block 0
			ack 1
			pair =
			unblock 0
			pair = 2>0`},
		{"the window is the worker's, the order the listener's", 2, `
			listeners 2
			workers 1
			arrive 0 2
			arrive 1 2
			pair 0 = 1>0 2>0
			pair 1 =
			ack 1
			pair 1 = 3>0
			ack 2 3
			pair 1 = 4>0`},
		{"a reject on one listener says nothing of another", 1, `
			listeners 2
			workers 1
			arrive 0 1
			arrive 1 1
			pair 0 = 1>0
			reject 1
			pair 0 =
			pair 1 = 2>0`},
		{"who owes nothing at all is before who owes for another listener", 2, `
			listeners 2
			workers 2
			arrive 1 1
			pair 1 = 1>0
			arrive 0 2
			pair 0 = 2>1 3>0`},
		{"a worker that left is offered nothing and still answers", 2, `
			listeners 1
			workers 2
			arrive 0 2
			pair = 1>0 2>1
			leave 0
			ack 1 2
			arrive 0 2
			pair = 3>1 4>1
			serve 0
			ack 3 4
			arrive 0 1
			pair = 5>0`},
		{"serving again without a reject keeps the place", 1, `
			listeners 1
			workers 2
			serve 0
			arrive 0 1
			pair = 1>0`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &script{t: newTable(tt.window, 4), number: make(map[connID]int)}
			for line := range strings.Lines(strings.TrimSpace(tt.script)) {
				command, want, says := strings.Cut(strings.TrimSpace(line), "=")
				got := s.run(command)
				if want = strings.TrimSpace(want); says && got != want {
					t.Fatalf("%s: %q, want %q", command, got, want)
				}
				if err := integrity(s.t); err != nil {
					t.Fatalf("%s: %v", command, err)
				}
			}
		})
	}
}

func TestEntriesAreUsedAgain(t *testing.T) {
	tb := newTable(1, 0)
	l, w := tb.addListener(), tb.addWorker()
	for range 10 {
		c := tb.arrive(l)
		tb.drop(c)
	}
	if len(tb.conns) != 1 {
		t.Errorf("%d entries for one connection at a time", len(tb.conns))
	}
	tb.serve(w, l)
	tb.removeWorker(w)
	tb.removeListener(l)
	if l2, w2 := tb.addListener(), tb.addWorker(); l2 != l || w2 != w {
		t.Errorf("listener %d, worker %d: not the free places %d, %d", l2, w2, l, w)
	}
	if tb.serves(w, l) {
		t.Error("a new worker serves what its predecessor did")
	}
	if err := integrity(tb); err != nil {
		t.Error(err)
	}
}

// integrity checks everything that the table keeps twice against what it keeps
// once.
func integrity(t *table) error {
	idle, room, waiting := 0, 0, 0
	owed := make([]int32, len(t.workers))
	for l := range t.listeners {
		ls := &t.listeners[l]
		if !ls.used {
			continue
		}
		n, err := checkConns(t, &ls.waiting, connWaiting, true)
		if err != nil {
			return fmt.Errorf("waiting of listener %d: %w", l, err)
		}
		waiting += n
		flying := 0
		owes := make([]int32, len(t.workers))
		for c := range t.conns {
			if e := &t.conns[c]; e.state == connInFlight && e.listener == listenerID(l) {
				flying++
				owes[e.worker]++
			}
		}
		if flying != ls.flying {
			return fmt.Errorf("listener %d: flying %d, counted %d", l, ls.flying, flying)
		}
		if len(ls.nodes) != len(t.workers) {
			return fmt.Errorf("listener %d: %d nodes for %d workers", l, len(ls.nodes), len(t.workers))
		}
		for w := range t.workers {
			owed[w] += owes[w]
			if ls.nodes[w].owes != owes[w] {
				return fmt.Errorf("worker %d at listener %d: owes %d, counted %d", w, l, ls.nodes[w].owes, owes[w])
			}
		}
		for _, q := range []struct {
			list *nodeList
			in   place
		}{{&ls.free, placeFree}, {&ls.owing, placeOwing}} {
			if err := checkNodes(ls, q.list, q.in); err != nil {
				return fmt.Errorf("list %d of listener %d: %w", q.in, l, err)
			}
		}
	}
	for w := range t.workers {
		ws := &t.workers[w]
		if !ws.used {
			continue
		}
		n, err := checkConns(t, &ws.flying, connInFlight, false)
		if err != nil {
			return fmt.Errorf("what worker %d owes: %w", w, err)
		}
		if int32(n) != ws.owed || owed[w] != ws.owed {
			return fmt.Errorf("worker %d owes %d, listed %d, by listener %d", w, ws.owed, n, owed[w])
		}
		if ws.owed > t.window {
			return fmt.Errorf("worker %d owes %d, more than its window", w, ws.owed)
		}
		if !ws.blocked && ws.owed == 0 {
			idle++
		}
		if !ws.blocked && ws.owed < ws.window {
			room++
		}
	}
	if idle != t.idle || room != t.room || waiting != t.waiting {
		return fmt.Errorf("idle %d room %d waiting %d, counted %d %d %d", t.idle, t.room, t.waiting, idle, room, waiting)
	}
	return nil
}

// checkConns walks a list of connections and returns its length.
func checkConns(t *table, q *connList, state connState, ordered bool) (int, error) {
	n, prev := 0, connID(none)
	for c := q.head; c != none; c = t.conns[c].next {
		e := &t.conns[c]
		switch {
		case e.state != state:
			return n, fmt.Errorf("connection %d is in state %d", c, e.state)
		case e.prev != prev:
			return n, fmt.Errorf("connection %d: before it %d, should be %d", c, e.prev, prev)
		case ordered && prev != none && t.conns[prev].arrival >= e.arrival:
			return n, fmt.Errorf("connection %d is not in order of arrival", c)
		case n > len(t.conns):
			return n, fmt.Errorf("a circle")
		}
		n++
		prev = c
	}
	if q.tail != prev || q.len != n {
		return n, fmt.Errorf("tail %d len %d, should be %d %d", q.tail, q.len, prev, n)
	}
	return n, nil
}

func checkNodes(ls *listenerState, q *nodeList, in place) error {
	listed, prev := 0, workerIdx(none)
	for w := q.head; w != none; w = ls.nodes[w].next {
		n := &ls.nodes[w]
		if n.place != in || n.prev != prev || listed > len(ls.nodes) {
			return fmt.Errorf("worker %d: place %d, before it %d, should be %d", w, n.place, n.prev, prev)
		}
		listed++
		prev = w
	}
	if q.tail != prev {
		return fmt.Errorf("tail %d, should be %d", q.tail, prev)
	}
	for w := range ls.nodes {
		if ls.nodes[w].place == in {
			listed--
		}
	}
	if listed != 0 {
		return fmt.Errorf("%d listed who are elsewhere", listed)
	}
	return nil
}
