package pool

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"rrd/handoff"
)

var (
	// ErrStopping is returned (wrapped) for a change of a pool that is being
	// stopped or is over.
	ErrStopping = errors.New("pool is stopping")
	// ErrNoWorker is returned (wrapped) when a slot has no process.
	ErrNoWorker = errors.New("no such worker")
	// ErrAllDown is returned (wrapped) by Run when the restart policy left every
	// slot down and at least one after a failure.
	ErrAllDown = errors.New("every worker ended and none is to be restarted")
)

// maxSpawns is how many spawns may be under way. Each holds some ten descriptors for
// as long, which 1024 slots at once would make too many.
const maxSpawns = 8

// A Pool keeps the workers of one master. New makes it, Run works it; all other
// methods may be called at any time, from any goroutine, hooks included.
type Pool struct {
	cfg    Config // SetLimits changes it: for the loop only
	fixed  Config // as it was made, for all goroutines
	sys    system
	inbox  *mailbox       // requests and news for the loop
	hooks  *mailbox       // calls of hooks, in order
	tasks  sync.WaitGroup // one for each start, and its readers
	lastID atomic.Uint64  // starts of processes
	out    *printer       // nil when output is raw
	strays *reaper
	spawnC chan struct{} // a token for each spawn under way

	resizeMu sync.Mutex // one resize at a time, as its hook is asked in between

	runningC chan struct{} // closed by Run

	phaseMu sync.Mutex // a phase other than running owns the state by holding it
	phase   phase
	frozen  *freeze  // in phaseFrozen
	kept    []Report // in phaseFrozen, and after a Restore

	// State of the loop.
	slots []*slot // by index; those from desired on are on their way out
	procs map[uint64]*proc
	tmpl  *template // of slots that are new; after a roll, the new one
	roll  *roll     // nil: none is under way
	// generations counts the rolls, failed ones too, from 1.
	generations int
	desired     int
	spawning    int // starts that are no process yet
	freezing    *freeze
	restored    *restored // nil: of New
	stopping    bool
	booting     bool          // no worker was ready yet
	boot        []BootFailure // while booting
	startups    [len(startBounds) + 1]uint64
	startSum    time.Duration
	drainEnd    time.Time // of a stop that is spread, when the drain timeout ends for all; zero: never
	forceAt     time.Time // when a slot is started although its backoff is not over; zero: a worker is ready
	leaveAt     time.Time // when what does not end is left behind; zero if there is more
	oomSeen     uint64
	// spawnCtx ends the spawns under way when all are to be killed.
	spawnCtx  context.Context
	killSpawn context.CancelFunc
	// lifeCtx ends the waiting for processes that are left behind.
	lifeCtx context.Context
}

type phase int

const (
	phaseNew phase = iota
	phaseRunning
	phaseFrozen
	phaseOver
)

// system is all that touches the operating system; tests replace it.
type system struct {
	launch       func(context.Context, *spec) (process, error)
	adopt        func(pid int) process
	watch        func(pid int) watched
	pair         func(slot int) (handoff.Channel, *os.File, error)
	listenNotify func() (notifySource, error)
	adoptNotify  func(handoff.FD) (notifySource, error)
	jitter       func() float64 // in [0, 1)
	oomKills     func() uint64  // out-of-memory kills in our cgroup so far
	background   func(leader int, lent []uint64) background
}

// New checks c and makes a pool of it. Nothing runs before Run.
func New(c Config) (*Pool, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("make pool: %w", err)
	}
	p := newPool(c)
	p.growSlots(c.Size)
	return p, nil
}

// newPool makes a pool without slots. c has its defaults.
func newPool(c Config) *Pool {
	p := &Pool{
		cfg:         c,
		fixed:       c,
		tmpl:        newTemplate(c.template(), 1),
		generations: 1,
		inbox:       newMailbox(),
		hooks:       newMailbox(),
		strays:      newReaper(),
		spawnC:      make(chan struct{}, maxSpawns),
		runningC:    make(chan struct{}),
		procs:       make(map[uint64]*proc),
		desired:     c.Size,
		booting:     true,
	}
	if c.Output.Mode != OutputRaw {
		p.out = newPrinter(c.Output)
	}
	p.sys = system{
		launch:       p.launch,
		adopt:        p.adoptChild,
		watch:        watch,
		pair:         c.Pair,
		listenNotify: listenNotify,
		adoptNotify:  adoptNotify,
		jitter:       rand.Float64,
		oomKills:     oomKills,
		background:   findBackground,
	}
	return p
}

// Running is closed when Run has begun. A Freeze before that is refused.
func (p *Pool) Running() <-chan struct{} { return p.runningC }

// Run starts the workers and keeps them until all are gone: after Stop, StopNow or
// the end of ctx (which is a StopNow), when it returns nil; when none ever became
// ready, a *BootError; when the restart policy left all of them down, nil if
// their exits were clean, else an error that wraps ErrAllDown.
//
// When it returns, every process it started is reaped, every hook has returned and
// its goroutines have ended, save one that is still stuck in a write to
// Output.
//
// It does not wait for ever for what nobody can end: when the only processes left are
// stuck (killed 2 s ago and still there), it gives them 3 s more. So it returns
// within 5 s of a StopNow, and within 5 s of the last KILL of a Stop. What is then
// left behind is named in an error that wraps a *LeftError, and its Exited
// hook is not called. A reader that outlives its leader outside of the group
// (SetReader) is drained like a worker, and left behind likewise.
//
// Run may be called once.
func (p *Pool) Run(ctx context.Context) error {
	p.phaseMu.Lock()
	if p.phase != phaseNew {
		p.phaseMu.Unlock()
		return errors.New("run pool: called twice")
	}
	p.phase = phaseRunning
	p.phaseMu.Unlock()
	close(p.runningC)

	p.spawnCtx, p.killSpawn = context.WithCancel(context.Background())
	defer p.killSpawn()
	var endLife context.CancelFunc
	p.lifeCtx, endLife = context.WithCancel(context.Background())
	defer endLife()
	if p.restored == nil {
		p.oomSeen = p.sys.oomKills()
	}
	var helpers sync.WaitGroup // waited for below
	helpers.Go(p.hooks.deliver)
	helpers.Go(p.strays.run)
	if p.out != nil {
		p.out.start() // waited for by close
	}

	err := p.loop(ctx)

	endLife() // of those left behind
	p.phaseMu.Lock()
	p.phase = phaseOver
	rest, _ := p.inbox.take() // those who wait for an answer get it
	for _, f := range rest {
		f()
	}
	p.endFreeze(ErrStopping)
	if p.roll != nil { // one of those
		p.endRoll(ErrStopping)
	}
	p.phaseMu.Unlock()
	p.tasks.Wait()
	p.strays.close()
	if p.out != nil {
		p.out.close()
	}
	p.hooks.close()
	helpers.Wait()
	return err
}

// loop is the one that owns the state.
func (p *Pool) loop(ctx context.Context) error {
	if p.restored != nil {
		p.adopt()
	}
	news, _ := p.inbox.take() // Stop may have come before Run
	for _, f := range news {
		f()
	}
	p.stopping = p.stopping || ctx.Err() != nil
	for _, s := range p.slots[:p.desired] {
		switch {
		case p.stopping:
		case p.restored != nil:
			p.refill(s) // which does nothing, if the state was one that a pool is in
		default:
			p.start(s, StartInitial)
		}
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	endC := ctx.Done()
	awake := time.Now()
	for {
		if over, err := p.ended(time.Now()); over {
			return err
		}
		next, watched := p.nextWake(awake)
		var timerC <-chan time.Time
		if !next.IsZero() {
			timer.Reset(time.Until(next))
			timerC = timer.C
		}
		select {
		case <-endC:
			endC = nil
			p.stopNow()
		case <-p.inbox.wakeC:
		case <-timerC:
		}
		now := time.Now()
		if watched && now.Sub(next) > late {
			p.postpone(now.Sub(awake))
		}
		awake = now
		p.turn(now)
		for p.settle() {
			awake = time.Now()
			p.turn(awake)
		}
	}
}

// turn does what was told and what is due.
func (p *Pool) turn(now time.Time) {
	news, _ := p.inbox.take()
	for _, f := range news {
		f()
	}
	p.expire(now)
	p.advanceRoll(now)
	p.watchService(now)
}

// ended says whether there is nothing left to do, and what Run returns then.
func (p *Pool) ended(now time.Time) (bool, error) {
	over, err := p.finished()
	if !over {
		p.leaveAt = time.Time{}
		return false, nil
	}
	if len(p.procs) == 0 {
		return true, err
	}
	stuck := true
	for _, pr := range p.procs {
		p.drain(pr) // an orphan of a pool that has nothing else
		stuck = stuck && pr.stuck
	}
	switch {
	case !stuck:
		p.leaveAt = time.Time{}
		return false, nil
	case p.leaveAt.IsZero():
		p.leaveAt = now.Add(leaveAfter)
		return false, nil
	case now.Before(p.leaveAt):
		return false, nil
	case err != nil:
		return true, fmt.Errorf("%w; %w", err, p.left())
	default:
		return true, fmt.Errorf("run pool: %w", p.left())
	}
}

// finished is ended for all processes that can be expected to end.
func (p *Pool) finished() (bool, error) {
	if p.spawning > 0 {
		return false, nil
	}
	for _, pr := range p.procs {
		if !pr.stuck && !pr.orphan() {
			return false, nil
		}
	}
	if p.stopping {
		return true, nil
	}
	if p.booting {
		for _, s := range p.slots[:p.desired] {
			if s.held { // emptied by somebody who may fill it again
				return false, nil
			}
		}
		// Each slot was started once and nothing is alive.
		return true, &BootError{Failures: p.boot}
	}
	var failed error
	for _, s := range p.slots[:p.desired] {
		if !s.down || s.held {
			return false, nil
		}
		switch x := s.lastExit; {
		case failed != nil:
		case len(s.older) > 0 && s.older[0].stuck:
			failed = fmt.Errorf("run pool: %w: slot %d was killed: %s", ErrAllDown, s.index, s.older[0].reason)
		case !x.clean() || x.Daemon != 0:
			failed = fmt.Errorf("run pool: %w: slot %d %s", ErrAllDown, s.index, x)
		}
	}
	return true, failed
}

// tell posts f for the loop; when the pool is over, nowhere.
func (p *Pool) tell(f func()) bool {
	p.phaseMu.Lock()
	defer p.phaseMu.Unlock()
	if p.phase == phaseOver {
		return false
	}
	p.inbox.post(f)
	return true
}

// ask has f called while nobody else touches the state, and waits for it.
func (p *Pool) ask(f func()) {
	p.phaseMu.Lock()
	if p.phase != phaseRunning {
		defer p.phaseMu.Unlock()
		f()
		return
	}
	doneC := make(chan struct{})
	p.inbox.post(func() { f(); close(doneC) }) // under phaseMu: Run's last look finds it
	p.phaseMu.Unlock()
	<-doneC
}

// Spoke says that the worker sent a first legal frame on its channel: it is native.
func (p *Pool) Spoke(id uint64) { p.report(Report{Kind: reportSpoke, ID: id}) }

// Ready says that the worker reported ready on its channel.
func (p *Pool) Ready(id uint64) { p.report(Report{Kind: reportReady, ID: id}) }

// Drained says that a draining worker has finished what it had.
func (p *Pool) Drained(id uint64) { p.report(Report{Kind: reportDrained, ID: id}) }

// Kill ends the worker's process group at once; reason is for its Exit. An ID
// that is no longer there is ignored, here and below.
func (p *Pool) Kill(id uint64, reason string) {
	p.report(Report{Kind: reportKill, ID: id, Reason: reason})
}

// KillAsked is Kill for somebody who asks for it: the death is no fault of the worker's, nor
// of what it had been given.
func (p *Pool) KillAsked(id uint64, reason string) {
	p.report(Report{Kind: reportKill, ID: id, Reason: reason, Asked: true})
}

// Abort sends sig (ABRT) to the leader of the worker's process group, so that it can
// leave a core or a trace of its stacks, and ends the group after StopTimeout (5s
// where that is off). The cause of its Exit is killed_stuck whatever the signal made of
// it, and reason is for its Exit too.
func (p *Pool) Abort(id uint64, sig syscall.Signal, reason string) {
	p.report(Report{Kind: reportAbort, ID: id, Signal: int(sig), Reason: reason})
}

// Retire stops one process by the rules of Stop, although its slot goes on: it is
// respawned as soon as the process has exited, whatever the restart policy, and the
// backoff does not grow. reason is for its Exit, which counts as requested. Nothing
// happens to a worker that is on its way out already.
func (p *Pool) Retire(id uint64, reason string) {
	p.report(Report{Kind: reportRetire, ID: id, Reason: reason})
}

// Signal sends sig to the newest worker of a slot, and only to its leader.
func (p *Pool) Signal(slot int, sig syscall.Signal) (err error) {
	p.ask(func() {
		if e := p.unchangeable(); e != nil {
			err = fmt.Errorf("signal slot %d: %w", slot, e)
		} else if slot < 0 || slot >= len(p.slots) || p.slots[slot].cur == nil {
			err = fmt.Errorf("signal slot %d: %w", slot, ErrNoWorker)
		} else if e := p.slots[slot].cur.p.signal(sig); e != nil {
			err = fmt.Errorf("signal slot %d: %w", slot, e)
		}
	})
	return err
}

// onSlot has f called with a slot in use.
func (p *Pool) onSlot(what string, slot int, f func(*slot) error) error {
	err := ErrStopping
	p.ask(func() {
		busy := p.unchangeable()
		switch {
		case busy != nil:
			err = busy
		case p.stopping || p.phase == phaseOver:
		case slot < 0 || slot >= p.desired:
			err = ErrNoWorker
		default:
			err = f(p.slots[slot])
		}
	})
	if err != nil {
		return fmt.Errorf("%s slot %d: %w", what, slot, err)
	}
	return nil
}

// Resize sets the number of workers, from 1 to MaxSize. New slots are started;
// those from n on are drained.
func (p *Pool) Resize(n int) error {
	_, err := p.resize(func(int) int { return n })
	return err
}

// Grow adds one worker and returns their new number.
func (p *Pool) Grow() (int, error) { return p.resize(func(n int) int { return n + 1 }) }

// Shrink drains the worker of the highest slot and returns their new number.
func (p *Pool) Shrink() (int, error) { return p.resize(func(n int) int { return n - 1 }) }

func (p *Pool) resize(change func(int) int) (int, error) {
	p.resizeMu.Lock()
	defer p.resizeMu.Unlock()
	var from int
	p.ask(func() { from = p.desired })
	to := change(from)
	if to < 1 || to > MaxSize {
		return from, fmt.Errorf("resize from %d to %d workers: must be 1 to %d", from, to, MaxSize)
	}
	if may := p.fixed.Hooks.MayResize; may != nil && to != from {
		if err := may(from, to); err != nil {
			return from, fmt.Errorf("resize from %d to %d workers: %w", from, to, err)
		}
	}
	var err error
	p.ask(func() {
		if err = p.unchangeable(); err != nil {
			return
		}
		if p.stopping || p.phase == phaseOver {
			err = ErrStopping
			return
		}
		p.setDesired(to)
	})
	if err != nil {
		return from, fmt.Errorf("resize from %d to %d workers: %w", from, to, err)
	}
	return to, nil
}

// Stop drains all workers and starts no more. It does not wait: Run returns when
// they are gone.
func (p *Pool) Stop() { p.report(Report{Kind: reportStop}) }

// StopWithin is Stop with what is left of the drain timeout, where a part of it
// was used before the workers could be asked to drain.
func (p *Pool) StopWithin(drain time.Duration) {
	p.report(Report{Kind: reportStopWithin, Drain: drain})
}

// StopNow kills all process groups and starts no more. It does not wait either.
func (p *Pool) StopNow() { p.report(Report{Kind: reportStopNow}) }
