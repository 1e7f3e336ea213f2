package pool

import "time"

// A slot's worker is replaced successor first: the new one is started beside it,
// and takes its place when it is ready. Only then is the old one asked to drain, or
// kept until the roll has succeeded. If the successor fails, nothing has happened.

// startNext begins to start a successor by template t. It is called for slots that have
// none.
func (p *Pool) startNext(s *slot, t *template, why StartReason) {
	s.nextTmpl, s.nextSpawning, s.nextWhy = t, true, why
	p.spawning++
	if s.cur == nil { // it was to be started again: the successor is that start
		s.startAt, s.pause = time.Time{}, 0
	}
	limit := p.cfg.StartTimeout
	p.tasks.Go(func() { p.live(p.spawnCtx, s, t, limit, true) })
}

// dropNext gives a successor up: it drains as if its place had been taken.
func (p *Pool) dropNext(s *slot) {
	s.nextTmpl = nil // one that is being spawned finds that it is not wanted
	if pr := s.next; pr != nil {
		s.next = nil
		s.older = append(s.older, pr)
		p.drain(pr)
	}
	p.refill(s)
}

// successorFailed: there is no process.
func (p *Pool) successorFailed(s *slot, err error) {
	s.nextSpawning = false
	p.spawning--
	s.spawnFailures++
	if hook := p.cfg.Hooks.SpawnFailed; hook != nil {
		p.hooks.post(func() { hook(s.index, err) })
	}
	if s.nextTmpl != nil {
		p.rollFailed(s, err)
	}
	p.refill(s)
}

// promote gives a slot to its successor. The old process is kept, or drains. A slot that
// has a kept process keeps that one: only it is from before the roll.
func (p *Pool) promote(s *slot, why string, keep bool) {
	old := s.cur
	s.cur, s.next, s.nextTmpl = s.next, nil, nil
	s.cur.successor = false
	s.tmpl = s.cur.tmpl
	s.startAt, s.pause, s.down = time.Time{}, 0, false
	switch {
	case old == nil:
	case keep && s.kept == nil && old.serves():
		p.keep(s, old)
	default:
		s.older = append(s.older, old)
		old.retired = why
		p.drain(old)
	}
}

// refill starts a slot again that was left to a successor, which is no more.
func (p *Pool) refill(s *slot) {
	if !p.stopping && s.index < p.desired && !s.held && !s.down && s.idle() {
		p.plan(s, s.backoff.next(false, p.sys.jitter()), StartCrash)
	}
}

// idle reports whether the slot has no process, and none is on its way.
func (s *slot) idle() bool {
	return s.cur == nil && !s.spawning && s.startAt.IsZero() && s.next == nil && (!s.nextSpawning || s.nextTmpl == nil)
}

// DrainSlot drains the worker of a slot and leaves the slot empty until
// UndrainSlot, Resize or a stop.
func (p *Pool) DrainSlot(index int) error {
	return p.onSlot("drain", index, func(s *slot) error {
		s.held = true
		s.startAt, s.pause = time.Time{}, 0
		p.dropNext(s)
		p.dropKept(s)
		if s.cur != nil {
			p.drain(s.cur)
		} else if !s.spawning {
			s.down = true
		}
		return nil
	})
}

// UndrainSlot starts a slot again that DrainSlot has emptied, or will have.
func (p *Pool) UndrainSlot(index int) error {
	return p.onSlot("undrain", index, func(s *slot) error {
		if !s.held {
			return nil
		}
		s.held, s.down = false, false
		if s.cur == nil && !s.spawning {
			p.start(s, StartScale)
		}
		return nil
	})
}

// KillSlot kills the process group of a slot's worker at once.
func (p *Pool) KillSlot(index int, reason string) error {
	return p.onSlot("kill", index, func(s *slot) error {
		if s.cur == nil {
			return ErrNoWorker
		}
		p.kill(s.cur, reason)
		return nil
	})
}
