package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"rrd/handoff"
)

// process is one child. Fakes stand in for it in tests.
type process interface {
	pid() int
	// signal sends sig to the leader.
	signal(sig syscall.Signal) error
	// kill sends KILL to the leader and to all of its process group; nothing
	// happens once the leader was reaped.
	kill()
	// await returns true when the leader has ended, and leaves it a zombie, or
	// false when ctx ends first. It is called once.
	await(ctx context.Context) bool
	// reap kills what is left of the group and takes the leader's status. It is
	// called once, after await returned true.
	reap() exitStatus
}

type exitStatus struct {
	code   int // -1 when a signal ended it
	signal syscall.Signal
	core   bool
}

// spec is all that a launch needs to know. The launcher owns none of the files.
type spec struct {
	argv, env      []string
	stdout, stderr *os.File
	inherit        []*os.File // from descriptor 3 on
	listenPID      bool       // LISTEN_PID is to be set
	dir            string
	nofile         uint64
	nofileHard     bool
	credential     *Credential
	helper         string
}

// SpawnError says which step of starting a command failed. Errors of "exec" are those
// of execve(2): ENOENT, EACCES, ENOEXEC and so on.
type SpawnError struct {
	Step string // "fork", "chdir", "set uid", "exec", ...
	Name string // what it was done with: the program, the directory, the number
	Err  error
}

func (e *SpawnError) Error() string {
	if e.Step == "exec" && errors.Is(e.Err, syscall.ENOENT) && !strings.Contains(e.Name, "/") {
		return fmt.Sprintf("%s %s: not found in PATH: %v", e.Step, e.Name, e.Err)
	}
	if e.Name == "" {
		return fmt.Sprintf("%s: %v", e.Step, e.Err)
	}
	return fmt.Sprintf("%s %s: %v", e.Step, e.Name, e.Err)
}

func (e *SpawnError) Unwrap() error { return e.Err }

// live starts one process for s and attends to it. Run waits for it (tasks). All that it learns it posts to the loop.
// limit is how long the start may take, negative for ever.
func (p *Pool) live(ctx context.Context, s *slot, t *template, limit time.Duration, successor bool) {
	b, err := p.spawn(ctx, s, t, limit)
	if err != nil {
		err = fmt.Errorf("spawn worker: %w", err)
		if successor {
			p.inbox.post(func() { p.successorFailed(s, err) })
		} else {
			p.inbox.post(func() { p.spawnFailed(s, err) })
		}
		return
	}
	b.pr.successor = successor
	b.pr.output, b.pr.notify = b.output, b.notify
	p.inbox.post(func() { p.started(s, b.pr, b.channel) })
	p.attend(b.pr, false)
}

// attend stays with a process until it is gone, or left behind; ended says that its
// leader is reaped already. Run waits for it.
func (p *Pool) attend(pr *proc, ended bool) {
	if pr.notify != nil {
		p.tasks.Go(func() { p.listenReady(pr) }) // ends with the socket, closed below
	}
	pr.output.start(pr.w)
	known := ended || p.awaitLeader(pr)
	if known {
		select {
		case <-pr.releasedC: // its pipes would be missed by a reader that lives on
		case <-p.lifeCtx.Done():
			known = false
		}
	}
	if pr.notify != nil {
		pr.notify.Close()
	}
	lastWords := pr.output.finish()
	if known {
		p.inbox.post(func() { p.outputEnded(pr, lastWords) })
	}
}

// awaitLeader returns true when the leader has ended and the loop was told how. Its
// status is only taken when the loop says so, which a frozen one does not: what was
// taken would be lost in an upgrade.
func (p *Pool) awaitLeader(pr *proc) bool {
	if !pr.p.await(p.lifeCtx) {
		return false
	}
	left := p.leavesBackground(pr)
	p.inbox.post(func() {
		if p.procs[pr.w.ID] == pr {
			pr.reaping = true
			close(pr.reapC)
		}
	})
	select {
	case <-pr.reapC:
	case <-p.lifeCtx.Done(): // it ended just when it was left behind
		return false
	}
	status := pr.p.reap()
	p.inbox.post(func() {
		pr.reaping = false
		p.leaderEnded(pr, status, left)
	})
	return true
}

// listenReady reports the first READY=1 of the worker's own processes, and reads on
// until the socket is closed, so that a worker that says more is never held up.
func (p *Pool) listenReady(pr *proc) {
	defer pr.notifyLull.end()
	for said := false; ; {
		ready, err := pr.notify.receive(pr.w.PID)
		switch {
		case err != nil && pr.notifyLull.rest():
		case err != nil:
			return
		case ready && !said:
			said = true
			p.report(Report{Kind: reportNotified, ID: pr.w.ID})
		}
	}
}

// notified: a worker that does not speak on its channel says that it is ready. One
// that does is ready when it says so there.
func (p *Pool) notified(pr *proc) {
	if !pr.native {
		p.becomeReady(pr)
	}
}

// born is a process just made, with the master's ends of what it was given.
type born struct {
	pr      *proc
	channel handoff.Channel // or nil; passes to the Started hook
	notify  notifySource    // or nil
	output  *capture        // or nil
}

// spawn makes one process. The child's ends of everything are closed when it
// returns; the master's ends are in b, or closed after an error.
func (p *Pool) spawn(ctx context.Context, s *slot, t *template, limit time.Duration) (_ *born, err error) {
	select {
	case p.spawnC <- struct{}{}:
		defer func() { <-p.spawnC }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	cfg := &p.fixed
	if limit >= 0 {
		// A helper that hangs in chdir or exec (a dead network file system) is
		// a start that takes too long.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	if ask := cfg.Hooks.BeforeSpawn; ask != nil {
		if err := ask(ctx, s.index, t.generation); err != nil {
			return nil, err
		}
	}
	b := &born{}
	var childEnds []*os.File
	defer func() {
		for _, f := range childEnds {
			f.Close()
		}
		if err != nil {
			b.close()
		}
	}()

	x := expander(s.index, t.generation)
	sp := &spec{
		stdout: os.Stdout, stderr: os.Stderr,
		dir: x.Replace(t.Dir), nofile: t.NoFile, nofileHard: t.hardLimit, credential: t.Credential, helper: cfg.HelperPath,
	}
	var listeners []Inherited
	if cfg.mayBeListenFDs() && cfg.Hooks.Listeners != nil {
		if listeners, err = cfg.Hooks.Listeners(s.index, t.generation); err != nil {
			return nil, err
		}
	}
	for _, l := range listeners {
		sp.inherit = append(sp.inherit, l.File)
		childEnds = append(childEnds, l.File)
	}
	sp.listenPID = len(listeners) > 0
	lent := inodes(listeners)
	channelFD := -1
	if cfg.hasChannel() {
		var child *os.File
		if b.channel, child, err = p.sys.pair(s.index); err != nil {
			return nil, err
		}
		if child != nil { // a fake has none
			childEnds = append(childEnds, child)
			sp.inherit = append(sp.inherit, child)
			channelFD = handoff.FirstInheritedFD + len(listeners)
		}
	}
	var notifyName string
	if cfg.mayBeListenFDs() {
		if b.notify, err = p.sys.listenNotify(); err != nil {
			return nil, err
		}
		if b.notify != nil {
			notifyName = b.notify.name()
		}
	}
	if p.out != nil {
		if b.output, sp.stdout, sp.stderr, err = newCapture(p.out); err != nil {
			return nil, err
		}
		childEnds = append(childEnds, sp.stdout, sp.stderr)
	}
	if c := t.Credential; c != nil {
		givePipe(sp.stdout, c)
		givePipe(sp.stderr, c)
	}
	for _, word := range t.Argv {
		sp.argv = append(sp.argv, x.Replace(word))
	}
	if cfg.Protocol == ProtocolNode {
		sp.argv = nodeArgv(sp.argv, s.index)
	}
	sp.env = workerEnv(cfg, t, s.index, listeners, channelFD, notifyName)

	started := time.Now()
	pr, err := p.sys.launch(ctx, sp)
	if err != nil {
		return nil, err
	}
	b.pr = &proc{s: s, p: pr, tmpl: t, ran: time.Now(), lent: lent, notifyLull: new(lull), reapC: make(chan struct{}), releasedC: make(chan struct{}), w: Worker{
		ID: p.lastID.Add(1), Slot: s.index, Generation: t.generation, PID: pr.pid(), Started: started,
	}}
	return b, nil
}

func (b *born) close() {
	if b.channel != nil {
		b.channel.Close()
	}
	if b.notify != nil {
		b.notify.Close()
	}
	b.output.discard()
}

// launch starts a real process through the exec helper and returns when the command
// itself is running in it, or with what the helper says went wrong.
func (p *Pool) launch(ctx context.Context, sp *spec) (process, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	statusR, statusW, err := os.Pipe()
	if err != nil {
		return nil, &SpawnError{Step: "make status pipe", Err: err}
	}
	defer statusR.Close()
	files := append([]*os.File{null, sp.stdout, sp.stderr}, sp.inherit...)
	files = append(files, statusW)
	attr := &os.ProcAttr{Files: files, Env: sp.env, Sys: &syscall.SysProcAttr{Setpgid: true}}
	argv := helperArgv(sp, len(files)-1)
	child, err := p.strays.spawn(func() (*os.Process, error) {
		return os.StartProcess(sp.helper, argv, attr)
	})
	statusW.Close()
	if err != nil {
		return nil, &SpawnError{Step: "fork", Err: bareError(err)}
	}
	pr := &osProcess{child: child, strays: p.strays}

	stop := context.AfterFunc(ctx, func() { _ = statusR.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	// The helper's end is closed by the exec. One that dies before looks
	// the same, and is then reported as the exit that it is.
	if err := readStatus(statusR); err != nil {
		pr.kill()
		if pr.await(p.lifeCtx) {
			pr.reap()
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = &SpawnError{Step: "exec", Name: fmt.Sprintf("%q", sp.argv[0]), Err: context.Cause(ctx)}
		}
		return nil, err
	}
	return pr, nil
}

// bareError returns the errno of an error of package os, whose text tells of a helper
// that nobody knows.
func bareError(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// osProcess is a child of this process and leads a process group.
type osProcess struct {
	child  *os.Process // a pidfd where there is one
	strays *reaper

	mu     sync.Mutex
	reaped bool // from then on the group's number may be somebody else's
}

func (o *osProcess) pid() int { return o.child.Pid }

func (o *osProcess) signal(sig syscall.Signal) error { return o.child.Signal(sig) }

func (o *osProcess) kill() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.reaped {
		o.killLocked()
	}
}

// killLocked kills group and leader: a leader can have moved to another group.
// That there is nobody left to kill is the only error to be expected.
func (o *osProcess) killLocked() {
	_ = syscall.Kill(-o.child.Pid, syscall.SIGKILL)
	_ = o.child.Kill()
}

func (o *osProcess) await(ctx context.Context) bool {
	if awaitExit(ctx, o.child.Pid) {
		return true
	}
	// It stays in strays: as PID 1 we would be its reaper, but we end.
	_ = o.child.Release()
	return false
}

func (o *osProcess) reap() exitStatus {
	state, err := o.takeStatus()
	// Not under mu: it waits for a fork under way, and the loop may be waiting in kill.
	o.strays.forget(o.child.Pid)
	if err != nil { // somebody else has reaped it: its end is certain, how is not
		return exitStatus{code: -1}
	}
	ws := state.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return exitStatus{code: -1, signal: ws.Signal(), core: ws.CoreDump()}
	}
	return exitStatus{code: ws.ExitStatus()}
}

func (o *osProcess) takeStatus() (*os.ProcessState, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.killLocked()
	o.reaped = true
	return o.child.Wait()
}
