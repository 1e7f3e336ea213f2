package pool

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"rrd/handoff"
)

// SavedState is everything that a frozen pool knows and that New and Run could not find out:
// what crosses when the master is replaced by exec(2) in the same process. Descriptors
// keep their numbers then and workers stay children.
//
// It is written as JSON. Unknown fields are ignored and missing ones are zero, so that
// versions a little apart understand each other; no name is ever used for something
// else. Times are ages and what is left of deadlines, when the State was made. Text that
// need not be UTF-8 is written as bytes. The environment of workers is in it, so it is
// for no log and no disk.
type SavedState struct {
	SavedAt     time.Duration // handoff.Monotonic; 0: not known
	Booted      bool          // a worker was ready once
	Desired     int
	LastID      uint64
	Generations int
	Templates   []TemplateState
	Template    int // that of slots to come, as an index of Templates
	Slots       []SlotState
	// Startups and StartSum are the histogram of start durations.
	Startups []uint64
	StartSum time.Duration
	OOMSeen  uint64
	// ForceIn is what is left until a slot is started although its backoff is not over; 0: a
	// worker is ready, or not known.
	ForceIn time.Duration
	// OutputLost counts lines, of which OutputUntold were not told of yet.
	OutputLost, OutputUntold uint64
	// OutputLines are the lines that were not written yet, the oldest first.
	OutputLines []LineState `json:",omitempty"`
	Reports     []Report    // that were kept
}

// TemplateState is a Template with its generation.
type TemplateState struct {
	Generation int
	Argv       [][]byte
	Dir        []byte
	ExtraEnv   [][]byte
	Credential *Credential
	Account    *Account `json:",omitempty"`
	NoFile     uint64
	HardLimit  bool // NoFile was given
}

// SlotState is the slot whose index it has.
type SlotState struct {
	Template      int // as an index of Templates
	Held, Down    bool
	Failures      int           // that its backoff counts
	Start         *PlannedStart // nil: none
	Starts        map[string]uint64
	Exits         map[string]uint64
	SpawnFailures uint64
	LastExit      *ExitState
	Worker        *ProcessState  // nil: none works here
	Older         []ProcessState // oldest first
}

// PlannedStart is the next start of a slot.
type PlannedStart struct {
	In     time.Duration // what is left
	Pause  time.Duration // of all that it was
	Reason string        // of StartReason
}

// ProcessState is one process that has not ended, or whose reader has not.
type ProcessState struct {
	ID         uint64
	Generation int
	PID        int
	Age        time.Duration
	State      State // starting, ready or draining
	Native     bool
	Said       bool
	WasReady   bool
	ReadyAge   time.Duration
	Requested  bool
	Retired    string
	Leaves     bool
	DrainLimit time.Duration
	Asked      bool
	Aborted    bool
	Killed     bool
	KillAsked  bool
	KilledAge  time.Duration
	Stuck      bool
	ShellOnly  bool
	Reason     string
	// Timers are what is left of its deadlines, by timerNames; those that are off
	// are missing.
	Timers      map[string]time.Duration
	Reader      int // pid; 0: the leader speaks for itself
	ReaderEnded bool
	// Exit is how the leader has ended; nil: it has not.
	Exit       *ExitState
	Counted    bool         // among the exits of its slot
	OutputDone bool         // was read to its end
	Output     *OutputState // nil: raw, or done
	Notify     *NotifyState // nil: it has none
}

// ExitState is an Exit.
type ExitState struct {
	Code       int
	Signal     int
	Core       bool
	Requested  bool
	Cause      string
	Reason     string
	Uptime     time.Duration
	WasReady   bool
	Spoke      bool
	Left       bool
	ReaderLost bool
	Daemon     int
	LastWords  []byte
}

// OutputState is the captured output of a process.
type OutputState struct {
	Stdout, Stderr StreamState
	Words          []byte // the last ones
}

// StreamState is a pipe and what was read of a line.
type StreamState struct {
	FD   handoff.FD
	Half []byte
}

// LineState is a line of output.
type LineState struct {
	Slot, PID int
	Stream    string
	Text      []byte
	More      bool
}

// maxSavedOutput bounds the OutputLines in bytes.
const maxSavedOutput = 4 << 20

func (l *LineState) check() error {
	if l.Slot < 0 || l.Slot >= MaxSize || len(l.Text) > maxLine {
		return fmt.Errorf("line of slot %d with %d bytes", l.Slot, len(l.Text))
	}
	return nil
}

func (l *LineState) line() Line {
	return Line{Worker: Worker{Slot: l.Slot, PID: l.PID}, Stream: l.Stream, Text: l.Text, More: l.More}
}

// NotifyState is the socket for READY=1. The name is the socket's own, for the eye.
type NotifyState struct {
	FD   handoff.FD
	Name []byte
}

// timerNames are the timers in a SavedState.
var timerNames = [timerCount]string{"start", "ready", "silent", "spread", "term", "kill", "reader", "stuck"}

// State returns the state of a frozen pool, and changes nothing: the pool stays the
// owner of the descriptors, which the SavedState names, and may Thaw. Without a Freeze that
// succeeded it is an error. What is told of workers afterwards is not in it.
func (p *Pool) State() (*SavedState, error) {
	p.phaseMu.Lock()
	defer p.phaseMu.Unlock()
	if p.phase != phaseFrozen {
		return nil, errors.New("take state of pool: it is not frozen")
	}
	e := exporter{now: time.Now(), due: p.frozen.at, templates: make(map[*template]int)}
	if e.now.Sub(e.due) <= late { // as Thaw does
		e.due = e.now
	}
	s := &SavedState{
		SavedAt:     handoff.Monotonic(),
		Booted:      !p.booting,
		Desired:     p.desired,
		LastID:      p.lastID.Load(),
		Generations: p.generations,
		Template:    e.template(p.tmpl),
		Startups:    slices.Clone(p.startups[:]),
		StartSum:    p.startSum,
		OOMSeen:     p.oomSeen,
		Reports:     slices.Clone(p.kept),
	}
	if !p.forceAt.IsZero() {
		s.ForceIn = max(p.forceAt.Sub(e.now), 1)
	}
	for _, slot := range p.slots {
		s.Slots = append(s.Slots, e.slot(slot))
	}
	s.Templates = e.list
	if p.out != nil {
		lines, left := p.out.pending(maxSavedOutput)
		for _, l := range lines {
			s.OutputLines = append(s.OutputLines, LineState{l.Worker.Slot, l.Worker.PID, l.Stream, l.Text, l.More})
		}
		s.OutputLost, s.OutputUntold = p.out.losses()
		s.OutputLost += left // with this program
		s.OutputUntold += left
	}
	return s, nil
}

// FDs lends all descriptors in the state.
func (s *SavedState) FDs() (fds []handoff.FD) {
	s.eachProcess(func(_ int, ps *ProcessState) {
		for _, d := range ps.fds() {
			if d.Valid() {
				fds = append(fds, d)
			}
		}
	})
	return fds
}

func (ps *ProcessState) fds() (fds []handoff.FD) {
	if ps.Output != nil {
		fds = append(fds, ps.Output.Stdout.FD, ps.Output.Stderr.FD)
	}
	if ps.Notify != nil {
		fds = append(fds, ps.Notify.FD)
	}
	return fds
}

func (s *SavedState) eachProcess(f func(slot int, ps *ProcessState)) {
	for i := range s.Slots {
		slot := &s.Slots[i]
		if slot.Worker != nil {
			f(i, slot.Worker)
		}
		for j := range slot.Older {
			f(i, &slot.Older[j])
		}
	}
}

// exporter makes the parts of a SavedState.
type exporter struct {
	now, due  time.Time // due is what deadlines are measured from
	templates map[*template]int
	list      []TemplateState
}

func (e *exporter) template(t *template) int {
	i, ok := e.templates[t]
	if !ok {
		i = len(e.list)
		e.templates[t] = i
		e.list = append(e.list, TemplateState{
			Generation: t.generation, Argv: toBytes(t.Argv), Dir: []byte(t.Dir), ExtraEnv: toBytes(t.ExtraEnv),
			Credential: t.Credential, Account: t.Account, NoFile: t.NoFile, HardLimit: t.hardLimit,
		})
	}
	return i
}

func (e *exporter) slot(s *slot) SlotState {
	st := SlotState{
		Template: e.template(s.tmpl), Held: s.held, Down: s.down, Failures: s.backoff.failures,
		Starts: make(map[string]uint64), Exits: make(map[string]uint64),
		SpawnFailures: s.spawnFailures, LastExit: exportExit(s.lastExit),
	}
	if !s.startAt.IsZero() {
		st.Start = &PlannedStart{In: max(s.startAt.Sub(e.now), 0), Pause: s.pause, Reason: s.why.String()}
	}
	for i, n := range s.starts {
		st.Starts[StartReason(i).String()] = n
	}
	for i, n := range s.exits {
		st.Exits[Cause(i).String()] = n
	}
	if s.cur != nil {
		ps := e.process(s.cur)
		st.Worker = &ps
	}
	for _, pr := range s.older {
		st.Older = append(st.Older, e.process(pr))
	}
	return st
}

func (e *exporter) process(pr *proc) ProcessState {
	ps := ProcessState{
		ID: pr.w.ID, Generation: pr.w.Generation, PID: pr.w.PID, Age: e.age(pr.w.Started),
		State: pr.state, Native: pr.native, Said: pr.said,
		WasReady: pr.wasReady, ReadyAge: e.age(pr.readyAt),
		Requested: pr.requested, Retired: pr.retired, Leaves: pr.leaves, DrainLimit: pr.drainLimit, Asked: pr.asked, Aborted: pr.aborted,
		Killed: pr.killed, KillAsked: pr.killAsked, KilledAge: e.age(pr.killedAt), Stuck: pr.stuck, ShellOnly: pr.shellOnly, Reason: pr.reason,
		Timers:  make(map[string]time.Duration),
		Counted: pr.counted, OutputDone: pr.outputDone,
	}
	for i, t := range pr.timers {
		if !t.IsZero() {
			ps.Timers[timerNames[i]] = max(t.Sub(e.due), 0)
		}
	}
	if pr.reader != nil {
		ps.Reader, ps.ReaderEnded = pr.reader.pid, pr.reader.ended
	}
	if pr.ended {
		ps.Exit = exportExit(&pr.exit)
	}
	if pr.released() { // and closed
		return ps
	}
	if c := pr.output; c != nil {
		c.mu.Lock()
		ps.Output = &OutputState{Stdout: c.stdout.state(), Stderr: c.stderr.state(), Words: bytes.Clone(lastBytes(c.words))}
		c.mu.Unlock()
	}
	if pr.notify != nil {
		ps.Notify = &NotifyState{FD: pr.notify.fd(), Name: []byte(pr.notify.name())}
	}
	return ps
}

// age is 0 for a time that never was.
func (e *exporter) age(t time.Time) time.Duration {
	if t.IsZero() {
		return 0
	}
	return max(e.now.Sub(t), 0)
}

func (s *stream) state() StreamState {
	return StreamState{FD: lend(s.f), Half: bytes.Clone(s.half)}
}

// lend returns the number of a descriptor that c goes on to own.
func lend(c syscall.Conn) (d handoff.FD) {
	if rc, err := c.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { d = handoff.Own(int(fd)) })
	}
	return d
}

func exportExit(x *Exit) *ExitState {
	if x == nil {
		return nil
	}
	return &ExitState{
		Code: x.Code, Signal: int(x.Signal), Core: x.Core, Requested: x.Requested, Cause: x.Cause.String(), Reason: x.Reason,
		Uptime: x.Uptime, WasReady: x.WasReady, Spoke: x.Spoke, Left: x.Left, ReaderLost: x.ReaderLost, Daemon: x.Daemon,
		LastWords: []byte(x.LastWords),
	}
}

func (x *ExitState) exit() (Exit, error) {
	cause := 0
	for cause < exitCauses && Cause(cause).String() != x.Cause {
		cause++
	}
	if cause == exitCauses {
		return Exit{}, fmt.Errorf("exit cause %q: unknown", x.Cause)
	}
	return Exit{
		Code: x.Code, Signal: syscall.Signal(x.Signal), Core: x.Core, Requested: x.Requested, Cause: Cause(cause),
		Reason: x.Reason, Uptime: x.Uptime, WasReady: x.WasReady, Spoke: x.Spoke, Left: x.Left,
		ReaderLost: x.ReaderLost, Daemon: x.Daemon, LastWords: string(x.LastWords),
	}, nil
}

func toBytes(words []string) (b [][]byte) {
	for _, w := range words {
		b = append(b, []byte(w))
	}
	return b
}

func toStrings(b [][]byte) (words []string) {
	for _, w := range b {
		words = append(words, string(w))
	}
	return words
}
