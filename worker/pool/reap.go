package pool

import (
	"os"
	"sync"
)

// reaper knows which children are ours, so that as PID 1 all others, which the
// kernel gives to us when their parents die, can be reaped without ever taking
// the status of a worker. Not being PID 1 it only keeps the list.
//
// Another part of the program that starts processes while this one is PID 1
// would have them taken for strangers, were it not for StartOther.
type reaper struct {
	kickC chan struct{}
	stopC chan struct{}

	mu  sync.Mutex // held from before a fork until the child is in own
	own map[int]struct{}
}

func newReaper() *reaper {
	return &reaper{
		kickC: make(chan struct{}, 1),
		stopC: make(chan struct{}),
		own:   make(map[int]struct{}),
	}
}

// spawn calls start, which forks, and notes the child.
func (r *reaper) spawn(start func() (*os.Process, error)) (*os.Process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	child, err := start()
	if err == nil {
		r.own[child.Pid] = struct{}{}
	}
	return child, err
}

// StartOther has start fork a process that is no worker, so that as PID 1 nobody but
// its starter takes its status. The starter calls forget when it has.
func (p *Pool) StartOther(start func() (*os.Process, error)) (child *os.Process, forget func(), err error) {
	child, err = p.strays.spawn(start)
	if err != nil {
		return nil, nil, err
	}
	pid := child.Pid
	return child, func() { p.strays.forget(pid) }, nil
}

// note notes a child that was not spawned here.
func (r *reaper) note(pid int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.own[pid] = struct{}{}
}

// forget is called when a child of ours was reaped. Strangers may have queued up
// behind it.
func (r *reaper) forget(pid int) {
	r.mu.Lock()
	delete(r.own, pid)
	r.mu.Unlock()
	select {
	case r.kickC <- struct{}{}:
	default:
	}
}

// close ends run. It is called once.
func (r *reaper) close() { close(r.stopC) }
