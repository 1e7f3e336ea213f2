package dispatcher

import "slices"

// Names outlive their listeners, so that counters do not fall. A listener of the
// configuration keeps its name for ever. Workers can ask for ever new addresses, so only
// the last closed names of asked listeners are kept.

// ClosedListeners is the name that has the counts of forgotten names.
const ClosedListeners = "(closed)"

// keptNames is the number of closed asked listeners whose names keep their own counts.
const keptNames = 64

// nameStats are the counts of a listener's name; they outlive the listener.
type nameStats struct {
	ListenerStats
	dropsSeen [NumDropReasons]uint64 // reported to Hooks.Dropped
}

// nameStats returns the counts of a name, from zero if the name is not known.
func (l *loop) nameStats(name string) *nameStats {
	if n := l.byName[name]; n != nil {
		l.closedNames = without(l.closedNames, n)
		return n
	}
	n := &nameStats{}
	n.Name = name
	l.addName(n)
	return n
}

func (l *loop) addName(n *nameStats) {
	l.names = append(l.names, n)
	l.byName[n.Name] = n
}

func (l *loop) dropName(n *nameStats) {
	l.names = without(l.names, n)
	delete(l.byName, n.Name)
}

// without returns list without n.
func without(list []*nameStats, n *nameStats) []*nameStats {
	return slices.DeleteFunc(list, func(o *nameStats) bool { return o == n })
}

// forgetName bounds the names of asked listeners, after one of them has closed. A name
// that had no connection goes at once, so that respawning grows nothing.
func (l *loop) forgetName(n *nameStats) {
	if !l.isForgettable(n) {
		return
	}
	l.dropName(n)
	if n.Accepted > 0 || n.KernelDrops > 0 {
		l.addName(n) // last: the names are saved in the order in which they closed
		l.closedNames = append(l.closedNames, n)
		l.foldNames()
	}
}

func (l *loop) isForgettable(n *nameStats) bool {
	return n.Asked && !n.Open && n.Name != ClosedListeners && !l.hasName(n)
}

// hasName reports whether a listener still counts under n.
func (l *loop) hasName(n *nameStats) bool {
	return slices.ContainsFunc(l.listeners, func(ln *listener) bool { return ln != nil && ln.stats == n })
}

// foldNames adds the counts of the oldest closed names to ClosedListeners. They have no
// connection left, so the law holds for the sum as well.
func (l *loop) foldNames() {
	for len(l.closedNames) > keptNames {
		n := l.closedNames[0]
		l.closedNames = without(l.closedNames, n)
		l.dropName(n)
		sum := l.nameStats(ClosedListeners)
		sum.Asked = true
		sum.add(n)
	}
}

// add adds the counters of o.
func (n *nameStats) add(o *nameStats) {
	n.Accepted += o.Accepted
	n.Acked += o.Acked
	n.Rescued += o.Rescued
	n.KernelDrops += o.KernelDrops
	addEach(n.Dropped[:], o.Dropped[:])
	addEach(n.dropsSeen[:], o.dropsSeen[:])
	addEach(n.AcceptErrors[:], o.AcceptErrors[:])
	addEach(n.Pauses[:], o.Pauses[:])
}

func addEach(to, from []uint64) {
	for i, v := range from {
		to[i] += v
	}
}

// restoreNames takes over the names of a State. restoreClosedNames follows when the
// listeners are known.
func (l *loop) restoreNames(s *State) {
	for i := range s.Names {
		l.addName(&nameStats{ListenerStats: s.Names[i].ListenerStats, dropsSeen: s.Names[i].DropsSeen})
	}
}

func (l *loop) restoreClosedNames() {
	for _, n := range l.names {
		if l.isForgettable(n) {
			l.closedNames = append(l.closedNames, n)
		}
	}
	l.foldNames()
}
