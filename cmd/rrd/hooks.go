//go:build unix

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"rrd/worker/pool"
)

// Hooks are commands of the user's that are run when something happens, with the facts
// in their environment. Two of them are waited for and may say no; two only hear of
// it.

// hookCommands are command lines for /bin/sh -c; an empty one is none.
type hookCommands struct {
	BeforeStart, BeforeSpawn, WorkerReady, WorkerExit string
	Timeout                                           time.Duration // or off
}

const (
	hookBeforeStart = "before-start"
	hookBeforeSpawn = "before-spawn"
	hookWorkerReady = "worker-ready"
	hookWorkerExit  = "worker-exit"
)

const (
	// maxHookLine and maxHookLines bound what one run of a hook may write to the log.
	maxHookLine  = 4 << 10
	maxHookLines = 200
	// maxHooksWaiting bounds the hooks that nobody waits for: they run one after the
	// other, and if they are slower than what they hear of, news is lost.
	maxHooksWaiting = 256
	// hookPipes is how long the output is read on after the end of a hook, if
	// somebody it has started holds the pipe.
	hookPipes = time.Second
)

// command is a setting whose value is a command line.
func command(field func(*config) *string) func(*host, *config, []string) error {
	return single(func(_ *host, c *config, v string) error {
		switch {
		case strings.TrimSpace(v) == "":
			return badValue(v, "is no command: write one for /bin/sh, or leave the option out")
		case strings.ContainsRune(v, 0):
			return badValue(v, "contains a NUL byte")
		}
		*field(c) = v
		return nil
	})
}

// hookRun is one run.
type hookRun struct {
	hook, command string
	timeout       time.Duration // or off
	facts         []string      // NAME=VALUE
	worker        int           // slot, -1 for none
}

// hookRunner runs them.
type hookRunner struct {
	log     zerolog.Logger
	environ []string
	// start forks: as PID 1 the pool must know of each child.
	start func(fork func() (*os.Process, error)) (*os.Process, func(), error)
	// cut ends serve, and what it runs; nil before startHooks.
	cut context.CancelFunc

	// busy is held for reading by who runs a hook, and by an upgrade, which would
	// leave it without a parent that knows it.
	busy sync.RWMutex

	mu      sync.Mutex
	waiting []hookRun
	closed  bool
	wakeC   chan struct{} // a token
}

func newHookRunner(log zerolog.Logger, environ []string) *hookRunner {
	r := &hookRunner{log: log, wakeC: make(chan struct{}, 1)}
	for _, kv := range environ {
		if name, _, _ := strings.Cut(kv, "="); !ownVariable(name) {
			r.environ = append(r.environ, kv)
		}
	}
	r.start = func(fork func() (*os.Process, error)) (*os.Process, func(), error) {
		p, err := fork()
		return p, func() {}, err
	}
	return r
}

// ownVariable says whether a variable speaks to rrd only.
func ownVariable(name string) bool {
	for _, prefix := range []string{"RRD_", "LISTEN_", "WATCHDOG_"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return name == "NOTIFY_SOCKET"
}

// run runs a hook to its end, or ctx's, and logs its output and its failure. At the
// timeout its process group is killed.
func (r *hookRunner) run(ctx context.Context, h hookRun) error {
	err := r.runQuietly(ctx, h)
	if err != nil {
		r.logged(r.log.Error(), h).Str("event", "hook.failed").Err(err).Msg("hook failed")
	}
	return err
}

func (r *hookRunner) runQuietly(ctx context.Context, h hookRun) error {
	r.busy.RLock()
	defer r.busy.RUnlock()
	if h.timeout != off {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, h.timeout, fmt.Errorf("it was killed after --hook-timeout %v", h.timeout))
		defer cancel()
	}
	out := &hookOutput{log: func(line []byte) {
		r.logged(r.log.Info(), h).Str("event", "hook.output").Bytes("line", line).Msg("output")
	}}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", h.command)
	cmd.Env = append(append([]string{}, r.environ...), "RRD_HOOK="+h.hook, "RRD_PID="+strconv.Itoa(os.Getpid()))
	cmd.Env = append(cmd.Env, h.facts...)
	cmd.Stdout, cmd.Stderr = out, out // the same, so that both come in order
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = hookPipes
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	_, forget, err := r.start(func() (*os.Process, error) {
		err := cmd.Start()
		return cmd.Process, err
	})
	if err != nil {
		return fmt.Errorf("hook %s: %w", h.hook, err)
	}
	err = cmd.Wait()
	forget()
	out.flush()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.Is(err, exec.ErrWaitDelay):
		err = nil // it has ended well; what it has left behind holds the pipe
	case errors.As(err, &exit) && out.last != "":
		err = fmt.Errorf("%w: %s", err, out.last)
	}
	if err != nil {
		return fmt.Errorf("hook %s: %w", h.hook, err)
	}
	return nil
}

func (r *hookRunner) logged(e *zerolog.Event, h hookRun) *zerolog.Event {
	e = e.Str("hook", h.hook)
	if h.worker >= 0 {
		e = e.Int("worker", h.worker)
	}
	return e
}

// hookOutput makes lines of what a hook writes, and bounds them.
type hookOutput struct {
	log   func(line []byte)
	buf   []byte
	lines int
	last  string // line, as far as an error has use for it
}

func (o *hookOutput) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		line, rest, whole := bytes.Cut(p, []byte("\n"))
		o.buf = append(o.buf, line[:min(len(line), maxHookLine-len(o.buf))]...)
		if whole {
			o.flush()
		}
		p = rest
	}
	return n, nil
}

func (o *hookOutput) flush() {
	if len(o.buf) == 0 {
		return
	}
	if o.lines++; o.lines <= maxHookLines {
		o.log(o.buf)
	}
	o.last = shortened(oneLine(string(o.buf)), 200)
	o.buf = o.buf[:0]
}

var _ io.Writer = (*hookOutput)(nil)

// tell queues a hook that nobody waits for.
func (r *hookRunner) tell(h hookRun) {
	r.mu.Lock()
	full := len(r.waiting) >= maxHooksWaiting || r.closed
	if !full {
		r.waiting = append(r.waiting, h)
	}
	r.mu.Unlock()
	if full {
		r.logged(r.log.Error(), h).Str("event", "hook.failed").Str("error", "too many hooks wait for their turn: it was left out").Msg("hook failed")
		return
	}
	r.wake()
}

func (r *hookRunner) wake() {
	select {
	case r.wakeC <- struct{}{}:
	default:
	}
}

// serve runs what tell queues, in order, until close was called and nothing is left, or
// ctx ends. Its caller waits for it.
func (r *hookRunner) serve(ctx context.Context) {
	for {
		r.mu.Lock()
		var h hookRun
		some, closed := len(r.waiting) > 0, r.closed
		if some {
			h = r.waiting[0]
		}
		r.mu.Unlock()
		switch {
		case ctx.Err() != nil:
			return
		case some:
			_ = r.run(ctx, h) // it is logged
			r.mu.Lock()
			r.waiting = r.waiting[1:] // now, so that hold cannot miss it
			r.mu.Unlock()
		case closed:
			return
		default:
			select {
			case <-r.wakeC:
			case <-ctx.Done():
			}
		}
	}
}

// holdPoll is how often hold looks again.
const holdPoll = 10 * time.Millisecond

// hold waits until no hook runs or waits, and keeps it so until release is called.
func (r *hookRunner) hold(ctx context.Context) (release func(), err error) {
	tick := time.NewTicker(holdPoll)
	defer tick.Stop()
	for {
		if r.busy.TryLock() {
			r.mu.Lock()
			none := len(r.waiting) == 0
			r.mu.Unlock()
			if none {
				return r.busy.Unlock, nil
			}
			r.busy.Unlock()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("a hook is running: %w", ctx.Err())
		}
	}
}

// close has serve end with what it has.
func (r *hookRunner) close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.wake()
}

// lastHooks is how long the end of rrd waits for its hooks where --hook-timeout is off.
const lastHooks = 30 * time.Second

// startHooks serves the hooks that nobody waits for. At the end finish gives those that
// are left as long as one may take; a signal that stops cuts that short.
func (m *master) startHooks(services *sync.WaitGroup) (finish func(signals <-chan os.Signal)) {
	ctx, cancel := context.WithCancel(context.Background())
	m.hooks.cut = cancel
	done := make(chan struct{})
	services.Go(func() { m.hooks.serve(ctx); close(done) })
	return func(signals <-chan os.Signal) {
		defer cancel()
		m.hooks.close()
		patience := m.current().Hooks.Timeout
		if patience == off {
			patience = lastHooks
		}
		timer := time.NewTimer(patience)
		defer timer.Stop()
		for {
			select {
			case <-done:
				return
			case <-timer.C:
				return
			case sig := <-signals:
				if !m.hangup.stops(sig) {
					break
				}
				if v := m.judgeStop(sig); v == stopFirst || v == stopAtOnce {
					return
				}
			case now := <-m.ctl.stopC:
				if now {
					return
				}
			}
		}
	}
}

// beforeStart runs --hook-before-start, which may refuse. A signal that stops ends it:
// then stopped is true, and there is nothing to do any more.
func (m *master) beforeStart(signals <-chan os.Signal) (stopped bool, err error) {
	hooks := m.cfg.Hooks
	if hooks.BeforeStart == "" {
		return false, nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go m.runBeforeStart(ctx, done) // waited for through done
	for {
		select {
		case err := <-done:
			if stopped {
				return true, nil
			}
			return false, err
		case sig := <-signals:
			if m.hangup.stops(sig) {
				m.log.Info().Str("event", "stop.now").Stringer("signal", sig).Msg("stopping before the start")
				stopped = true
				cancel()
			}
		}
	}
}

func (m *master) runBeforeStart(ctx context.Context, done chan<- error) {
	c := m.cfg
	done <- m.hooks.run(ctx, hookRun{hook: hookBeforeStart, command: c.Hooks.BeforeStart, timeout: c.Hooks.Timeout, worker: -1,
		facts: []string{"RRD_WORKERS=" + strconv.Itoa(c.Workers), "RRD_POLICY=" + string(c.Policy)}})
}

// beforeSpawn enters the working directory and runs --hook-before-spawn. A failure is one of
// the spawn.
func (m *master) beforeSpawn(ctx context.Context, slot, generation int) error {
	c := m.current()
	if err := m.workDir.enterToSpawn(c); err != nil {
		return err
	}
	hooks := c.Hooks
	if hooks.BeforeSpawn == "" {
		return nil
	}
	return m.hooks.runQuietly(ctx, hookRun{hook: hookBeforeSpawn, command: hooks.BeforeSpawn, timeout: hooks.Timeout, worker: slot,
		facts: []string{"RRD_SLOT=" + strconv.Itoa(slot), "RRD_GENERATION=" + strconv.Itoa(generation)}})
}

func workerFacts(w pool.Worker) []string {
	return []string{
		"RRD_SLOT=" + strconv.Itoa(w.Slot), "RRD_GENERATION=" + strconv.Itoa(w.Generation),
		"RRD_WORKER_PID=" + strconv.Itoa(w.PID),
	}
}

func (m *master) hookReady(w pool.Worker) {
	if hooks := m.current().Hooks; hooks.WorkerReady != "" {
		m.hooks.tell(hookRun{hook: hookWorkerReady, command: hooks.WorkerReady, timeout: hooks.Timeout, worker: w.Slot, facts: workerFacts(w)})
	}
}

func (m *master) hookExit(w pool.Worker, x pool.Exit) {
	hooks := m.current().Hooks
	if hooks.WorkerExit == "" {
		return
	}
	facts := append(workerFacts(w), "RRD_EXIT_CAUSE="+x.Cause.String(), "RRD_EXIT_REASON="+plain(x.Reason),
		"RRD_EXIT_REQUESTED="+strconv.FormatBool(x.Requested), "RRD_UPTIME="+strconv.FormatFloat(x.Uptime.Seconds(), 'f', 3, 64))
	if x.Signal != 0 {
		facts = append(facts, "RRD_EXIT_SIGNAL="+strconv.Itoa(int(x.Signal)))
	} else {
		facts = append(facts, "RRD_EXIT_CODE="+strconv.Itoa(x.Code))
	}
	m.hooks.tell(hookRun{hook: hookWorkerExit, command: hooks.WorkerExit, timeout: hooks.Timeout, worker: w.Slot, facts: facts})
}
