//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"rrd/cmd/internal/control"
	"rrd/dispatcher"
	"rrd/handoff"
	"rrd/metrics"
	"rrd/worker/pool"
)

// The upgrade in place replaces rrd's own program by exec(2) in the same process:
// same pid, same children, same listeners and channels. In this order:
//
//  1. The new program is run as a check: it reads the configuration and a copy of
//     the state, and says yes. A no, a crash or silence ends it there.
//  2. The pool is frozen and the dispatcher parked, their states and what the master
//     knows go into a memory file, and the new program is executed. An error of exec
//     undoes everything.
//  3. The new program makes the rooms from the state. If it cannot, it executes the old
//     one back, from a descriptor that was kept, which does the same and says why.
//
// A crash of the new program later is the death of a master like any other.

const (
	checkStateArg = "__rrd-check-state"
	// envResume tells a new image where the state is: its descriptor, that of the old
	// image, and the pid, as a process that inherits the variable is not meant.
	envResume = "RRD_RESUME"
	// envResumeFailed tells the old image, executed back, why.
	envResumeFailed = "RRD_RESUME_FAILED"

	// freezeLimit bounds how long is waited for what is under way (a spawn, a bind).
	freezeLimit = 5 * time.Second
	// checkLimit bounds the check run.
	checkLimit = 10 * time.Second
)

// upgrades is what became of them.
type upgrades struct {
	wanted *wish // of USR2

	mu     sync.Mutex
	counts metrics.Upgrades
}

// programPath is where this program was started from, for the day it is another.
func programPath() string {
	path, err := exec.LookPath(os.Args[0])
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil {
		path, _ = os.Executable()
	}
	return path
}

// wantUpgrade is USR2.
func (m *master) wantUpgrade() { m.upgrades.wanted.want() }

// upgradeOnSignal upgrades when USR2 comes, until ctx ends. Its caller waits for it.
func (m *master) upgradeOnSignal(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.upgrades.wanted.tokenC:
			m.upgrades.wanted.heed(&m.reloads.running, func() { _ = m.upgradeHeld(ctx, control.Crossing{}) }) // it is logged
		}
	}
}

// upgrade replaces the program. It returns only if that failed; if not, the next image
// answers who has asked for it.
func (m *master) upgrade(ctx context.Context, asked control.Crossing) error {
	if !m.reloads.running.TryLock() {
		return errReloading
	}
	defer m.reloads.running.Unlock()
	return m.upgradeHeld(ctx, asked)
}

func (m *master) upgradeHeld(ctx context.Context, asked control.Crossing) error {
	m.log.Info().Str("event", "upgrade.start").Str("path", m.program).Msg("upgrading in place")
	err := m.tryUpgrade(ctx, asked)
	m.noteUpgrade(err)
	return err
}

// noteUpgrade counts one that has failed, and says why.
func (m *master) noteUpgrade(err error) {
	m.upgrades.mu.Lock()
	m.upgrades.counts.Failed++
	m.upgrades.counts.LastFailure = oneLine(err.Error())
	m.upgrades.mu.Unlock()
	m.log.Error().Str("event", "upgrade.failed").Str("path", m.program).Err(err).Msg("upgrade failed: rrd goes on as it was")
}

func (m *master) upgradeCounts() metrics.Upgrades {
	m.upgrades.mu.Lock()
	defer m.upgrades.mu.Unlock()
	return m.upgrades.counts
}

func (m *master) tryUpgrade(ctx context.Context, asked control.Crossing) error {
	began := time.Now()
	if err := canUpgrade(); err != nil {
		return err
	}
	m.reloads.rolling.Lock() // a worker that is being recycled is waited for
	defer m.reloads.rolling.Unlock()
	if err := m.endsSoon(); err != nil {
		return err
	}
	old, err := openImage()
	if err != nil {
		return fmt.Errorf("keep the old program: %w", err)
	}
	defer old.Close()     //nolint:errcheck // read only
	_ = m.workDir.enter() // both programs read their paths from there; absolute ones do without
	// First with a copy, while everything goes on.
	copied, release, err := m.stand(ctx, old)
	if err != nil {
		return err
	}
	release()
	if err := m.checkRun(ctx, copied); err != nil {
		return fmt.Errorf("check run of %s: %w", m.program, err)
	}
	m.sink.flush()
	state, release, err := m.stand(ctx, old)
	if err != nil {
		return err
	}
	defer release()
	state.TookSeconds = time.Since(began).Seconds()
	state.Asked, state.Asker = asked, askerOf(asked)
	defer state.Asker.Close() //nolint:errcheck // a duplicate
	file, err := stateFile(state)
	if err != nil {
		return err
	}
	defer file.Close()
	m.sink.flushBriefly()
	if err := m.endsSoon(); err != nil { // meanwhile; the next image would not know
		return err
	}
	if (m.duck.age() > 0) != (state.LameDuck > 0) {
		return errors.New("rrd left or entered rotation during the upgrade: try again")
	}
	return execImage(m.program, m.args0(), m.environ, file, state, "")
}

// endsSoon says why there is no use in another program.
func (m *master) endsSoon() error {
	switch {
	case m.stopping.Load():
		return errors.New("rrd is being stopped")
	case m.duck.now() >= closingSoon:
		return errors.New("rrd closes its listeners: it needs a restart")
	}
	return nil
}

// args0 are the words of the command line, the program's name first.
func (m *master) args0() []string { return append([]string{os.Args[0]}, m.args...) }

// stand brings everything to a stop and writes down what it was. release lets it go
// on as if nothing had happened.
func (m *master) stand(ctx context.Context, old handoff.FD) (s *savedMaster, release func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, freezeLimit)
	defer cancel()
	hooks, err := m.hooks.hold(ctx)
	if err != nil {
		return nil, nil, err
	}
	hooks() // for what the pool has to end before it stands still they are needed
	if err := m.pool.Freeze(ctx); err != nil {
		return nil, nil, err
	}
	if hooks, err = m.hooks.hold(ctx); err != nil {
		m.pool.Thaw()
		return nil, nil, err
	}
	m.helpers.mu.Lock() // none is started; those that there are end with the exec
	parked, err := m.park(ctx)
	if err != nil {
		m.helpers.mu.Unlock()
		m.pool.Thaw()
		hooks()
		return nil, nil, err
	}
	release = func() { parked.Resume(); m.helpers.mu.Unlock(); m.pool.Thaw(); hooks() }
	s, err = m.save(parked, old)
	if err != nil {
		release()
		return nil, nil, err
	}
	return s, release, nil
}

// park tries again while a listener is being bound or closed, which takes a moment.
func (m *master) park(ctx context.Context) (*dispatcher.Parked, error) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		parked, err := m.dispatcher.Park(ctx, m.codec())
		if !errors.Is(err, dispatcher.ErrBusy) || m.duck.drains() {
			return parked, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}

func (m *master) save(parked *dispatcher.Parked, old handoff.FD) (*savedMaster, error) {
	p, err := m.pool.State()
	if err != nil {
		return nil, err
	}
	c := m.current()
	s := &savedMaster{
		Program: programVersion(), Path: m.program, WorkDir: m.workDir.path, Args: m.args, Settings: c.written(), Command: c.Command,
		QueueLimit: c.QueueLimit, RescueLimit: c.RescueLimit,
		Policy: c.Policy, PolicyReason: c.PolicyReason, Protocol: c.WorkerProtocol, ProtocolReason: c.ProtocolReason, Workers: c.Workers,
		Hangup:      m.hangup,
		RollAsked:   m.rerolls.due(),
		ReloadAsked: m.reloads.wanted.pending(), UpgradeAsked: m.upgrades.wanted.pending(),
		Age: time.Since(m.started), LameDuck: m.duck.age(), Listeners: m.listeners, Dispatcher: parked.State, Pool: p,
		Helpers: m.helpers.pids(), MetricsAt: m.metricsAt, OldImage: old, Events: m.Events().saved(),
		LogLevel: m.ctl.gate.get().String(), LogCounts: make(map[string]uint64),
		Requests: m.ctl.requests(), Reloads: m.reloadCounts(), Upgrades: m.upgradeCounts(), SaidSilent: m.saidSilent.Load(),
	}
	if parked.State.OffersTickets() {
		s.Needs = append(s.Needs, needTickets)
	}
	for _, level := range metrics.LogLevels {
		s.LogCounts[level] = m.logs.Count(level)
	}
	m.mu.Lock()
	s.Announced, s.WasReady = m.announced, make(map[int]bool, len(m.wasReady))
	for slot, ready := range m.wasReady {
		s.WasReady[slot] = ready
	}
	m.mu.Unlock()
	if m.metricsLn != nil {
		if s.Metrics, err = descriptorOf(m.metricsLn); err != nil {
			return nil, err
		}
	}
	if m.ctl.ln != nil {
		s.ControlAt, s.ControlFile, s.ControlMade = m.ctl.ln.Path(), m.ctl.ln.File(), m.ctl.ln.Made()
		if s.Control, err = descriptorOf(m.ctl.ln); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// askerOf duplicates the connection of who has asked. None: it was a signal, or the
// client has left.
func askerOf(asked control.Crossing) (dup handoff.FD) {
	if rc, err := asked.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { dup, _ = handoff.Own(int(fd)).Dup() })
	}
	return dup
}

// descriptorOf lends the descriptor of a listener, which its owner keeps.
func descriptorOf(ln any) (handoff.FD, error) {
	sc, ok := ln.(syscall.Conn)
	if !ok {
		return handoff.FD{}, fmt.Errorf("a %T has no descriptor", ln)
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return handoff.FD{}, err
	}
	var d handoff.FD
	err = rc.Control(func(fd uintptr) { d = handoff.Own(int(fd)) })
	return d, err
}

// checkRun has the new program read configuration and state.
func (m *master) checkRun(ctx context.Context, s *savedMaster) error {
	file, err := stateFile(s)
	if err != nil {
		return err
	}
	defer file.Close()
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, m.program, append([]string{checkStateArg}, m.args...)...)
	cmd.Env = m.environ
	cmd.ExtraFiles = []*os.File{file}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	var out tail
	cmd.Stdout, cmd.Stderr = &out, &out
	_, forget, err := m.hooks.start(func() (*os.Process, error) {
		err := cmd.Start()
		return cmd.Process, err
	})
	if err != nil {
		return err
	}
	err = cmd.Wait()
	forget()
	said := lastLine(out)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("no answer within %v", checkLimit)
	case err != nil && said != "":
		return fmt.Errorf("%s (%w)", strings.TrimPrefix(said, "rrd: "), err)
	case err != nil:
		return err
	case !strings.HasPrefix(said, checkYes):
		return fmt.Errorf("it said %q, as no rrd does", said)
	}
	return nil
}

// tail keeps the end of what is written to it: a program that is no rrd may say anything.
type tail []byte

const maxTail = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	b := append(*t, p...)
	*t = append(b[:0], b[max(0, len(b)-maxTail):]...)
	return len(p), nil
}

// checkYes begins the last line of a check run that says yes.
const checkYes = "rrd: state can be read by "

// lastLine is the end of an output, of a bearable length.
func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	last := plain(strings.TrimSpace(lines[len(lines)-1]))
	if len(last) > 500 {
		last = last[:500]
	}
	return last
}

// checkState is the check run: descriptor 3 is the state.
func checkState(args, environ []string, stdout, stderr *os.File) int {
	s, err := readState(3)
	if err == nil {
		var c *config
		if c, _, err = parseConfig(args, environ); err == nil {
			err = s.agrees(c)
		}
		if err == nil {
			err = s.fits()
		}
	}
	if err != nil {
		return fail(stderr, exitUsage, err)
	}
	fmt.Fprintf(stdout, "%s%s\n", checkYes, programVersion())
	return exitOK
}

// fits tries everything of a restoring that touches no descriptor.
func (s *savedMaster) fits() error {
	if _, err := pool.Restore(pool.Config{Size: 1, Argv: []string{"check"}}, s.Pool); err != nil {
		return err
	}
	return s.Dispatcher.Check()
}

// resumed is a new image that has read the state.
type resumed struct {
	*savedMaster
	file   *os.File // the state itself, to hand it back
	failed string   // why this is the old image again; empty: it is the new one
}

// resume makes a master of the state. It returns only an exit code, and only if
// neither this nor the old image can go on.
func resume(args, environ []string, stdout, stderr *os.File) int {
	signals := catchSignals()
	value, _ := lookupVariable(environ, envResume)
	failed, again := lookupVariable(environ, envResumeFailed)
	environ = withoutVariables(environ, envResume, envResumeFailed)
	os.Unsetenv(envResume)
	os.Unsetenv(envResumeFailed)
	var stateFD, oldFD, pid int
	if _, err := fmt.Sscanf(value, "%d:%d:%d", &stateFD, &oldFD, &pid); err != nil || pid != os.Getpid() {
		return fail(stderr, exitUsage, fmt.Errorf("%s is for rrd's own use and means nothing here: unset it", envResume))
	}
	var m *master
	s, err := readState(stateFD)
	if err == nil {
		args = s.Args
		r := &resumed{savedMaster: s, file: os.NewFile(uintptr(stateFD), "state")}
		if again {
			r.failed = failed
		}
		m, err = guardedRestore(r, args, environ, stdout, stderr)
	}
	if err == nil {
		return m.runResumed(signals, stderr)
	}
	if again {
		return fail(stderr, exitFailure, fmt.Errorf("go back to the old program: %w", err))
	}
	writeInTime(stderr, fmt.Sprintf("rrd: upgrade failed, going back: %s\n", oneLine(err.Error())))
	err = execBack(stateFD, oldFD, append([]string{os.Args[0]}, args...), environ, s, err)
	return fail(stderr, exitFailure, fmt.Errorf("go back to the old program: %w", err))
}

// guardedRestore is restoreMaster that panics for nobody.
func guardedRestore(r *resumed, args, environ []string, stdout, stderr *os.File) (m *master, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v at %s", p, panicPlace(debug.Stack()))
		}
	}()
	return restoreMaster(r, args, environ, stdout, stderr)
}

// panicPlace is the line of a stack that names where it panicked.
func panicPlace(stack []byte) string {
	lines := strings.Split(string(stack), "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "panic(") && i+3 < len(lines) {
			return strings.TrimSpace(lines[i+3])
		}
	}
	return "?"
}

func withoutVariables(environ []string, names ...string) (out []string) {
next:
	for _, kv := range environ {
		for _, name := range names {
			if strings.HasPrefix(kv, name+"=") {
				continue next
			}
		}
		out = append(out, kv)
	}
	return out
}
