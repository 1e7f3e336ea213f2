//go:build unix

package main

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"
)

// comparePhase is one way of asking.
type comparePhase struct {
	name  string  // in JSON
	share float64 // of all the time, for all policies together
	slow  bool    // while slowWorker is stopped again and again
	load  func(r *comparison, ctx context.Context, m *comparedMaster, d time.Duration) *tally
}

var comparePhases = []comparePhase{
	{"sequential", 0.12, false, (*comparison).sequential},
	{"steady", 0.20, false, (*comparison).steady},
	{"saturated", 0.13, false, (*comparison).saturated},
	{"slow_steady", 0.37, true, (*comparison).steady},
	{"slow_saturated", 0.18, true, (*comparison).saturated},
}

// A slow worker is one that is stopped (SIGSTOP) in the middle of each pauseEvery
// for pauseFor: as by a long request of a program with one thread, a collection
// of garbage, or others who have the CPU. To sleep in a handler would stop
// nobody: a program in Go serves others meanwhile.
const (
	slowWorker = 0
	pauseFor   = 100 * time.Millisecond
	pauseEvery = 200 * time.Millisecond
)

// compareRound is how long a round should be. Short ones treat all policies alike
// on a busy machine, long ones have less edge.
const compareRound = 4 * time.Second

func compareRounds(d time.Duration) int { return max(1, int(d/compareRound)) }

// comparison is a run under way. Its masters are the caller's.
type comparison struct {
	*compareConfig
	masters  []*comparedMaster
	rounds   int
	progress *progress
}

func (r *comparison) sequential(ctx context.Context, m *comparedMaster, d time.Duration) *tally {
	return closedLoop(ctx, m.address, r.workers, 1, d)
}

func (r *comparison) steady(ctx context.Context, m *comparedMaster, d time.Duration) *tally {
	return openLoop(ctx, m.address, r.workers, r.rate, d)
}

func (r *comparison) saturated(ctx context.Context, m *comparedMaster, d time.Duration) *tally {
	return closedLoop(ctx, m.address, r.workers, compareClients, d)
}

// slice is how long each policy has in each round of a phase. With a slow worker
// it is a whole number of pauses, so that all have the same part of them.
func (p comparePhase) slice(total time.Duration, policies, rounds int) time.Duration {
	d := time.Duration(p.share * float64(total) / float64(policies*rounds))
	if p.slow {
		return max((d + pauseEvery/2).Truncate(pauseEvery), pauseEvery)
	}
	return d
}

// phase has the policies take turns, and returns what was found of each.
func (r *comparison) phase(ctx context.Context, p comparePhase) ([]*tally, error) {
	found := make([]*tally, len(r.masters))
	for i := range found {
		found[i] = newTally(r.workers)
	}
	d := p.slice(r.duration, len(comparedPolicies), r.rounds)
	for range r.rounds {
		for i, m := range r.masters {
			r.progress.say(p.title(r.rate) + ": " + string(m.policy))
			t, err := r.turn(ctx, p, m, d)
			if err != nil {
				return nil, fmt.Errorf("compare: %s: %w", m.policy, err)
			}
			found[i].merge(t)
		}
	}
	return found, nil
}

// turn is one policy's slice.
func (r *comparison) turn(ctx context.Context, p comparePhase, m *comparedMaster, d time.Duration) (*tally, error) {
	var pausing chan error
	if p.slow {
		pid := m.pid(slowWorker)
		if pid == 0 {
			return nil, fmt.Errorf("worker %d has ended", slowWorker)
		}
		pausing = make(chan error, 1)
		while, cancel := context.WithTimeout(ctx, d) // the load's own ctx has no such end
		defer cancel()
		go pauseAgainAndAgain(while, pid, pausing) // waited for below
	}
	t := p.load(r, ctx, m, d)
	if pausing != nil {
		if err := <-pausing; err != nil {
			return nil, err
		}
	}
	select {
	case <-m.exited:
		<-m.gone
		return nil, m.failure()
	default:
	}
	return t, ctx.Err()
}

// pauseAgainAndAgain stops a process and has it go on until ctx ends, and reports
// to done. It leaves it going on in every case.
func pauseAgainAndAgain(ctx context.Context, pid int, done chan<- error) {
	const lead = (pauseEvery - pauseFor) / 2
	next := time.Now().Add(lead)
	for sleepUntil(ctx, next) {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			done <- fmt.Errorf("stop worker %d: %w", slowWorker, os.NewSyscallError("kill", err))
			return
		}
		sleepUntil(ctx, next.Add(pauseFor))
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			done <- fmt.Errorf("continue worker %d: %w", slowWorker, os.NewSyscallError("kill", err))
			return
		}
		next = next.Add(pauseEvery)
	}
	done <- nil
}

// sleepUntil says whether ctx lasted until then.
func sleepUntil(ctx context.Context, then time.Time) bool {
	timer := time.NewTimer(time.Until(then))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
