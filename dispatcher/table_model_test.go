package dispatcher

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// model is the table told a second time, slowly: every choice is a search over
// all workers.
type model struct {
	t       *table
	window  int
	stamps  int
	workers map[workerIdx]*modelWorker
	lns     map[listenerID]*modelListener
	conns   map[connID]*modelConn
}

type modelWorker struct {
	blocked bool
	window  int
	owed    []connID
	at      map[listenerID]*modelPlace
}

type modelPlace struct {
	serves, rejected bool
	owes             int
	free             bool
	since            int // stamp of becoming free
}

type modelListener struct {
	arrived, acked, dropped int
	queue                   []connID // in order of arrival
	flying, kept            int
}

type modelConn struct {
	listener listenerID
	worker   workerIdx
	flying   bool
	kept     bool
}

func (m *model) place(w workerIdx, l listenerID) *modelPlace {
	at := m.workers[w].at
	if at[l] == nil {
		at[l] = &modelPlace{}
	}
	return at[l]
}

// settle says who is free since when. used: the place was used just now, so it
// counts as free from now on.
func (m *model) settle(w workerIdx, used listenerID) {
	for l := range m.lns {
		p := m.place(w, l)
		free := !m.workers[w].blocked && p.serves && !p.rejected && p.owes == 0
		if free && (!p.free || l == used) {
			m.stamps++
			p.since = m.stamps
		}
		p.free = free
	}
}

func (m *model) willing(w workerIdx, l listenerID) bool {
	p := m.place(w, l)
	return !m.workers[w].blocked && p.serves && !p.rejected && len(m.workers[w].owed) < m.workers[w].window
}

// choose finds who must be offered a connection of l: exact among those that are
// free at l, any willing one (exact = false) where all owe.
func (m *model) choose(l listenerID) (w workerIdx, exact, ok bool) {
	best := func(fits func(workerIdx) bool) (workerIdx, bool) {
		found := workerIdx(none)
		for w := range m.workers {
			if m.willing(w, l) && m.place(w, l).free && fits(w) &&
				(found == none || m.place(w, l).since < m.place(found, l).since) {
				found = w
			}
		}
		return found, found != none
	}
	if w, ok := best(func(w workerIdx) bool { return len(m.workers[w].owed) == 0 }); ok {
		return w, true, true
	}
	if w, ok := best(func(workerIdx) bool { return true }); ok {
		return w, true, true
	}
	for w := range m.workers {
		if m.willing(w, l) {
			return w, false, true
		}
	}
	return none, false, false
}

func (m *model) land(c connID) *modelConn {
	e := m.conns[c]
	w := m.workers[e.worker]
	w.owed = slices.DeleteFunc(w.owed, func(o connID) bool { return o == c })
	m.place(e.worker, e.listener).owes--
	m.lns[e.listener].flying--
	m.settle(e.worker, e.listener)
	e.flying = false
	return e
}

func (m *model) toQueue(c connID) {
	l := m.lns[m.conns[c].listener]
	i, _ := slices.BinarySearchFunc(l.queue, m.t.conns[c].arrival, func(o connID, a uint64) int {
		return int(int64(m.t.conns[o].arrival) - int64(a))
	})
	l.queue = slices.Insert(l.queue, i, c)
}

func (m *model) back(c connID) {
	m.t.back(c)
	m.land(c)
	m.toQueue(c)
}

func (m *model) check(rt *rapid.T) {
	if err := integrity(m.t); err != nil {
		rt.Fatal(err)
	}
	owner := map[connID]string{}
	own := func(c connID, who string) {
		if was, ok := owner[c]; ok {
			rt.Fatalf("connection %d is with %s and with %s", c, was, who)
		}
		owner[c] = who
	}
	for id, l := range m.lns {
		var got []connID
		for c := m.t.listeners[id].waiting.head; c != none; c = m.t.conns[c].next {
			got = append(got, c)
			own(c, "a queue")
		}
		if !slices.Equal(got, l.queue) {
			rt.Fatalf("listener %d: queue %v, want %v", id, got, l.queue)
		}
		if l.arrived != l.acked+l.dropped+len(l.queue)+l.flying {
			rt.Fatalf("listener %d breaks the law: %+v", id, *l)
		}
		if ls := &m.t.listeners[id]; ls.flying != l.flying || ls.kept != l.kept {
			rt.Fatalf("listener %d: %d in flight %d kept, want %d %d", id, ls.flying, ls.kept, l.flying, l.kept)
		}
	}
	for id, w := range m.workers {
		var got []connID
		for c := m.t.workers[id].flying.head; c != none; c = m.t.conns[c].next {
			got = append(got, c)
			own(c, fmt.Sprintf("worker %d", id))
		}
		if !slices.Equal(got, w.owed) {
			rt.Fatalf("worker %d owes %v, want %v", id, got, w.owed)
		}
		for l := range m.lns {
			if m.t.serves(id, l) != m.place(id, l).serves {
				rt.Fatalf("worker %d serves listener %d: %v", id, l, m.t.serves(id, l))
			}
		}
	}
	for c, e := range m.conns {
		if e.kept {
			own(c, "nobody: it is kept")
		}
	}
	if len(owner) != len(m.conns) {
		rt.Fatalf("%d connections have an owner, of %d", len(owner), len(m.conns))
	}
}

// pick draws one of the keys in order, so that a failure can be shrunk.
func pick[K ~int32, V any](rt *rapid.T, of map[K]V, label string, fits func(K) bool) K {
	keys := slices.Sorted(maps.Keys(of))
	keys = slices.DeleteFunc(keys, func(k K) bool { return !fits(k) })
	if len(keys) == 0 {
		rt.Skip("no ", label)
	}
	return rapid.SampledFrom(keys).Draw(rt, label)
}

func (m *model) worker(rt *rapid.T) workerIdx {
	return pick(rt, m.workers, "worker", func(workerIdx) bool { return true })
}

func (m *model) listener(rt *rapid.T) listenerID {
	return pick(rt, m.lns, "listener", func(listenerID) bool { return true })
}

func (m *model) flying(rt *rapid.T) connID {
	return pick(rt, m.conns, "in flight", func(c connID) bool { return m.conns[c].flying })
}

func (m *model) addListener() {
	m.lns[m.t.addListener()] = &modelListener{}
}

func (m *model) addWorker(serving bool) {
	w := m.t.addWorker()
	m.workers[w] = &modelWorker{blocked: true, window: m.window, at: make(map[listenerID]*modelPlace)}
	if serving {
		for l := range m.lns {
			m.serve(w, l)
		}
		m.unblock(w)
	}
}

func (m *model) kept(rt *rapid.T) (connID, *modelListener) {
	c := pick(rt, m.conns, "kept", func(c connID) bool { return m.conns[c].kept })
	return c, m.lns[m.conns[c].listener]
}

func (m *model) serve(w workerIdx, l listenerID) {
	m.t.serve(w, l)
	p := m.place(w, l)
	p.serves, p.rejected = true, false
	m.settle(w, none)
}

func (m *model) unblock(w workerIdx) {
	m.t.unblock(w)
	m.workers[w].blocked = false
	m.settle(w, none)
}

// pair checks the choice of worker against the model's.
func (m *model) pair(rt *rapid.T, l listenerID) bool {
	want, exact, can := m.choose(l)
	ln := m.lns[l]
	can = can && len(ln.queue) > 0
	c, w, ok := m.t.pair(l)
	if ok != can {
		rt.Fatalf("pair: %v; a willing worker and a connection: %v", ok, can)
	}
	if !ok {
		return false
	}
	if c != ln.queue[0] {
		rt.Fatalf("pair takes connection %d, the oldest is %d", c, ln.queue[0])
	}
	if exact && w != want || !m.willing(w, l) {
		rt.Fatalf("pair offers it to worker %d, want %d (exact %v)", w, want, exact)
	}
	ln.queue = ln.queue[1:]
	ln.flying++
	m.conns[c].flying, m.conns[c].worker = true, w
	m.workers[w].owed = append(m.workers[w].owed, c)
	m.place(w, l).owes++
	m.settle(w, none)
	return true
}

func TestTableAgainstModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		window := rapid.IntRange(1, 5).Draw(rt, "window")
		m := &model{t: newTable(window, 0), window: window, workers: make(map[workerIdx]*modelWorker),
			lns: make(map[listenerID]*modelListener), conns: make(map[connID]*modelConn)}
		for range rapid.IntRange(1, 3).Draw(rt, "listeners") {
			m.addListener()
		}
		for range rapid.IntRange(1, 6).Draw(rt, "workers") {
			m.addWorker(true)
		}
		rt.Repeat(map[string]func(*rapid.T){
			"": m.check,
			"arrive": func(rt *rapid.T) {
				l := m.listener(rt)
				for range rapid.IntRange(1, 8).Draw(rt, "n") {
					c := m.t.arrive(l)
					m.conns[c] = &modelConn{listener: l}
					m.lns[l].arrived++
					m.toQueue(c)
				}
			},
			"pair": func(rt *rapid.T) { m.pair(rt, m.listener(rt)) },
			"pairAll": func(rt *rapid.T) {
				l := m.listener(rt)
				for m.pair(rt, l) {
				}
			},
			"ack": func(rt *rapid.T) {
				c := m.flying(rt)
				m.t.ack(c)
				m.lns[m.land(c).listener].acked++
				delete(m.conns, c)
			},
			"reject": func(rt *rapid.T) {
				c := m.flying(rt)
				m.place(m.conns[c].worker, m.conns[c].listener).rejected = true
				m.t.reject(c)
				m.land(c)
				m.toQueue(c)
			},
			"keep": func(rt *rapid.T) {
				c := m.flying(rt)
				m.t.keep(c)
				l := m.lns[m.land(c).listener]
				l.acked++
				l.kept++
				m.conns[c].kept = true
			},
			"forget": func(rt *rapid.T) {
				c, l := m.kept(rt)
				m.t.forget(c)
				l.kept--
				delete(m.conns, c)
			},
			"rescue": func(rt *rapid.T) {
				c, l := m.kept(rt)
				m.t.rescue(c)
				l.kept--
				l.acked-- // rescued: as if it had not been
				m.conns[c].kept = false
				m.toQueue(c)
			},
			"setWindow": func(rt *rapid.T) {
				w, n := m.worker(rt), rapid.IntRange(0, 6).Draw(rt, "window")
				m.t.setWindow(w, n)
				m.workers[w].window = min(max(n, 1), m.window)
				m.settle(w, none)
			},
			"back": func(rt *rapid.T) { m.back(m.flying(rt)) },
			"drop": func(rt *rapid.T) {
				c := pick(rt, m.conns, "waiting", func(c connID) bool { return !m.conns[c].flying && !m.conns[c].kept })
				m.t.drop(c)
				l := m.lns[m.conns[c].listener]
				l.queue = slices.DeleteFunc(l.queue, func(o connID) bool { return o == c })
				l.dropped++
				delete(m.conns, c)
			},
			"serve":   func(rt *rapid.T) { m.serve(m.worker(rt), m.listener(rt)) },
			"unblock": func(rt *rapid.T) { m.unblock(m.worker(rt)) },
			"leave": func(rt *rapid.T) {
				w, l := m.worker(rt), m.listener(rt)
				m.t.leave(w, l)
				m.place(w, l).serves = false
				m.settle(w, none)
			},
			"block": func(rt *rapid.T) {
				w := m.worker(rt)
				m.t.block(w)
				m.workers[w].blocked = true
				m.settle(w, none)
			},
			"die": func(rt *rapid.T) {
				w := m.worker(rt)
				for len(m.workers[w].owed) > 0 {
					m.back(m.workers[w].owed[0])
				}
				m.t.removeWorker(w)
				delete(m.workers, w)
			},
			"upgrade": func(rt *rapid.T) {
				text, err := json.Marshal(m.t.save())
				if err != nil {
					rt.Fatal(err)
				}
				var s savedTable
				if err := json.Unmarshal(text, &s); err != nil {
					rt.Fatal(err)
				}
				t, err := restoreTable(&s, 0)
				if err != nil {
					rt.Fatalf("%v in %s", err, text)
				}
				m.t = t
			},
			"addWorker":   func(rt *rapid.T) { m.addWorker(rapid.Bool().Draw(rt, "serving")) },
			"addListener": func(*rapid.T) { m.addListener() },
			"removeListener": func(rt *rapid.T) {
				l := pick(rt, m.lns, "unused listener", func(l listenerID) bool {
					return len(m.lns[l].queue) == 0 && m.lns[l].flying == 0 && m.lns[l].kept == 0
				})
				m.t.removeListener(l)
				delete(m.lns, l)
				for _, w := range m.workers {
					delete(w.at, l)
				}
			},
		})
	})
}
