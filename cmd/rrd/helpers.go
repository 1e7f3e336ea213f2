//go:build unix

package main

import (
	"errors"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"rrd/dispatcher"
	"rrd/handoff"
)

// Helpers make the system calls of the dispatcher that may wait for a worker. Each is
// a process of this program in a session of its own, so signals from a terminal or to the
// master's process group do not reach it. It ends when its socket is closed.

// helpers starts them when the dispatcher wants one, and reaps them.
type helpers struct {
	m       *master
	wantedC chan struct{} // a token

	mu        sync.Mutex // held while a helper starts, and by an upgrade
	processes map[int]*os.Process
	over      bool           // no helper starts any more
	waited    sync.WaitGroup // for the ends of the processes
}

// helpersLeft is how long the master waits at its end for helpers. One that hangs
// in the kernel is left behind: it ends when its call does.
const helpersLeft = time.Second

func newHelpers(m *master) *helpers {
	return &helpers{m: m, wantedC: make(chan struct{}, 1), processes: make(map[int]*os.Process)}
}

// want asks for one more helper. It does not wait.
func (h *helpers) want() {
	select {
	case h.wantedC <- struct{}{}:
	default:
	}
}

// serve starts helpers until stopC is closed. Its caller waits for it.
func (h *helpers) serve(stopC <-chan struct{}) {
	for {
		select {
		case <-stopC:
			return
		case <-h.wantedC:
		}
		pid, socket, err := h.start()
		if errors.Is(err, dispatcher.ErrClosed) {
			return
		}
		if err != nil {
			h.m.log.Error().Str("event", "helper.failed").Err(err).
				Msg("helper could not be started: rrd tries again after a second")
			_ = h.m.dispatcher.NoHelper()
			continue
		}
		_ = h.m.dispatcher.AddHelper(pid, socket) // if that fails the helper ends by itself
	}
}

// start starts a helper. The caller owns the socket.
func (h *helpers) start() (pid int, socket handoff.FD, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over {
		return 0, socket, dispatcher.ErrClosed
	}
	socket, child, err := dispatcher.HelperPair()
	if err != nil {
		return 0, socket, err
	}
	defer child.Close() //nolint:errcheck // the helper has it
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		_ = socket.Close()
		return 0, handoff.FD{}, err
	}
	defer null.Close() //nolint:errcheck // nothing is written to it
	p, forget, err := h.m.hooks.start(func() (*os.Process, error) {
		return os.StartProcess("/proc/self/exe", []string{"rrd", dispatcher.HelperArg}, &os.ProcAttr{
			Dir: "/", Env: []string{}, Files: []*os.File{null, null, null, child}, Sys: &syscall.SysProcAttr{Setsid: true},
		})
	})
	if err != nil {
		_ = socket.Close()
		return 0, handoff.FD{}, err
	}
	h.processes[p.Pid] = p
	h.waited.Go(func() { h.reap(p, forget) })
	h.m.log.Debug().Str("event", "helper.start").Int("pid", p.Pid).Msg("helper started")
	return p.Pid, socket, nil
}

func (h *helpers) reap(p *os.Process, forget func()) {
	_, _ = p.Wait()
	forget()
	h.mu.Lock()
	delete(h.processes, p.Pid)
	h.mu.Unlock()
}

// useless kills a helper that hangs.
func (h *helpers) useless(pid int) {
	h.m.log.Warn().Str("event", "helper.stuck").Int("pid", pid).
		Msg("helper did not answer in time because a worker held it up, and is killed")
	h.kill(pid)
}

func (h *helpers) kill(pid int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.processes[pid]; p != nil {
		_ = p.Kill()
	}
}

// pids lists the helpers that have not ended. Preconditions: mu is held.
func (h *helpers) pids() (pids []int) {
	for pid := range h.processes {
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids
}

// adopt waits for the helpers of the previous image, which end by themselves.
func (h *helpers) adopt(pids []int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, pid := range pids {
		if p, err := os.FindProcess(pid); err == nil {
			h.processes[pid] = p
			h.waited.Go(func() { h.reap(p, func() {}) })
		}
	}
}

// end waits for all helpers, whose sockets are closed, and kills those that do not end.
func (h *helpers) end() {
	h.mu.Lock()
	h.over = true
	h.mu.Unlock()
	ended := make(chan struct{})
	go h.wait(ended) // ends with the helpers
	for _, limit := range []time.Duration{helpersLeft / 2, helpersLeft / 2} {
		select {
		case <-ended:
			return
		case <-time.After(limit):
		}
		h.mu.Lock()
		pids := h.pids()
		h.mu.Unlock()
		for _, pid := range pids {
			h.kill(pid)
		}
	}
}

func (h *helpers) wait(ended chan<- struct{}) {
	h.waited.Wait()
	close(ended)
}
