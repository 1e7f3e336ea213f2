package main

import (
	"bufio"
	"context"
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

// process is one that was started here, in a process group of its own.
type process struct {
	cmd  *exec.Cmd
	gone chan struct{} // closed when nobody is left who could print

	address, metrics string
	workers          []int // pids, of rrd only
	all              bool  // they are all ready

	last lastLines
}

// listenFor looks at a line that a process prints: the address that it serves, or
// the pid of a worker, or that all are ready.
type listenFor func(line string, p *process)

const (
	startLimit = 60 * time.Second // 1024 processes on a busy machine
	stopLimit  = 20 * time.Second
)

// start runs a program until it says that it is ready. Who gets it calls stop.
func start(ctx context.Context, command []string, ready listenFor) (*process, error) {
	p, said, err := begin(command, ready)
	if err != nil {
		return nil, err
	}
	select {
	case <-said:
		if p.all {
			return p, nil
		}
		err = errEnded
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(startLimit):
		err = fmt.Errorf("not ready after %v", startLimit)
	}
	return nil, errors.Join(err, p.stop())
}

var errEnded = errors.New("it ended before it was ready")

// begin runs a program; said is closed when it is ready, or has ended.
func begin(command []string, ready listenFor) (p *process, said chan struct{}, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	p = &process{cmd: exec.Command(command[0], command[1:]...), gone: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = w, w
	p.cmd.Env = cleanEnv()
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = p.cmd.Start()
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return nil, nil, err
	}
	said = make(chan struct{})
	go p.read(r, ready, said) // stop waits for it
	return p, said, nil
}

// read takes in what a process and its children print, until nobody is left to
// print. What it notes in p is for others to read once said is closed.
func (p *process) read(r *os.File, ready listenFor, said chan struct{}) {
	defer close(p.gone)
	defer r.Close() //nolint:errcheck // read to the end
	waiting := true
	for in := bufio.NewReader(r); ; {
		line, err := in.ReadString('\n')
		p.last.add(line)
		if waiting {
			ready(strings.TrimSpace(line), p)
			if p.all || err != nil {
				close(said)
				waiting = false
			}
		}
		if err != nil {
			return
		}
	}
}

// stop ends a process as its user would, and waits until its children have, too.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	hard := time.AfterFunc(stopLimit, func() { _ = p.cmd.Process.Kill() })
	err := p.cmd.Wait()
	if !hard.Stop() {
		err = fmt.Errorf("killed: it was there %v after TERM", stopLimit)
	}
	<-p.gone // the children hold the pipe, and end with the process
	if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signal() == syscall.SIGTERM {
		err = nil // HAProxy ends so
	}
	if err != nil {
		return fmt.Errorf("%w; its last words:\n%s", err, p.last.text())
	}
	return nil
}

// cpuOf is the time that all threads of these processes have had. The clock of a
// process has that exactly, /proc/PID/stat in hundredths of a second
// (clock_getcpuclockid(3); the number is made as in include/linux/posix-timers.h).
func cpuOf(pids []int) (sum time.Duration, err error) {
	const schedClock = 2
	for _, pid := range pids {
		var t unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|schedClock), &t); err != nil {
			return 0, os.NewSyscallError("clock_gettime", err)
		}
		sum += time.Duration(t.Nano())
	}
	return sum, nil
}

// descendants are the children of a process, and theirs.
func descendants(pid int) (all []int, err error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended, and had no children
		}
		for _, field := range strings.Fields(string(text)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
			more, err := descendants(child)
			if err != nil {
				return nil, err
			}
			all = append(append(all, child), more...)
		}
	}
	return all, nil
}

// resident returns what a process has in memory, and had at most, in KiB.
func resident(pid int) (rss, peak int, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		for field, to := range map[string]*int{"VmRSS:": &rss, "VmHWM:": &peak} {
			if value, ok := strings.CutPrefix(line, field); ok {
				if _, err := fmt.Sscan(value, to); err != nil {
					return 0, 0, fmt.Errorf("%q: %w", line, err)
				}
			}
		}
	}
	return rss, peak, nil
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
