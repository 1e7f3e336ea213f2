package pool

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// stuckAfter is how long a killed process may take to end before its slot goes
	// on without it (a frozen cgroup, a dead network file system).
	stuckAfter = 2 * time.Second
	// maxOlder is how many processes that do not end a slot can have beside
	// its newest one. Then there is no successor until one of them ends, so
	// that a cause that lasts cannot fill the machine.
	maxOlder = 2
	// leaveAfter is how long Run waits once there are only processes left that
	// do not end.
	leaveAfter = 3 * time.Second
)

// LeftError is what Run returns (wrapped, beside any other reason it has) when
// processes had to be left behind: they were killed and do not end, or their leader
// has ended and the process that spoke for it lives on outside of the group.
type LeftError struct {
	Workers []Worker // PID is that of the process that lives
}

func (e *LeftError) Error() string {
	names := make([]string, len(e.Workers))
	for i, w := range e.Workers {
		names[i] = fmt.Sprintf("%d (slot %d)", w.PID, w.Slot)
	}
	return "processes do not end and are left behind: pid " + strings.Join(names, ", pid ")
}

// stick: the process was killed a while ago and is still there. It is known until it
// ends, but its slot goes on.
func (p *Pool) stick(pr *proc) {
	pr.stuck = true
	p.leavePlace(pr)
}

// orphaned: the leader of pr has ended and its reader has not.
func (p *Pool) orphaned(pr *proc) {
	if !pr.requested && !pr.killed {
		pr.timers = timers{} // nothing is expected of it any more
	}
	if hook := p.cfg.Hooks.Orphaned; hook != nil {
		p.hooks.post(func() { hook(pr.w) })
	}
	p.count(pr)
	p.leavePlace(pr)
}

// leavePlace: pr works in its slot no more, though it has not ended.
func (p *Pool) leavePlace(pr *proc) {
	s := pr.s
	switch pr {
	case s.cur:
		p.rollEnded(pr)
		p.supersede(s)
	case s.next:
		p.rollEnded(pr)
		s.next = nil
		s.older = append(s.older, pr)
		p.refill(s)
	case s.kept:
		s.kept = nil
		s.older = append(s.older, pr)
	}
}

// processes returns all processes of the slot, oldest first.
func (s *slot) processes() []*proc {
	list := append(s.older[:len(s.older):len(s.older)], s.kept, s.cur, s.next)
	return slices.DeleteFunc(list, func(pr *proc) bool { return pr == nil })
}

// lingering counts the older processes that may never end.
func (s *slot) lingering() (n int) {
	for _, pr := range s.older {
		if pr.stuck || pr.orphan() {
			n++
		}
	}
	return n
}

// supersede gives the place of a slot's process to a successor, if the process works
// there no more, somebody wants the slot, and there are not too many such already.
// It is called whenever one of these may have changed.
func (p *Pool) supersede(s *slot) {
	pr := s.cur
	switch {
	case pr == nil || !pr.stuck && !pr.orphan():
	case p.stopping || s.index >= p.desired || s.lingering() >= maxOlder:
	case p.booting && (!pr.requested || pr.retired != ""):
		p.failBoot(pr)
	default:
		s.cur = nil
		s.older = append(s.older, pr)
		p.succeed(pr)
	}
}

// left returns what is still there, for the error of Run.
func (p *Pool) left() *LeftError {
	e := &LeftError{}
	for _, s := range p.slots {
		for _, pr := range s.processes() {
			w := pr.w
			if pr.orphan() {
				w.PID = pr.reader.pid
			}
			e.Workers = append(e.Workers, w)
		}
	}
	return e
}
