package pool

import (
	"context"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"rrd/handoff"
)

// world is a pool over fake processes, and a log of what its hooks said and what the
// processes were told, each with the time since the start. It lives in a synctest bubble.
type world struct {
	*Pool
	t     *testing.T
	began time.Time
	runC  chan error
	stop  context.CancelFunc
	conf  Config       // what the pool was made of
	lost  map[int]bool // pids that are no children after an upgrade

	// launch stands in for the system; nil starts a fake.
	onLaunch func(ctx context.Context, sp *spec) error
	notify   func() notifySource
	left     map[int]background // what leaders leave, by pid

	mu    sync.Mutex
	lines []string // what the hooks said
	told  []string // what the processes were told
	procs []*fakeProcess
	// watches are the strangers that are watched, by pid.
	watches map[int]*fakeWatch
	heard   map[uint64]bool // workers that have spoken
}

// fakeWatch is a process that is no child.
type fakeWatch struct {
	endedC chan struct{}
	// released is closed when nobody waits any more.
	released chan struct{}
}

func (f *fakeWatch) wait(ctx context.Context) bool {
	defer close(f.released)
	select {
	case <-ctx.Done():
		return false
	default:
	}
	select {
	case <-f.endedC:
		return true
	case <-ctx.Done():
		return false
	}
}

// fakeProcess obeys TERM and KILL unless told otherwise.
type fakeProcess struct {
	w      *world
	number int
	spec   *spec
	endedC chan struct{}
	status exitStatus // once endedC is closed

	mu     sync.Mutex
	deaf   bool // to signals but KILL
	frozen bool // to KILL too
	exited bool
	reaped bool
}

func (f *fakeProcess) pid() int { return f.number }

func (f *fakeProcess) signal(sig syscall.Signal) error {
	if f.isReaped() {
		return os.ErrProcessDone
	}
	f.w.tellf("pid %d gets %v", f.number, sig)
	f.mu.Lock()
	deaf := f.deaf
	f.mu.Unlock()
	if !deaf {
		f.exit(exitStatus{code: -1, signal: sig})
	}
	return nil
}

func (f *fakeProcess) kill() {
	if f.isReaped() {
		return
	}
	f.w.tellf("pid %d killed", f.number)
	f.mu.Lock()
	frozen := f.frozen
	f.mu.Unlock()
	if !frozen {
		f.exit(exitStatus{code: -1, signal: syscall.SIGKILL})
	}
}

func (f *fakeProcess) await(ctx context.Context) bool {
	select {
	case <-f.endedC:
		return true
	case <-ctx.Done():
		return false
	}
}

func (f *fakeProcess) reap() exitStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reaped = true
	return f.status
}

// isReaped: nothing reaches it any more.
func (f *fakeProcess) isReaped() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reaped
}

func (f *fakeProcess) exit(status exitStatus) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.exited {
		f.exited = true
		f.status = status
		close(f.endedC)
	}
}

func (f *fakeProcess) isFrozen() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.frozen
}

func (f *fakeProcess) set(deaf, frozen bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deaf, f.frozen = deaf, frozen
}

func (f *fakeWatch) ended() bool {
	select {
	case <-f.endedC:
		return true
	default:
		return false
	}
}

// newWorld makes a pool that is not running yet. Hooks that c has are called besides
// the logging ones.
func newWorld(t *testing.T, c Config) *world {
	t.Helper()
	w := &world{t: t, began: time.Now(), runC: make(chan error, 1), watches: make(map[int]*fakeWatch), heard: make(map[uint64]bool)}
	if c.Size == 0 {
		c.Size = 1
	}
	c.Argv = []string{"worker"}
	c.HelperPath = "helper"
	c.NoFile = 64
	h := c.Hooks
	c.Hooks.Started = func(k Worker, ch handoff.Channel) {
		w.logf("slot %d started id %d pid %d", k.Slot, k.ID, k.PID)
		if h.Started != nil {
			h.Started(k, ch)
		}
	}
	c.Hooks.Ready = func(k Worker) {
		w.logf("slot %d ready", k.Slot)
		if h.Ready != nil {
			h.Ready(k)
		}
	}
	c.Hooks.Silent = func(k Worker) { w.logf("slot %d silent", k.Slot) }
	c.Hooks.Drain = func(k Worker) {
		w.logf("slot %d drain", k.Slot)
		if !w.hasHeardOf(k.ID) {
			w.Pool.Drained(k.ID) // as the dispatcher says at once
		}
	}
	c.Hooks.Orphaned = func(k Worker) { w.logf("slot %d orphaned, id %d", k.Slot, k.ID) }
	c.Hooks.Exited = func(k Worker, x Exit) {
		w.logf("slot %d %s, cause %s", k.Slot, x, x.Cause)
		if h.Exited != nil {
			h.Exited(k, x)
		}
	}
	c.Hooks.SpawnFailed = func(slot int, err error) { w.logf("slot %d: %v", slot, err) }
	c.Hooks.Backoff = func(slot int, d time.Duration) { w.logf("slot %d backs off %v", slot, d) }
	p, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	w.Pool = p
	w.conf = c
	w.fake()
	return w
}

// fake puts the fakes in the place of the system.
func (w *world) fake() {
	w.Pool.sys = system{
		launch: w.launch,
		adopt:  w.adopt,
		pair:   func(int) (handoff.Channel, *os.File, error) { return nil, nil, nil },
		listenNotify: func() (notifySource, error) {
			if w.notify == nil {
				return nil, nil
			}
			return w.notify(), nil
		},
		watch:      w.watch,
		jitter:     func() float64 { return 0.5 }, // none
		oomKills:   func() uint64 { return 0 },
		background: func(pid int, _ []uint64) background { return w.left[pid] },
	}
}

// adopt finds a process again.
func (w *world) adopt(pid int) process {
	if w.lost[pid] {
		return lostProcess(pid)
	}
	return w.proc(pid - 100)
}

// run starts a world; its end is checked by end.
func (w *world) run() *world {
	var ctx context.Context
	ctx, w.stop = context.WithCancel(w.t.Context())
	go func() { w.runC <- w.Run(ctx) }() // waited for by end
	synctest.Wait()
	return w
}

// end waits for Run and returns its error.
func (w *world) end() error {
	w.t.Helper()
	err := w.endLeaving()
	if n := len(w.Pool.procs); n != 0 {
		w.t.Errorf("Run returned with %d processes", n)
	}
	return err
}

// endLeaving is end for a pool that leaves processes behind.
func (w *world) endLeaving() error {
	w.t.Helper()
	err := <-w.runC
	w.stop()
	if w.spawning != 0 {
		w.t.Errorf("Run returned with %d spawns", w.spawning)
	}
	for pid, f := range w.watches {
		select {
		case <-f.released:
		default:
			w.t.Errorf("process %d is still watched", pid)
		}
	}
	return err
}

func (w *world) watch(pid int) watched {
	f := &fakeWatch{endedC: make(chan struct{}), released: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	if old := w.watches[pid]; old != nil && old.ended() {
		close(f.endedC)
	}
	w.watches[pid] = f
	return f
}

// endReader ends a process that is watched.
func (w *world) endReader(pid int) {
	w.mu.Lock()
	f := w.watches[pid]
	w.mu.Unlock()
	w.do(func() { close(f.endedC) })
}

// older describes the older processes of a slot.
func (w *world) older(slot int) (names []string) {
	for _, o := range w.Snapshot().Slots[slot].Older {
		names = append(names, fmt.Sprintf("%s id %d %s %d", o.Name(), o.ID, o.State, o.ReaderPID))
	}
	return names
}

func (w *world) launch(ctx context.Context, sp *spec) (process, error) {
	if w.onLaunch != nil {
		if err := w.onLaunch(ctx, sp); err != nil {
			return nil, err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	f := &fakeProcess{w: w, number: 100 + len(w.procs), spec: sp, endedC: make(chan struct{})}
	w.procs = append(w.procs, f)
	return f, nil
}

// Spoke and Ready are the pool's, and what the dispatcher knows of the worker then.
func (w *world) Spoke(id uint64) { w.hear(id); w.Pool.Spoke(id) }

func (w *world) Ready(id uint64) { w.hear(id); w.Pool.Ready(id) }

func (w *world) hear(id uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard[id] = true
}

func (w *world) hasHeardOf(id uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.heard[id]
}

// all returns every process so far.
func (w *world) all() []*fakeProcess {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.procs)
}

func (w *world) logf(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, fmt.Sprintf("%v ", time.Since(w.began))+fmt.Sprintf(format, args...))
}

func (w *world) tellf(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.told = append(w.told, fmt.Sprintf("%v ", time.Since(w.began))+fmt.Sprintf(format, args...))
}

// pass lets time pass, and everything that happens in it.
func (w *world) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (w *world) do(f func()) {
	f()
	synctest.Wait()
}

// proc returns the n-th process started.
func (w *world) proc(n int) *fakeProcess {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n >= len(w.procs) {
		w.t.Fatalf("only %d processes, log:\n%s", len(w.procs), strings.Join(w.lines, "\n"))
	}
	return w.procs[n]
}

// toldLine is what tellf writes.
var toldLine = regexp.MustCompile(`^\S+ pid \d+ (gets|killed)`)

// wantLog compares all that was logged since the last call with a script. Its lines
// stand in the order of time; hooks and processes hear of things from different
// goroutines, so only the order among each kind is compared.
func (w *world) wantLog(script string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var lines, told []string
	for line := range strings.Lines(script) {
		switch line = strings.TrimSpace(line); {
		case line == "":
		case toldLine.MatchString(line):
			told = append(told, line)
		default:
			lines = append(lines, line)
		}
	}
	if diff := cmp.Diff(lines, w.lines); diff != "" {
		w.t.Errorf("hooks (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(told, w.told); diff != "" {
		w.t.Errorf("signals (-want +got):\n%s", diff)
	}
	w.lines, w.told = nil, nil
}

// at returns the process of a slot. Slots are started side by side, so with several of
// them neither pid nor ID tells the slot.
func (w *world) at(slot int) *fakeProcess { return w.proc(w.Snapshot().Slots[slot].PID - 100) }

func (w *world) id(slot int) uint64 { return w.Snapshot().Slots[slot].ID }

// wantState compares the states of all slots.
func (w *world) wantState(want ...State) {
	w.t.Helper()
	var got []State
	for _, s := range w.Snapshot().Slots {
		got = append(got, s.State)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		w.t.Errorf("states (-want +got):\n%s", diff)
	}
}

// text returns the log.
func (w *world) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(append(w.lines, w.told...), "\n")
}
