package pool

import (
	"context"
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"

	"rrd/handoff"
)

// restored is what Run has to do with a pool that was not made by New.
type restored struct {
	at    time.Time // when the state was written
	procs []adopted
}

// adopted is a process that another program has started.
type adopted struct {
	pr *proc
	ps *ProcessState
}

// Restore makes a pool that goes on where the one of s was frozen; c is as for New, save
// that its size and its template mean nothing. Descriptors are owned by the pool once Run
// is called: until then, and after an error, they are the caller's, and nothing was asked
// of them or done to them or to any process. Changes are refused with ErrBusy until Run.
//
// Run then adopts the processes. Hooks are not called again for what happened before.
// Who has ended meanwhile is found by waiting for him; one that is no child of ours is
// taken to have ended, how is not known (code -1).
func Restore(c Config, s *SavedState) (*Pool, error) {
	c, err := c.withDefaults()
	if err == nil {
		err = s.check()
	}
	if err != nil {
		return nil, fmt.Errorf("restore pool: %w", err)
	}
	p := newPool(c)
	p.restored = &restored{at: time.Now().Add(-handoff.SinceSaved(s.SavedAt))}
	p.booting = false
	p.desired = s.Desired
	p.generations = s.Generations
	p.lastID.Store(s.LastID)
	copy(p.startups[:], s.Startups)
	p.startSum = s.StartSum
	p.oomSeen = min(s.OOMSeen, p.sys.oomKills()) // which begins again in another cgroup
	if s.ForceIn > 0 {
		p.forceAt = p.restored.at.Add(s.ForceIn)
	}
	p.kept = slices.Clone(s.Reports)
	if p.out != nil {
		lines := make([]Line, len(s.OutputLines))
		for i := range s.OutputLines {
			lines[i] = s.OutputLines[i].line()
		}
		p.out.restore(s.OutputLost, s.OutputUntold, lines)
	}
	templates := make([]*template, len(s.Templates))
	for i := range s.Templates {
		templates[i] = s.Templates[i].template()
	}
	p.tmpl = templates[s.Template]
	p.growSlots(len(s.Slots))
	for i := range s.Slots {
		if err := p.restoreSlot(p.slots[i], &s.Slots[i], templates); err != nil {
			return nil, fmt.Errorf("restore pool: slot %d: %w", i, err)
		}
	}
	return p, nil
}

func (p *Pool) restoreSlot(s *slot, st *SlotState, templates []*template) error {
	s.tmpl = templates[st.Template]
	s.held, s.down = st.Held, st.Down
	s.backoff.failures = st.Failures
	s.spawnFailures = st.SpawnFailures
	for i := range s.starts {
		s.starts[i] = st.Starts[StartReason(i).String()]
	}
	for i := range s.exits {
		s.exits[i] = st.Exits[Cause(i).String()]
	}
	if st.LastExit != nil {
		x, err := st.LastExit.exit()
		if err != nil {
			return err
		}
		s.lastExit = &x
	}
	if st.Start != nil {
		why, err := startReason(st.Start.Reason)
		if err != nil {
			return err
		}
		s.startAt, s.pause, s.why = p.restored.at.Add(st.Start.In), st.Start.Pause, why
	}
	if st.Worker != nil {
		pr, err := p.restoreProcess(s, st.Worker)
		if err != nil {
			return err
		}
		s.cur = pr
	}
	for i := range st.Older {
		pr, err := p.restoreProcess(s, &st.Older[i])
		if err != nil {
			return err
		}
		s.older = append(s.older, pr)
	}
	return nil
}

func (p *Pool) restoreProcess(s *slot, ps *ProcessState) (*proc, error) {
	now := p.restored.at
	pr := &proc{
		w: Worker{ID: ps.ID, Slot: s.index, Generation: ps.Generation, PID: ps.PID, Started: now.Add(-ps.Age)},
		s: s, p: lostProcess(ps.PID), tmpl: s.tmpl,
		notifyLull: new(lull), reapC: make(chan struct{}), releasedC: make(chan struct{}),
		state: ps.State, native: ps.Native, said: ps.Said, wasReady: ps.WasReady,
		requested: ps.Requested, retired: ps.Retired, leaves: ps.Leaves, drainLimit: ps.DrainLimit, asked: ps.Asked, aborted: ps.Aborted,
		killed: ps.Killed, killAsked: ps.KillAsked, stuck: ps.Stuck, shellOnly: ps.ShellOnly, reason: ps.Reason,
		timers:  ps.timers(now),
		counted: ps.Counted, outputDone: ps.OutputDone,
	}
	if ps.WasReady {
		pr.readyAt = now.Add(-ps.ReadyAge)
	}
	if ps.Killed {
		pr.killedAt = now.Add(-ps.KilledAge)
	}
	if ps.Reader != 0 { // watched by adopt
		pr.reader = &reader{pid: ps.Reader, ended: ps.ReaderEnded, forget: func() {}}
	}
	if ps.Exit != nil {
		x, err := ps.Exit.exit()
		if err != nil {
			return nil, err
		}
		pr.ended, pr.exit = true, x
	} else {
		p.strays.note(ps.PID) // before it could be taken for a stranger
	}
	if ps.OutputDone {
		pr.release()
	}
	p.procs[pr.w.ID] = pr
	p.restored.procs = append(p.restored.procs, adopted{pr, ps})
	return pr, nil
}

// adopt is the beginning of Run for a pool of Restore.
func (p *Pool) adopt() {
	r := p.restored
	if gone := time.Since(r.at); gone > late {
		p.postpone(gone)
	}
	for _, a := range r.procs {
		p.adoptProcess(a.pr, a.ps)
	}
	r.procs = nil
	p.phaseMu.Lock()
	kept := p.kept
	p.kept = nil
	p.phaseMu.Unlock()
	for _, report := range kept {
		p.handle(report)
	}
}

func (p *Pool) adoptProcess(pr *proc, ps *ProcessState) {
	if ps.Output != nil {
		pr.output = adoptCapture(p.out, ps.Output)
	}
	if ps.Notify != nil {
		// Without it the worker is ready when it speaks, or after a while.
		if n, err := p.sys.adoptNotify(ps.Notify.FD); err == nil {
			pr.notify = n
		}
	}
	if r := pr.reader; r.alive() {
		p.watchReader(pr, r.pid, p.sys.watch(r.pid))
	}
	if !pr.ended {
		pr.p = p.sys.adopt(pr.w.PID)
	}
	if ended := pr.ended; !pr.outputDone {
		p.tasks.Go(func() { p.attend(pr, ended) })
	}
}

// adoptCapture takes ownership of the pipes. out is nil if the output is raw now: then
// only the last words of such a process are kept.
func adoptCapture(out *printer, s *OutputState) *capture {
	adopt := func(name string, st *StreamState) *stream {
		fd := st.FD
		n := fd.Release()
		_ = syscall.SetNonblock(n, true) // as it was: what os.NewFile knows a file for the poller by
		return &stream{name: name, f: os.NewFile(uintptr(n), name), half: slices.Clone(st.Half)}
	}
	return &capture{
		out: out, words: slices.Clone(s.Words),
		stdout: adopt("stdout", &s.Stdout), stderr: adopt("stderr", &s.Stderr),
	}
}

// adoptChild returns the process of a child that another program has started in ours.
func (p *Pool) adoptChild(pid int) process {
	if isChild(pid) {
		if child, err := os.FindProcess(pid); err == nil {
			return &osProcess{child: child, strays: p.strays}
		}
	}
	p.strays.forget(pid)
	return lostProcess(pid)
}

// lostProcess is one that is no child of ours any more, or not yet: its number may be
// anybody's, so nothing is done to it.
type lostProcess int

func (l lostProcess) pid() int { return int(l) }

func (lostProcess) signal(syscall.Signal) error { return os.ErrProcessDone }

func (lostProcess) kill() {}

func (lostProcess) await(context.Context) bool { return true }

func (lostProcess) reap() exitStatus { return exitStatus{code: -1} }
