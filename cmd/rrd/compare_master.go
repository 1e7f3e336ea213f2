//go:build unix

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"rrd/dispatcher"
)

// comparedPolicies are measured in this order, the kernel's before ours.
var comparedPolicies = []dispatcher.Policy{dispatcher.SchedNone, dispatcher.SchedReuseport, dispatcher.SchedRR}

// How long a master may take to serve, and at each step of its end.
const (
	compareStart = 20 * time.Second
	compareEnd   = 3 * time.Second
)

// comparedMaster is an rrd in a process and process group of its own. Who has
// started it ends it.
type comparedMaster struct {
	policy dispatcher.Policy
	cmd    *exec.Cmd

	address string        // once it is ready
	ready   chan struct{} // closed when every slot had its first start
	exited  chan struct{} // closed when the master was waited for
	gone    chan struct{} // closed when the workers, which share its stderr, have ended, too

	mu        sync.Mutex
	pids      map[int]int // by slot
	working   int         // workers that were ready at first
	lastWords string      // its last error
}

// leftOut is a policy that could not be measured.
type leftOut struct {
	Policy string `json:"policy"`
	Reason string `json:"reason"`
}

// startCompared starts a master for each policy that this system has. The caller
// ends those that it returns, also beside an error.
func startCompared(ctx context.Context, workers int, environ []string) (masters []*comparedMaster, left []leftOut, err error) {
	for _, policy := range comparedPolicies {
		if policy == dispatcher.SchedRR {
			if err := probePassing(); err != nil {
				left = append(left, leftOut{string(policy), fmt.Sprintf("descriptors cannot be passed on this system (%v)", err)})
				continue
			}
		}
		m, err := startMaster(ctx, policy, workers, environ)
		if ctx.Err() != nil {
			return masters, left, ctx.Err()
		}
		if err != nil {
			left = append(left, leftOut{string(policy), err.Error()})
			continue
		}
		masters = append(masters, m)
	}
	if len(masters) == 0 {
		return nil, left, fmt.Errorf("compare: no policy could be started: %s: %s", left[0].Policy, left[0].Reason)
	}
	return masters, left, nil
}

// startMaster returns a master all of whose workers serve, or none is left.
func startMaster(ctx context.Context, policy dispatcher.Policy, workers int, environ []string) (*comparedMaster, error) {
	// Timeouts so short that an end is never long; everything that is measured has
	// its default.
	cmd := exec.Command(selfPath(), "--policy", string(policy), "--workers", strconv.Itoa(workers), "--listen", "127.0.0.1:0",
		"--metrics", "off", "--control", "off", "--log-level", "info", "--log-format", "json", "--worker-output", "raw",
		"--start-timeout", "15s", "--drain-timeout", "1s", "--stop-timeout", "1s")
	cmd.Args[0] = "rrd"
	cmd.Env = plainEnviron(environ)
	cmd.SysProcAttr = comparedAttr()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe for its log: %w", err)
	}
	cmd.Stderr = w // an *os.File: the processes have it themselves, nothing copies
	m := &comparedMaster{
		policy: policy, cmd: cmd, pids: make(map[int]int),
		ready: make(chan struct{}), exited: make(chan struct{}), gone: make(chan struct{}),
	}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("start its master: %w", err)
	}
	go m.read(r) // end waits for it, by gone
	go m.wait()  // end waits for it, by exited
	if err := m.awaitReady(ctx, workers); err != nil {
		m.end()
		return nil, err
	}
	return m, nil
}

// plainEnviron leaves out what would make the masters differ from what the report
// says, and what belongs to the process that we are.
func plainEnviron(environ []string) []string {
	return slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return strings.HasPrefix(name, envPrefix) || slices.Contains(activationNames, name) ||
			slices.Contains([]string{envNodePolicy, "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"}, name)
	})
}

func (m *comparedMaster) awaitReady(ctx context.Context, workers int) error {
	timer := time.NewTimer(compareStart)
	defer timer.Stop()
	select {
	case <-m.ready:
	case <-m.exited:
		<-m.gone // its last words are complete then
		return m.failure()
	case <-timer.C:
		return fmt.Errorf("its workers were not ready within %v", compareStart)
	case <-ctx.Done():
		return ctx.Err()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.working != workers {
		return fmt.Errorf("only %d of %d workers could be started", m.working, workers)
	}
	return nil
}

// failure says why a master that has exited did.
func (m *comparedMaster) failure() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lastWords != "" {
		return errors.New(m.lastWords)
	}
	return fmt.Errorf("its master ended: %v", m.cmd.ProcessState)
}

// wait waits for the master's exit.
func (m *comparedMaster) wait() {
	_ = m.cmd.Wait() // how it ended is in ProcessState
	close(m.exited)
}

// read takes in the log until nobody holds its pipe any more.
func (m *comparedMaster) read(r *os.File) {
	defer close(m.gone)
	defer r.Close()
	lines := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := lines.ReadSlice('\n')
		m.note(line)
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// note keeps what is wanted of a line: an event of operation.md, "Log", or the one
// line of an error.
func (m *comparedMaster) note(line []byte) {
	var e struct {
		Event     string
		Address   string
		Worker    int
		WorkerPID int `json:"worker_pid"`
		Workers   int
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := json.Unmarshal(line, &e); err != nil {
		if words, ok := strings.CutPrefix(string(line), "rrd: "); ok && !strings.HasPrefix(words, "|") {
			m.lastWords = oneLine(strings.TrimSpace(words))
		}
		return
	}
	switch e.Event {
	case "listener.open":
		if m.address == "" {
			m.address = e.Address
		}
	case "worker.ready":
		m.pids[e.Worker] = e.WorkerPID
	case "worker.exit":
		delete(m.pids, e.Worker)
	case "ready":
		m.working = e.Workers
		close(m.ready) // it is said once
	}
}

// pid is the process that serves in a slot, 0 if there is none.
func (m *comparedMaster) pid(slot int) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pids[slot]
}

// end ends the master and its workers, and returns when all are gone, or nothing
// that is left to try has helped.
func (m *comparedMaster) end() {
	for range 2 { // a stop, then one that does not wait
		_ = m.cmd.Process.Signal(syscall.SIGTERM) // an error: it has ended
		if m.isGone(compareEnd) {
			return
		}
	}
	_ = m.cmd.Process.Kill()
	if m.isGone(compareEnd) {
		return
	}
	// Its workers end by themselves when it is dead; each has a process group.
	m.mu.Lock()
	for _, pid := range m.pids {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
	m.mu.Unlock()
	m.isGone(compareEnd)
}

// isGone waits for the end of the master and its workers.
func (m *comparedMaster) isGone(limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for _, c := range []<-chan struct{}{m.exited, m.gone} {
		select {
		case <-c:
		case <-timer.C:
			return false
		}
	}
	return true
}
