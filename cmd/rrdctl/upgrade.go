//go:build unix

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"rrd/cmd/internal/control"
)

const (
	// upgradeLimit bounds how long the new program may take to answer.
	upgradeLimit = 30 * time.Second
	upgradePoll  = 50 * time.Millisecond
)

// upgrade asks for it and waits for the outcome. The connection that asked ends when
// the program is replaced, so the new one is asked how it went.
func (a *app) upgrade() error {
	before, err := a.upgrades()
	if err != nil {
		return err
	}
	_, err = a.call(control.CmdUpgrade, nil, a.slotEvent)
	var said *control.Error
	if errors.As(err, &said) || err == nil || a.ctx.Err() != nil {
		return err
	}
	for deadline := time.Now().Add(upgradeLimit); ; time.Sleep(upgradePoll) {
		now, err := a.upgrades()
		switch {
		case err == nil && now.Upgrade.OK > before.Upgrade.OK:
			if a.json() {
				a.writeJSON(map[string]string{"version": now.Version})
				return nil
			}
			a.say("upgraded: version %s, process %d", now.Version, now.PID)
			return nil
		case err == nil && now.Upgrade.Failed > before.Upgrade.Failed:
			return control.Errorf(control.CodeFailed, "%s", now.Upgrade.Error)
		case a.ctx.Err() != nil:
			return errors.New("interrupted: rrd goes on with what it has begun")
		case time.Now().After(deadline):
			return fmt.Errorf("rrd does not say how the upgrade went: %w", err)
		}
	}
}

// upgrades is the state with what became of upgrades.
func (a *app) upgrades() (*control.Status, error) {
	raw, err := a.call(control.CmdStatus, nil, nil)
	if err != nil {
		return nil, err
	}
	var s control.Status
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if s.Upgrade == nil {
		s.Upgrade = &control.Upgrade{}
	}
	return &s, nil
}
