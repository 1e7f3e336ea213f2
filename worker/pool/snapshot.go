package pool

import (
	"fmt"
	"slices"
	"time"
)

// State is what a slot is in.
type State string

const (
	StateStarting State = "starting"
	StateReady    State = "ready"
	StateDraining State = "draining"
	// StateStuck is a process that was killed and does not end; of a slot, that it
	// has too many such (and orphans) to be given a successor.
	StateStuck State = "stuck"
	// StateBackoff is a slot that waits for its next start.
	StateBackoff State = "backoff"
	// StateDown is a slot that is not started again.
	StateDown State = "down"
	// StateOrphan is a process whose leader has ended and whose reader has not. Only
	// older processes are in it.
	StateOrphan State = "orphan"
	// StateKept is a process that a roll has replaced and keeps until it has succeeded.
	// Only older processes are in it.
	StateKept State = "kept"
)

// States lists every state of a slot.
func States() []State {
	return []State{StateStarting, StateReady, StateDraining, StateStuck, StateBackoff, StateDown}
}

// StartReason says why a process was started.
type StartReason int

const (
	StartInitial StartReason = iota
	StartScale               // Resize, Grow
	StartCrash               // its predecessor ended unasked
	StartReload              // a roll
	StartRecycle             // its predecessor was retired
	startReasons = iota
)

func (r StartReason) String() string {
	return [...]string{"initial", "scale", "crash", "reload", "recycle"}[r]
}

// Cause classifies an exit.
type Cause int

const (
	CauseRequested   Cause = iota // it was asked to end and did
	CauseCode                     // it exited itself
	CauseSignal                   // a signal of somebody else
	CauseOOM                      // the kernel's out-of-memory killer
	CauseKilledStuck              // the pool's KILL: a time-out, Kill or Abort
	exitCauses       = iota
)

func (c Cause) String() string {
	return [...]string{"requested", "code", "signal", "oom", "killed_stuck"}[c]
}

// startBounds are the upper bounds of the histogram of start durations, in seconds.
var startBounds = [...]float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 30, 60}

// Snapshot is a copy of the pool's state between two turns of its loop.
type Snapshot struct {
	Desired  int  // number of workers wanted
	Booted   bool // a worker was ready at least once
	Stopping bool
	// Generations counts the rolls, failed ones too, from 1: the last one's workers
	// are of that generation.
	Generations int
	// Slots are the slots wanted and those that still have a process, by index.
	Slots []SlotStatus
	// Removed are the slots that were used and are no more: only their counts
	// still mean something, so that counters never fall.
	Removed []SlotStatus
	// StartDurations is the histogram of spawn to ready.
	StartDurations Histogram
	// OutputLost counts lines of workers that were dropped because the sink of
	// their output did not take them in time.
	OutputLost uint64
}

// SlotStatus is a slot and its newest process. Counts are of the master's life and
// survive the slot's going and coming back.
type SlotStatus struct {
	// Worker is the newest process. Without one its ID and PID are 0.
	Worker
	State         State
	Native        bool // it speaks on its channel
	Uptime        time.Duration
	Restarts      uint64        // starts but the first
	Backoff       time.Duration // the pause it is in; else 0
	StartsIn      time.Duration // what is left of it
	Starts        map[StartReason]uint64
	Exits         map[Cause]uint64
	SpawnFailures uint64 // starts that made no process
	// Older are the processes whose place was taken and that have not ended, oldest
	// first, also the one that a roll keeps; Next is the one that is to take the place of Worker.
	Older    []OlderStatus
	Next     *OlderStatus
	Held     bool  // by DrainSlot
	LastExit *Exit // nil before the first; not to be changed
}

// OlderStatus is a process that does not work in its slot any more, or not yet.
type OlderStatus struct {
	Worker
	State     State // stuck, orphan, draining or kept; of the next one starting or ready
	Uptime    time.Duration
	ReaderPID int // the process that speaks on its channel, if not PID
}

// Name is "SLOT.GENERATION": the name of a process that is not its slot's newest.
func (w Worker) Name() string { return fmt.Sprintf("%d.%d", w.Slot, w.Generation) }

// Histogram counts observations: Counts[i] those up to Bounds[i] seconds and above
// the bound before; the last count is of those above all bounds.
type Histogram struct {
	Bounds []float64
	Counts []uint64
	Sum    float64 // seconds
}

// Total returns the number of observations.
func (h Histogram) Total() (n uint64) {
	for _, c := range h.Counts {
		n += c
	}
	return n
}

// States counts the slots by state; every state is there.
func (s Snapshot) States() map[State]int {
	counts := make(map[State]int)
	for _, state := range States() {
		counts[state] = 0
	}
	for _, slot := range s.Slots {
		counts[slot.State]++
	}
	return counts
}

// Snapshot returns the present state; after Run, the last one. It waits for the
// loop's turn, which never waits for hooks or processes.
func (p *Pool) Snapshot() (snap Snapshot) {
	p.ask(func() { snap = p.snapshot(time.Now()) })
	if p.out != nil {
		snap.OutputLost, _ = p.out.losses()
	}
	return snap
}

func (p *Pool) snapshot(now time.Time) Snapshot {
	snap := Snapshot{
		Desired:     p.desired,
		Generations: p.generations,
		Booted:      !p.booting,
		Stopping:    p.stopping,
		StartDurations: Histogram{
			Bounds: slices.Clone(startBounds[:]),
			Counts: slices.Clone(p.startups[:]),
			Sum:    p.startSum.Seconds(),
		},
	}
	for _, s := range p.slots {
		if s.index < p.desired || s.spawning || s.nextSpawning || len(s.processes()) > 0 {
			snap.Slots = append(snap.Slots, s.status(now))
		} else {
			snap.Removed = append(snap.Removed, s.status(now))
		}
	}
	if s, at := p.nextInTurn(); s != nil { // the slots wanted come first
		snap.Slots[s.index].StartsIn = max(at.Sub(now), 0)
	}
	return snap
}

func (s *slot) status(now time.Time) SlotStatus {
	st := SlotStatus{
		Worker:        Worker{Slot: s.index},
		State:         s.state(),
		Backoff:       s.pause,
		Starts:        make(map[StartReason]uint64, startReasons),
		Exits:         make(map[Cause]uint64, exitCauses),
		SpawnFailures: s.spawnFailures,
		LastExit:      s.lastExit,
	}
	var starts uint64
	for i, n := range s.starts {
		st.Starts[StartReason(i)] = n
		starts += n
	}
	for i, n := range s.exits {
		st.Exits[Cause(i)] = n
	}
	st.Restarts = max(starts, 1) - 1
	if !s.startAt.IsZero() {
		st.StartsIn = max(s.startAt.Sub(now), 0)
	}
	if pr := s.cur; pr != nil {
		st.Worker = pr.w
		st.Native = pr.native
		st.Uptime = now.Sub(pr.w.Started)
	}
	for _, pr := range s.older {
		st.Older = append(st.Older, pr.status(now))
	}
	if s.kept != nil {
		st.Older = append(st.Older, s.kept.status(now))
	}
	if s.next != nil {
		o := s.next.status(now)
		st.Next = &o
	}
	st.Held = s.held
	return st
}

// status describes a process that is not its slot's own.
func (pr *proc) status(now time.Time) OlderStatus {
	o := OlderStatus{Worker: pr.w, State: pr.state, Uptime: now.Sub(pr.w.Started)}
	switch {
	case pr.orphan():
		o.State = StateOrphan
	case pr.stuck:
		o.State = StateStuck
	case pr == pr.s.kept && pr.serves():
		o.State = StateKept
	}
	if pr.reader.alive() {
		o.ReaderPID = pr.reader.pid
	}
	return o
}

func (s *slot) state() State {
	switch {
	case s.cur != nil && (s.cur.stuck || s.cur.orphan()):
		return StateStuck
	case s.cur != nil:
		return s.cur.state
	case s.spawning:
		return StateStarting
	case !s.startAt.IsZero():
		return StateBackoff
	case len(s.older) > 0 && !s.down: // it is not wanted any more
		return StateStuck
	default: // by policy, for a failed boot, or before and after Run
		return StateDown
	}
}

func (p *Pool) observeStart(d time.Duration) {
	i, _ := slices.BinarySearch(startBounds[:], d.Seconds())
	p.startups[i]++
	p.startSum += d
}
