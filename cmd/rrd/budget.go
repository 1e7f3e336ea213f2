//go:build unix

package main

import (
	"fmt"
	"syscall"

	"rrd/dispatcher"
)

// minQueue is the shortest queue that a default is shrunk to.
const minQueue = 16

// fitBudget makes sure that the master never runs out of descriptors: it lowers
// limits that nobody asked for, and refuses those that somebody did.
func fitBudget(c *config) error {
	limit, err := openFilesLimit()
	if err != nil {
		return err
	}
	return c.fit(limit)
}

func openFilesLimit() (int, error) {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return 0, fmt.Errorf("read the limit of open files: %w", err)
	}
	return int(min(uint64(r.Cur), 1<<30)), nil //nolint:unconvert // Cur is signed on freebsd
}

const (
	// leastAsked is the number of listeners that workers can ask for under any budget. They
	// come out of its reserve of 64.
	leastAsked = 16
	// mostAsked is below the largest number of listeners that an upgrade in place accepts.
	mostAsked = 1 << 15
)

// maxAsked returns how many sockets workers may have by asking for listeners: what the
// limit of open files leaves of the budget.
func (c *config) maxAsked(limit int) int {
	least := leastAsked
	if c.Policy == dispatcher.SchedReuseport {
		least = max(least, 2*c.Workers)
	}
	need := dispatcher.FDBudget(c.Policy, c.QueueLimit, c.Workers, c.HandoffWindow, len(c.Listen), c.RescueLimit)
	return min(max(limit-need, least), mostAsked)
}

// askedLimit is maxAsked under the limit of this process; 0, if that is not known.
func (c *config) askedLimit() int {
	limit, err := openFilesLimit()
	if err != nil {
		return 0
	}
	return c.maxAsked(limit)
}

// workersInReload returns the largest number of workers during a reload: the new ones, the
// kept ones, and those whose successor is starting. FDBudget counts two for each slot, so
// it covers them.
func (c *config) workersInReload() int {
	keep := c.RollKeep
	if keep == 0 {
		keep = c.Workers
	}
	return c.Workers + min(c.Workers, max(keep, 0)+c.Surge)
}

func (c *config) fit(limit int) error {
	need := func(queue, rescue int) int {
		return dispatcher.FDBudget(c.Policy, queue, c.Workers, c.HandoffWindow, len(c.Listen), rescue)
	}
	asked, queue, rescue := need(c.QueueLimit, c.RescueLimit), c.QueueLimit, c.RescueLimit
	if asked <= limit {
		return nil
	}
	if !c.explicit("rescue-limit") {
		rescue = max(0, min(rescue, (limit-need(0, 0))/4))
	}
	if !c.explicit("queue-limit") {
		queue = min(queue, limit-need(0, rescue))
	}
	if need(queue, rescue) > limit || queue < min(minQueue, c.QueueLimit) {
		return fmt.Errorf("--queue-limit %d (from %s), --workers %d (from %s), --handoff-window %d (from %s), --rescue-limit %d (from %s) and %d listeners "+
			"need %d open files, and the limit is %d: raise it (ulimit -n, LimitNOFILE=) or lower one of them",
			c.QueueLimit, c.origin("queue-limit"), c.Workers, c.origin("workers"), c.HandoffWindow, c.origin("handoff-window"),
			c.RescueLimit, c.origin("rescue-limit"), len(c.Listen), asked, limit)
	}
	c.Warnings = append(c.Warnings, fmt.Sprintf("the limit of %d open files does not hold the default limits: --queue-limit is %d instead of %d, --rescue-limit %d instead of %d",
		limit, queue, c.QueueLimit, rescue, c.RescueLimit))
	c.QueueLimit, c.RescueLimit = queue, rescue
	return nil
}

// mayResize refuses a number of workers that the descriptors do not reach for, and lowers
// limits that nobody asked for, as at the start, or gives back what that took of them.
func (m *master) mayResize(_, to int) error {
	m.limits.Lock()
	defer m.limits.Unlock()
	c := *m.current()
	c.Workers, c.Warnings = to, nil
	c.QueueLimit, c.RescueLimit = c.wantedQueue, c.wantedRescue
	if err := fitBudget(&c); err != nil {
		return fmt.Errorf("%d workers: %w", to, err)
	}
	logWarnings(m.log, &c)
	if err := m.dispatcher.SetLimits(c.dispatcherLimits()); err != nil {
		return err
	}
	live := *m.current() // an upgrade in place and a reload that fails go back to these
	live.QueueLimit, live.RescueLimit = c.QueueLimit, c.RescueLimit
	m.live.Store(&live)
	return nil
}
