package pool

import (
	"fmt"
	"syscall"
	"time"
)

// Limits are the parts of Config that may change while workers run; zero fields mean
// their defaults, as there.
type Limits struct {
	StartTimeout, ReadyAfter, SilentAfter time.Duration
	DrainTimeout, DrainSpread             time.Duration
	StopTimeout                           time.Duration
	RespawnMin, RespawnMax                time.Duration
	Restart                               RestartPolicy
	StopSignal                            syscall.Signal
}

// SetLimits has new limits hold for every deadline that is set from now on.
func (p *Pool) SetLimits(l Limits) error {
	var err error
	p.ask(func() {
		if err = p.unchangeable(); err != nil {
			err = fmt.Errorf("change pool: %w", err)
			return
		}
		c := p.cfg
		c.StartTimeout, c.ReadyAfter, c.SilentAfter = l.StartTimeout, l.ReadyAfter, l.SilentAfter
		c.DrainTimeout, c.DrainSpread, c.StopTimeout = l.DrainTimeout, l.DrainSpread, l.StopTimeout
		c.RespawnMin, c.RespawnMax = l.RespawnMin, l.RespawnMax
		c.Restart, c.StopSignal = l.Restart, l.StopSignal
		if c, err = c.withDefaults(); err != nil {
			err = fmt.Errorf("change pool: %w", err)
			return
		}
		p.cfg = c
		for _, s := range p.slots {
			s.backoff.min, s.backoff.max = c.RespawnMin, c.RespawnMax
		}
	})
	return err
}
