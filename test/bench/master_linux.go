package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kind is one master in one configuration.
type kind struct {
	name    string
	command func(dir string, s setting) []string
	// ready looks at a line that the master prints: the address that it serves,
	// or the pid of a worker, or that all are ready.
	ready func(line string, m *master)
}

var masters = []kind{
	{"reference", refCommand, refReady},
	{"rrd", rrdCommand("", "--rescue-limit=0"), rrdReady},
	{"rrd, rescue", rrdCommand(""), rrdReady},
}

func refCommand(dir string, s setting) []string {
	return []string{filepath.Join(dir, "refmaster"), strconv.Itoa(s.workers), strconv.Itoa(s.window), filepath.Join(dir, "minworker")}
}

func refReady(line string, m *master) {
	if address, ok := strings.CutPrefix(line, "ready "); ok {
		m.address, m.all = address, true
	}
}

// another is another build of rrd in the same configurations.
func another(path string) []kind {
	return []kind{
		{path, rrdCommand(path, "--rescue-limit=0"), rrdReady},
		{path + ", rescue", rrdCommand(path), rrdReady},
	}
}

// nodeMasters run the same Node program: Node's own primary, and rrd.
func nodeMasters(testdata, rrd string) []kind {
	program := filepath.Join(testdata, "server.js")
	primary := func(_ string, s setting) []string {
		return []string{"node", filepath.Join(testdata, "primary.js"), strconv.Itoa(s.workers), program}
	}
	under := func(dir string, s setting) []string {
		return []string{cmp.Or(rrd, filepath.Join(dir, "rrd")), "--policy=rr", "--metrics=off", "--control=off",
			"--log-format=json", "--log-level=info", "--worker-output=raw",
			"--workers=" + strconv.Itoa(s.workers), "--handoff-window=" + strconv.Itoa(s.window), "--", "node", program}
	}
	return []kind{{"Node", primary, refReady}, {cmp.Or(rrd, "rrd"), under, rrdReady}}
}

// rrdCommand is for the rrd that was built, or for the one that is named.
func rrdCommand(rrd string, more ...string) func(string, setting) []string {
	return func(dir string, s setting) []string {
		c := []string{cmp.Or(rrd, filepath.Join(dir, "rrd")), "--policy=rr", "--listen=127.0.0.1:0", "--metrics=off", "--control=off",
			"--log-format=json", "--log-level=info", "--worker-output=raw",
			"--workers=" + strconv.Itoa(s.workers), "--handoff-window=" + strconv.Itoa(s.window)}
		return append(append(c, more...), "--", filepath.Join(dir, "minworker"), "127.0.0.1:0")
	}
}

func rrdReady(line string, m *master) {
	var e struct {
		Event, Address string
		PID            int `json:"worker_pid"`
	}
	if json.Unmarshal([]byte(line), &e) != nil {
		return
	}
	switch e.Event {
	case "listener.open":
		m.address = e.Address
	case "metrics.open":
		m.metrics = e.Address
	case "worker.ready":
		m.workers = append(m.workers, e.PID)
	case "ready":
		m.all = true
	}
}

// master is a running one, in a process group of its own.
type master struct {
	cmd    *exec.Cmd
	reader sync.WaitGroup

	address, metrics string
	workers          []int // pids, of rrd only
	all              bool  // they are all ready

	last lastLines
}

const (
	startLimit = 60 * time.Second // 256 processes on a busy machine
	stopLimit  = 20 * time.Second
)

// start runs a master until it is ready. Who gets it calls stop.
func start(ctx context.Context, k kind, command []string) (*master, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	m := &master{cmd: exec.Command(command[0], command[1:]...)}
	m.cmd.Stdout, m.cmd.Stderr = w, w
	m.cmd.Env = cleanEnv()
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = m.cmd.Start()
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return nil, err
	}
	ready := make(chan struct{})
	m.reader.Add(1)
	go m.read(r, k, ready) // stop waits for it
	select {
	case <-ready:
		if m.all {
			return m, nil
		}
		err = errors.New("it ended before it was ready")
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(startLimit):
		err = fmt.Errorf("not ready after %v", startLimit)
	}
	return nil, errors.Join(err, m.stop())
}

// read takes in what the master and its workers print, until nobody is left to
// print. What it notes in m is for others to read once ready is closed.
func (m *master) read(r *os.File, k kind, ready chan struct{}) {
	defer m.reader.Done()
	defer r.Close() //nolint:errcheck // read to the end
	waiting := true
	for in := bufio.NewReader(r); ; {
		line, err := in.ReadString('\n')
		m.last.add(line)
		if waiting {
			k.ready(strings.TrimSpace(line), m)
			if m.all || err != nil {
				close(ready)
				waiting = false
			}
		}
		if err != nil {
			return
		}
	}
}

// stop ends a master as its user would, and waits until all its processes have.
func (m *master) stop() error {
	_ = m.cmd.Process.Signal(syscall.SIGTERM)
	hard := time.AfterFunc(stopLimit, func() { _ = m.cmd.Process.Kill() })
	err := m.cmd.Wait()
	if !hard.Stop() {
		err = fmt.Errorf("killed: it was there %v after TERM", stopLimit)
	}
	m.reader.Wait() // the workers hold the pipe, and end with the master
	if err != nil {
		return fmt.Errorf("%w; its last words:\n%s", err, m.last.text())
	}
	return nil
}

// cpu is the time that all threads of the master have had, in nanoseconds. The
// clock of a process has that exactly, /proc/PID/stat in hundredths of a second
// (clock_getcpuclockid(3); the number is made as in include/linux/posix-timers.h).
func (m *master) cpu() (time.Duration, error) {
	const schedClock = 2
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^m.cmd.Process.Pid<<3|schedClock), &t); err != nil {
		return 0, os.NewSyscallError("clock_gettime", err)
	}
	return time.Duration(t.Nano()), nil
}

// cleanEnv is the environment without what would configure rrd.
func cleanEnv() (env []string) {
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "RRD_") && !strings.HasPrefix(kv, "LISTEN_") {
			env = append(env, kv)
		}
	}
	return env
}

// output runs a program to its end and returns what it prints. An error holds
// what it says on stderr.
func output(ctx context.Context, env []string, command ...string) (string, error) {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Env = append(cleanEnv(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var out, complaint strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", filepath.Base(command[0]), err, complaint.String())
	}
	return out.String(), nil
}

// lastLines keeps the end of what was printed.
type lastLines struct {
	mu    sync.Mutex
	lines []string
}

func (l *lastLines) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lines = append(l.lines, line); len(l.lines) > 20 {
		l.lines = l.lines[1:]
	}
}

func (l *lastLines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "")
}
