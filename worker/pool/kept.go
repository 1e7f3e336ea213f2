package pool

import "time"

// A roll keeps the processes that it has replaced until it has succeeded. A kept
// process runs on next to its successor, gets no new connection, and is not asked
// to drain. If the roll fails, the kept process takes its place back: not another
// process of the same command line, which may have become another program.

// serves reports whether the process is well and may go on.
func (pr *proc) serves() bool {
	return pr.state == StateReady && !pr.requested && !pr.killed && !pr.aborted && !pr.ended
}

// keeps reports whether the roll keeps the next process that it replaces.
func (r *roll) keeps(p *Pool) bool {
	if r.from == nil || r.back || r.cfg.Keep < 0 {
		return false
	}
	return r.cfg.Keep == 0 || p.countKept() < r.cfg.Keep
}

func (p *Pool) countKept() (n int) {
	for _, s := range p.slots {
		if s.kept != nil {
			n++
		}
	}
	return n
}

// keep keeps the process whose place was taken.
func (p *Pool) keep(s *slot, old *proc) {
	s.kept = old
	if hook := p.cfg.Hooks.Replaced; hook != nil {
		p.hooks.post(func() { hook(old.w) })
	}
}

// takeBack gives a slot back to its kept process, and drains the newer one. It
// reports false if the slot has no kept process that could go on.
func (p *Pool) takeBack(s *slot) bool {
	old, newer := s.kept, s.cur
	if old == nil {
		return false
	}
	s.kept = nil
	if !old.serves() {
		s.older = append(s.older, old)
		return false
	}
	s.cur = old
	s.startAt, s.pause, s.down = time.Time{}, 0, false
	if hook := p.cfg.Hooks.Restored; hook != nil {
		p.hooks.post(func() { hook(old.w) })
	}
	if newer == nil || p.procs[newer.w.ID] != newer {
		return true
	}
	s.older = append(s.older, newer)
	if !newer.killed && !newer.ended {
		newer.retired = "its roll has failed"
		p.drain(newer)
	}
	return true
}

// dropKept drains the kept process of a slot, which does not get its place back.
func (p *Pool) dropKept(s *slot) {
	if pr := s.kept; pr != nil {
		s.kept = nil
		s.older = append(s.older, pr)
		p.drainInTurn(pr)
	}
}

// drainKept drains all kept processes: the roll has succeeded. They drain one after
// the other if DrainSpread says so, since their clients come back all at once
// otherwise.
func (p *Pool) drainKept(r *roll) {
	var list []*proc
	for _, s := range p.slots {
		if pr := s.kept; pr != nil && pr.serves() {
			pr.retired = r.reason
			list = append(list, pr)
		}
	}
	if !r.cfg.AtOnce {
		p.setTurns(list, time.Now())
	}
	for _, s := range p.slots {
		p.dropKept(s)
	}
}

// setTurns gives each process but the first a later time to drain, over DrainSpread.
func (p *Pool) setTurns(list []*proc, now time.Time) {
	within := p.cfg.DrainSpread
	if p.cfg.DrainTimeout >= 0 {
		within = min(within, p.cfg.DrainTimeout)
	}
	if within <= 0 {
		return
	}
	for i, pr := range list {
		if i > 0 {
			pr.timers.set(spreadTimer, now, within*time.Duration(i)/time.Duration(len(list)))
		}
	}
}

// drainInTurn drains a process, unless its turn is set and will come.
func (p *Pool) drainInTurn(pr *proc) {
	if pr.timers[spreadTimer].IsZero() {
		p.drain(pr)
	}
}
