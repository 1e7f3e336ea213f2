//go:build unix

package main

import (
	"encoding/json"
	"fmt"
	"time"

	"rrd/cmd/internal/control"
	"rrd/worker/pool"
)

// Verbs wait for what they have asked for, and tell meanwhile what becomes of
// each slot. What a slot is in is the pool's to say; events only say when to look.

// lookAgain is how often the pool is looked at when no event says so.
const lookAgain = 100 * time.Millisecond

// watch looks at the pool and tells what has changed.
type watch struct {
	c    *call
	mine func(slot int) bool // nil: all slots
	f    *follower
	last map[int]slotView
	// spawnError is by slot why no process could be made, which only an event tells.
	spawnError map[int]string
}

// slotView is what is told of a slot.
type slotView struct {
	state string
	pid   int
}

func (c *call) watch(mine func(slot int) bool) *watch {
	_, f := c.op.Events().follow(0)
	w := &watch{c: c, mine: mine, f: f, last: make(map[int]slotView), spawnError: make(map[int]string)}
	for _, s := range c.op.Snapshot().Slots {
		w.last[s.Slot] = viewOf(&s)
	}
	return w
}

func viewOf(s *pool.SlotStatus) slotView { return slotView{string(s.State), s.PID} }

// look returns the pool's state after it has told what is new in it.
func (w *watch) look() pool.Snapshot {
	snap := w.c.op.Snapshot()
	seen := make(map[int]bool, len(snap.Slots))
	for i := range snap.Slots {
		s := &snap.Slots[i]
		seen[s.Slot] = true
		before, known := w.last[s.Slot]
		now := viewOf(s)
		w.last[s.Slot] = now
		if w.mine != nil && !w.mine(s.Slot) || known && before == now {
			continue
		}
		e := control.SlotEvent{Slot: s.Slot, State: now.state, PID: now.pid, Generation: s.Generation}
		if now.pid == 0 && s.LastExit != nil {
			e.Reason = s.LastExit.String()
		}
		w.c.progress(e)
	}
	for slot, before := range w.last {
		if seen[slot] {
			continue
		}
		delete(w.last, slot)
		if w.mine == nil || w.mine(slot) {
			w.c.progress(control.SlotEvent{Slot: slot, State: control.StateGone, PID: before.pid})
		}
	}
	return snap
}

// until looks until done says so, or nobody waits any more.
func (w *watch) until(done func(pool.Snapshot) (bool, error)) error {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		if over, err := done(w.look()); over || err != nil {
			return err
		}
		select {
		case record := <-w.f.events:
			w.learn(record)
		case <-tick.C:
		case <-w.c.op.Over():
			w.look()
			return control.Errorf(control.CodeFailed, "rrd has stopped meanwhile")
		case <-w.c.ctx.Done():
			return control.Errorf(control.CodeFailed, "nobody waits any more; what was begun goes on")
		}
	}
}

func (w *watch) learn(record json.RawMessage) {
	var e struct {
		Event, Error string
		Worker       any // a number, but a name where it is no slot's newest
	}
	if json.Unmarshal(record, &e) != nil || e.Event != "worker.spawn_failed" {
		return
	}
	if slot, ok := e.Worker.(float64); ok {
		w.spawnError[int(slot)] = e.Error
	}
}

func (w *watch) close() { w.f.close() }

// during does what takes its time, and tells what becomes of the slots meanwhile.
// When nobody waits any more do goes on, and ends by itself.
func (c *call) during(do func() error, mine func(slot int) bool) error {
	w := c.watch(mine)
	defer w.close()
	doneC := make(chan error, 1)
	go result(do, doneC) // not waited for: its result may come when nobody wants it any more
	var err error
	waitErr := w.until(func(pool.Snapshot) (bool, error) {
		select {
		case err = <-doneC:
			return true, nil
		default:
			return false, nil
		}
	})
	if waitErr != nil {
		select {
		case err = <-doneC: // the end of the master is what a stop waits for
			return err
		case <-time.After(lookAgain):
			return waitErr
		}
	}
	return err
}

func result(do func() error, doneC chan<- error) { doneC <- do() }

// only is about one slot, none about no slot: who tells of them himself.
func only(slot int) func(int) bool { return func(s int) bool { return s == slot } }
func none(int) bool                { return false }

// trouble is how often a slot has failed.
func trouble(s *pool.SlotStatus) (n uint64) {
	n = s.SpawnFailures
	for cause, times := range s.Exits {
		if cause != pool.CauseRequested {
			n += times
		}
	}
	return n
}

// resize changes the number of workers and waits until it is so: those that are
// wanted are ready, the others gone.
func (c *call) resize(change func() (int, error)) (any, error) {
	before := c.op.Snapshot()
	w := c.watch(nil)
	defer w.close()
	failures := make(map[int]uint64)
	for i := range before.Slots {
		failures[before.Slots[i].Slot] = trouble(&before.Slots[i])
	}
	for i := range before.Removed {
		failures[before.Removed[i].Slot] = trouble(&before.Removed[i])
	}
	to, err := change()
	if err != nil {
		return nil, err
	}
	err = w.until(func(s pool.Snapshot) (bool, error) {
		if s.Stopping {
			return false, control.Errorf(control.CodeFailed, "rrd is stopping")
		}
		if s.Desired != to {
			return false, control.Errorf(control.CodeFailed, "somebody else has set the number of workers to %d meanwhile", s.Desired)
		}
		waits, ready := 0, 0
		for i := range s.Slots {
			slot := &s.Slots[i]
			switch {
			case endless(slot):
				return false, stuckError(slot)
			case slot.Slot >= to:
				waits++
			case slot.State == pool.StateReady:
				ready++
			case slot.Held:
				// It is filled again by undrain only.
			case slot.State == pool.StateDown && findSlot(before, slot.Slot) != nil && findSlot(before, slot.Slot).State == pool.StateDown:
				// It was left so before.
			case trouble(slot) > failures[slot.Slot]:
				return false, control.Errorf(control.CodeFailed, "%s %s; %d of %d workers are ready, and rrd goes on with its restarts",
					slotName(slot.Slot), w.why(slot), countReady(s), to)
			default:
				waits++
			}
		}
		return waits == 0, nil
	})
	if err != nil {
		return nil, err
	}
	return control.Resized{From: before.Desired, To: to}, nil
}

// endless says whether a slot is not going to be what is wanted, as its process does not
// end.
func endless(s *pool.SlotStatus) bool { return s.PID > 0 && s.State == pool.StateStuck }

// why says how a slot has failed.
func (w *watch) why(s *pool.SlotStatus) string {
	if text := w.spawnError[s.Slot]; text != "" {
		return "could not be started: " + text
	}
	if s.LastExit != nil {
		return s.LastExit.String()
	}
	return "could not be started"
}

func countReady(s pool.Snapshot) (n int) {
	for i := range s.Slots {
		if s.Slots[i].State == pool.StateReady {
			n++
		}
	}
	return n
}

// workersKill waits until the process is dead; what becomes of its slot is told
// by the restart policy.
func (c *call) workersKill() (any, error) {
	slot, err := c.slot()
	if err != nil {
		return nil, err
	}
	target := findSlot(c.op.Snapshot(), slot)
	if target == nil || target.PID == 0 {
		return nil, control.Errorf(control.CodeFailed, "slot %d has no process", slot)
	}
	w := c.watch(only(slot))
	defer w.close()
	c.op.Kill(target.ID, fmt.Sprintf("killed by uid %d over the control socket", c.peer.UID))
	if err := w.untilGone(target); err != nil {
		return nil, err
	}
	return control.Killed{Slot: slot, PID: target.PID}, nil
}

// untilGone waits until a process is dead.
func (w *watch) untilGone(target *pool.SlotStatus) error {
	return w.until(func(s pool.Snapshot) (bool, error) {
		now := findSlot(s, target.Slot)
		if now == nil {
			return true, nil
		}
		if now.ID == target.ID {
			if now.State == pool.StateStuck {
				return false, stuckError(target)
			}
			return false, nil
		}
		for _, o := range now.Older {
			if o.ID == target.ID {
				if o.State == pool.StateStuck || o.State == pool.StateOrphan {
					return false, stuckError(target)
				}
				return false, nil
			}
		}
		return true, nil
	})
}

// workersDrain waits until the slot is empty.
func (c *call) workersDrain() (any, error) {
	slot, err := c.slot()
	if err != nil {
		return nil, err
	}
	target := findSlot(c.op.Snapshot(), slot)
	w := c.watch(only(slot))
	defer w.close()
	if err := c.op.DrainSlot(slot); err != nil {
		return nil, err
	}
	if target != nil && target.PID > 0 {
		if err := w.untilGone(target); err != nil {
			return nil, err
		}
	}
	return c.slotNow(slot), nil
}

// workersUndrain waits until the slot serves again.
func (c *call) workersUndrain() (any, error) {
	slot, err := c.slot()
	if err != nil {
		return nil, err
	}
	before := findSlot(c.op.Snapshot(), slot)
	w := c.watch(only(slot))
	defer w.close()
	if err := c.op.UndrainSlot(slot); err != nil {
		return nil, err
	}
	err = w.until(func(s pool.Snapshot) (bool, error) {
		now := findSlot(s, slot)
		switch {
		case now == nil || s.Stopping:
			return false, control.Errorf(control.CodeFailed, "slot %d is no more", slot)
		case before != nil && trouble(now) > trouble(before):
			return false, control.Errorf(control.CodeFailed, "%s %s; rrd goes on with its restarts", slotName(slot), w.why(now))
		}
		return now.State == pool.StateReady, nil
	})
	if err != nil {
		return nil, err
	}
	return c.slotNow(slot), nil
}

func stuckError(target *pool.SlotStatus) error {
	return control.Errorf(control.CodeFailed, "process %d of slot %d was killed and does not end: the kernel holds it, or a process that it has started lives on", target.PID, target.Slot)
}
