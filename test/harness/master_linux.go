package harness

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"rrd/handoff"
)

// AnyExit is for tests that judge the exit code themselves.
const AnyExit = -2

// Options says how to start a master.
type Options struct {
	// Args are its flags; those that the harness needs come before them:
	// --metrics, --control off, --log-format json, and --listen as below.
	Args []string
	// Command is its command; none: the built-in worker.
	Command []string
	// Listen are the values of --listen. nil: one of this master's own address
	// and a free port. An empty slice: none, the worker asks.
	Listen []string
	// Env is added to this process's environment less the RRD_ variables.
	Env []string
	// Program is the rrd to start; empty: the built one.
	Program string
	// Files are inherited from descriptor 3 on. They stay the caller's.
	Files []*os.File
	// Terminal becomes its controlling terminal. It stays the caller's.
	Terminal *os.File
	// Wrap comes before the program on the command line.
	Wrap []string

	// ExitCode is the expected one, -1 after a signal, or AnyExit.
	ExitCode int
	// Unready: do not wait for the event ready, and take no measure of the idle
	// master by which to judge it at the end.
	Unready bool
	// Metrics is the address of its HTTP server; empty: one that the log tells.
	Metrics string
	// NoMetrics starts it without its HTTP address; nothing is judged that only
	// this can tell.
	NoMetrics bool
	// Control starts it with a control socket, for Ctl.
	Control bool
	// LeavesFiles are names that may be left in its directory or TMPDIR.
	LeavesFiles []string
}

// Master is a running rrd. Its methods fail the test that has started it.
type Master struct {
	t    testing.TB
	o    Options
	cmd  *exec.Cmd
	mark string
	dir  string
	tmp  string

	log, out *stream
	exited   chan struct{} // closed when it was waited for
	caughtUp sync.Once
	state    *os.ProcessState

	client    *http.Client // of /metrics and its like
	metrics   string
	listeners map[string]Event
	base      *measure
}

// hosts counts the addresses that were given out.
var hosts atomic.Uint32

// Host returns an address of 127/8 that no other test of this process uses.
func Host() string {
	n := hosts.Add(1)
	return fmt.Sprintf("127.%d.%d.%d", 64+os.Getpid()%32, n>>7&0xff, 1+n&0x7f)
}

// Start starts a master and waits until it is ready. The test's cleanup stops it
// and checks what the package comment says.
func Start(t testing.TB, o Options) *Master {
	t.Helper()
	m := launch(t, o)
	t.Cleanup(m.end)
	if o.Unready {
		return m
	}
	m.WaitReady()
	if !o.NoMetrics {
		m.AllReady()
		m.Rebase()
	}
	return m
}

// WaitReady waits for the event ready, and learns the addresses.
func (m *Master) WaitReady() {
	m.t.Helper()
	m.Wait(Named("ready"))
	m.learn()
}

// Run runs rrd until it ends by itself, and returns it. The exit code, the
// processes and files that are left are checked as with Start.
func Run(t testing.TB, o Options) *Master {
	t.Helper()
	o.Unready = true
	m := launch(t, o)
	t.Cleanup(m.end)
	m.WaitExit()
	m.drained()
	return m
}

// drained waits until all that was written to the outputs has been read.
func (m *Master) drained() {
	m.t.Helper()
	for _, s := range []*stream{m.log, m.out} {
		select {
		case <-s.ended:
		case <-time.After(Patience):
			m.t.Errorf("somebody still holds the master's output")
		}
	}
}

func launch(t testing.TB, o Options) *Master {
	t.Helper()
	program := o.Program
	if program == "" {
		program = RRD(t)
	}
	m := &Master{
		t: t, o: o, mark: "E2E_MARK=" + mark(), dir: t.TempDir(), tmp: t.TempDir(),
		client: newClient(), log: newStream(), out: newStream(), exited: make(chan struct{}), listeners: make(map[string]Event),
	}
	var args []string
	switch {
	case o.NoMetrics:
	case o.Metrics != "":
		args = append(args, "--metrics", o.Metrics)
		m.metrics = o.Metrics
	default:
		args = append(args, "--metrics", "127.0.0.1:0")
	}
	control := "off"
	if o.Control {
		control = m.Control()
	}
	args = append(args, "--control", control, "--log-format", "json")
	if o.Listen == nil {
		o.Listen = []string{Host() + ":0"}
	}
	for _, l := range o.Listen {
		args = append(args, "--listen", l)
	}
	args = append(args, o.Args...)
	if len(o.Command) > 0 {
		args = append(append(args, "--"), o.Command...)
	}
	argv := append(append(append([]string{}, o.Wrap...), program), args...)
	m.cmd = exec.Command(argv[0], argv[1:]...)
	m.cmd.Dir = m.dir
	m.cmd.Env = append(append(cleanEnviron(), m.mark, "TMPDIR="+m.tmp), o.Env...)
	m.cmd.ExtraFiles = o.Files
	// A session of its own: no controlling terminal but the test's, which would send signals.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if o.Terminal != nil {
		m.cmd.SysProcAttr.Setctty = true
		m.cmd.SysProcAttr.Ctty = handoff.FirstInheritedFD + len(o.Files)
		m.cmd.ExtraFiles = append(slices.Clone(o.Files), o.Terminal)
	}
	r, w, err := pipes()
	if err != nil {
		t.Fatal(err)
	}
	m.cmd.Stdout, m.cmd.Stderr = w[0], w[1]
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range w {
		_ = f.Close()
	}
	go m.out.read(r[0]) // both end with the last process that holds the pipe; end waits
	go m.log.read(r[1])
	go m.reap() // ends with the process; end waits
	return m
}

func mark() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // documented never to fail
	return hex.EncodeToString(b[:])
}

func cleanEnviron() (env []string) {
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		switch {
		case strings.HasPrefix(name, "RRD_"), strings.HasPrefix(name, "LISTEN_"), name == "TMPDIR", name == "NOTIFY_SOCKET", name == "SOAK":
		default:
			env = append(env, kv)
		}
	}
	return env
}

// pipes makes two of them and returns both ends of each.
func pipes() (r, w [2]*os.File, err error) {
	for i := range r {
		if r[i], w[i], err = os.Pipe(); err != nil {
			return r, w, err
		}
	}
	return r, w, nil
}

// reap waits for the process.
func (m *Master) reap() {
	_ = m.cmd.Wait() // the state says it
	m.state = m.cmd.ProcessState
	close(m.exited)
}

func (m *Master) gone() bool {
	select {
	case <-m.exited:
		return true
	default:
		return false
	}
}

// learn takes the addresses from the log.
func (m *Master) learn() {
	m.t.Helper()
	for _, e := range m.Events(Named("listener.open")) {
		m.listeners[e.Str("listener")] = e
	}
	if !m.o.NoMetrics && m.metrics == "" {
		m.metrics = m.Wait(Named("metrics.open")).Str("address")
	}
}

// MasterPID returns the master's process.
func (m *Master) MasterPID() int { return m.cmd.Process.Pid }

// Environ returns the environment that the master was started with.
func (m *Master) Environ() []string { return m.cmd.Env }

// Dir returns the directory that the master runs in; files in it must be gone at
// the end.
func (m *Master) Dir() string { return m.dir }

// Addr returns the address of the only listener, or of the first one.
func (m *Master) Addr() string {
	m.t.Helper()
	m.learn()
	return m.Wait(Named("listener.open")).Str("address")
}

// AddrOf returns the address of a listener by its label.
func (m *Master) AddrOf(name string) string {
	m.t.Helper()
	m.learn()
	e, ok := m.listeners[name]
	if !ok {
		m.t.Fatalf("no listener %q in the log", name)
	}
	return e.Str("address")
}

// MetricsAddr returns the address of /metrics.
func (m *Master) MetricsAddr() string {
	m.t.Helper()
	m.learn()
	return m.metrics
}

// Signal sends a signal to the master.
func (m *Master) Signal(sig syscall.Signal) {
	m.t.Helper()
	if err := m.cmd.Process.Signal(sig); err != nil {
		m.t.Fatalf("signal %v: %v", sig, err)
	}
}

// Kill sends a signal to a process that descends from this master. After SIGSTOP
// it waits until every thread of the process stands still. A process that is gone
// needs none.
func (m *Master) Kill(pid int, sig syscall.Signal) {
	m.t.Helper()
	if env, err := Environ(pid); !Alive(pid) {
		return
	} else if err != nil || "E2E_MARK="+env["E2E_MARK"] != m.mark {
		m.t.Fatalf("process %d is not of this master: %v", pid, err)
	}
	if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		m.t.Fatalf("signal %v to %d: %v", sig, pid, err)
	}
	if sig == syscall.SIGSTOP {
		Poll(m.t, "the process to stand still", func() error { return stopped(pid) })
	}
}

// Stop asks it to end and waits for it; it returns how long that took.
func (m *Master) Stop() time.Duration {
	m.t.Helper()
	start := time.Now()
	m.Signal(syscall.SIGTERM)
	m.WaitExit()
	return time.Since(start)
}

// TermUntilExit repeats TERM until the master has ended: at first the repeats count as the
// same request. It returns the exit code.
func (m *Master) TermUntilExit() int {
	m.t.Helper()
	Poll(m.t, "the master to stop at once", func() error {
		if m.gone() {
			return nil
		}
		_ = m.cmd.Process.Signal(syscall.SIGTERM) // it may have ended just now
		return errors.New("still there")
	})
	return m.WaitExit()
}

// WaitExit waits until the master has ended, and returns its exit code.
func (m *Master) WaitExit() int {
	m.t.Helper()
	select {
	case <-m.exited:
	case <-time.After(Patience):
		m.t.Fatalf("the master has not ended in %v", Patience)
	}
	<-m.exited
	return m.state.ExitCode()
}

// Exited is closed when the master has ended.
func (m *Master) Exited() <-chan struct{} { return m.exited }

// files lists what is in the master's directories.
func (m *Master) files() (names []string) {
	for _, dir := range []string{m.dir, m.tmp} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			names = append(names, err.Error())
		}
		for _, e := range entries {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	return names
}
