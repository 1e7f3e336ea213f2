package pool

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// checker looks for what no pool can be in.
type checker struct {
	s    *SavedState
	ids  map[uint64]struct{}
	pids map[int]struct{}
	fds  map[int]struct{}
}

func (s *SavedState) check() error {
	switch {
	case !s.Booted:
		return errors.New("no worker was ever ready")
	case s.Desired < 1 || s.Desired > MaxSize:
		return fmt.Errorf("%d workers: must be 1 to %d", s.Desired, MaxSize)
	case len(s.Slots) < s.Desired || len(s.Slots) > MaxSize:
		return fmt.Errorf("%d slots for %d workers: must be as many, and %d at most", len(s.Slots), s.Desired, MaxSize)
	case s.Generations < 1:
		return fmt.Errorf("generation %d: must be positive", s.Generations)
	case s.StartSum < 0:
		return fmt.Errorf("start durations: their sum is %v", s.StartSum)
	case s.OutputUntold > s.OutputLost:
		return fmt.Errorf("output: %d lines were lost, less than the %d untold", s.OutputLost, s.OutputUntold)
	}
	for i := range s.Templates {
		if err := s.Templates[i].check(s.Generations); err != nil {
			return fmt.Errorf("template %d: %w", i, err)
		}
	}
	if err := s.checkTemplate(s.Template); err != nil {
		return err
	}
	for i := range s.Reports {
		if err := s.Reports[i].check(); err != nil {
			return err
		}
	}
	for i := range s.OutputLines {
		if err := s.OutputLines[i].check(); err != nil {
			return fmt.Errorf("output: %w", err)
		}
	}
	c := checker{s, make(map[uint64]struct{}), make(map[int]struct{}), make(map[int]struct{})}
	for i := range s.Slots {
		if err := c.slot(&s.Slots[i]); err != nil {
			return fmt.Errorf("slot %d: %w", i, err)
		}
	}
	return nil
}

func (s *SavedState) checkTemplate(i int) error {
	if i < 0 || i >= len(s.Templates) {
		return fmt.Errorf("template %d: there are %d", i, len(s.Templates))
	}
	return nil
}

func (t *TemplateState) check(generations int) error {
	if t.Generation < 1 || t.Generation > generations {
		return fmt.Errorf("generation %d: must be 1 to %d", t.Generation, generations)
	}
	n := t.template()
	return n.check()
}

func (t *TemplateState) template() *template {
	return &template{
		Template: Template{Argv: toStrings(t.Argv), Dir: string(t.Dir), ExtraEnv: toStrings(t.ExtraEnv),
			Credential: t.Credential, Account: t.Account, NoFile: t.NoFile},
		generation: t.Generation, hardLimit: t.HardLimit,
	}
}

func (c *checker) slot(s *SlotState) error {
	if err := c.s.checkTemplate(s.Template); err != nil {
		return err
	}
	switch {
	case s.Failures < 0:
		return fmt.Errorf("%d failures", s.Failures)
	case s.Start != nil && (s.Start.In < 0 || s.Start.Pause < 0):
		return fmt.Errorf("start in %v of %v", s.Start.In, s.Start.Pause)
	}
	if s.Start != nil {
		if _, err := startReason(s.Start.Reason); err != nil {
			return err
		}
	}
	if s.LastExit != nil {
		if _, err := s.LastExit.exit(); err != nil {
			return err
		}
	}
	if s.Worker != nil {
		if err := c.process(s.Worker); err != nil {
			return fmt.Errorf("process %d: %w", s.Worker.PID, err)
		}
	}
	for i := range s.Older {
		if err := c.process(&s.Older[i]); err != nil {
			return fmt.Errorf("older process %d: %w", s.Older[i].PID, err)
		}
	}
	return nil
}

func (c *checker) process(ps *ProcessState) error {
	switch {
	case ps.ID < 1 || ps.ID > c.s.LastID:
		return fmt.Errorf("id %d: must be 1 to %d", ps.ID, c.s.LastID)
	case !isPID(ps.PID):
		return errors.New("it cannot be a worker's")
	case ps.Generation < 1 || ps.Generation > c.s.Generations:
		return fmt.Errorf("generation %d: must be 1 to %d", ps.Generation, c.s.Generations)
	case ps.State != StateStarting && ps.State != StateReady && ps.State != StateDraining:
		return fmt.Errorf("state %q: unknown", ps.State)
	case min(ps.Age, ps.ReadyAge, ps.KilledAge) < 0:
		return fmt.Errorf("ages %v, %v, %v: must be positive", ps.Age, ps.ReadyAge, ps.KilledAge)
	case ps.Reader != 0 && !isPID(ps.Reader):
		return fmt.Errorf("reader %d: it cannot be a process", ps.Reader)
	case ps.Reader == 0 && ps.ReaderEnded:
		return errors.New("reader: one has ended, but which")
	case ps.Exit != nil && (ps.Reader == 0 || ps.ReaderEnded):
		return errors.New("it has ended, and there is no reader")
	case ps.Exit == nil && (ps.OutputDone || ps.Counted):
		return errors.New("it has not ended, but its output or it was counted")
	case ps.OutputDone && len(ps.fds()) > 0:
		return errors.New("its output is done, and has descriptors")
	}
	for _, name := range timerNames {
		if d := ps.Timers[name]; d < 0 {
			return fmt.Errorf("timer %s in %v", name, d)
		}
	}
	if ps.Exit != nil {
		if _, err := ps.Exit.exit(); err != nil {
			return err
		}
	} else if _, twice := c.pids[ps.PID]; twice {
		return errors.New("it is there twice")
	} else {
		c.pids[ps.PID] = struct{}{}
	}
	if _, twice := c.ids[ps.ID]; twice {
		return fmt.Errorf("id %d: it is there twice", ps.ID)
	}
	c.ids[ps.ID] = struct{}{}
	return c.files(ps)
}

func isPID(pid int) bool { return pid > 1 && pid <= 1<<31-1 && pid != os.Getpid() }

func (c *checker) files(ps *ProcessState) error {
	if o := ps.Output; o != nil && max(len(o.Stdout.Half), len(o.Stderr.Half)) >= maxLine {
		return fmt.Errorf("half a line of output: must be less than %d bytes", maxLine)
	}
	for _, d := range ps.fds() {
		fd := d.Num()
		if fd <= 2 {
			return fmt.Errorf("descriptor %d: must be above 2", fd)
		}
		if _, twice := c.fds[fd]; twice {
			return fmt.Errorf("descriptor %d: it is there twice", fd)
		}
		c.fds[fd] = struct{}{}
	}
	return nil
}

func startReason(name string) (StartReason, error) {
	for i := range StartReason(startReasons) {
		if i.String() == name {
			return i, nil
		}
	}
	return 0, fmt.Errorf("start reason %q: unknown", name)
}

// timers makes deadlines of what was left of them.
func (ps *ProcessState) timers(now time.Time) (t timers) {
	for i, name := range timerNames {
		if d, ok := ps.Timers[name]; ok {
			t[i] = now.Add(d)
		}
	}
	return t
}
