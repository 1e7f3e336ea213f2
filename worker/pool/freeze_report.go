package pool

import (
	"fmt"
	"slices"
	"syscall"
	"time"
)

// Report is something that the pool was told. While it is frozen reports are kept, as
// they cross an upgrade with its State.
type Report struct {
	Kind   string // one of reportKinds
	ID     uint64 // of the worker
	Reason string
	Signal int           // of an abort
	PID    int           // of a reader
	Drain  time.Duration // of a stop within a time
	Asked  bool          `json:",omitempty"` // Kill: somebody asked for it
}

const (
	reportSpoke      = "spoke"
	reportReady      = "ready"
	reportNotified   = "notified"
	reportDrained    = "drained"
	reportLeaves     = "leaves"
	reportHungUp     = "hung up"
	reportReader     = "reader"
	reportKill       = "kill"
	reportAbort      = "abort"
	reportRetire     = "retire"
	reportStop       = "stop"
	reportStopWithin = "stop within"
	reportStopNow    = "stop now"
)

var reportKinds = []string{reportSpoke, reportReady, reportNotified, reportDrained, reportLeaves, reportHungUp,
	reportReader, reportKill, reportAbort, reportRetire, reportStop, reportStopWithin, reportStopNow}

func (r *Report) check() error {
	if !slices.Contains(reportKinds, r.Kind) {
		return fmt.Errorf("report %q: unknown kind", r.Kind)
	}
	return nil
}

// report passes r to the loop: at once, after Thaw, or in another program.
func (p *Pool) report(r Report) {
	p.phaseMu.Lock()
	defer p.phaseMu.Unlock()
	switch p.phase {
	case phaseOver:
	case phaseFrozen:
		p.kept = append(p.kept, r)
	default:
		p.inbox.post(func() { p.handle(r) })
	}
}

// handle does what a report calls for. One of a worker that is gone is ignored.
func (p *Pool) handle(r Report) {
	switch r.Kind {
	case reportStop:
		p.stop()
		return
	case reportStopWithin:
		p.cfg.DrainTimeout = r.Drain
		p.stop()
		return
	case reportStopNow:
		p.stopNow()
		return
	}
	pr := p.procs[r.ID]
	if pr == nil {
		return
	}
	switch r.Kind {
	case reportSpoke:
		p.spoke(pr)
	case reportReady:
		p.spoke(pr)
		p.becomeReady(pr)
	case reportNotified:
		p.notified(pr)
	case reportDrained:
		p.drained(pr)
	case reportLeaves:
		pr.leaves = true
	case reportHungUp:
		p.hungUp(pr)
	case reportReader:
		p.setReader(pr, r.PID, p.sys.watch(r.PID))
	case reportKill:
		pr.killAsked = pr.killAsked || r.Asked && !pr.killed && !pr.aborted
		p.kill(pr, r.Reason)
	case reportAbort:
		p.abort(pr, syscall.Signal(r.Signal), r.Reason)
	case reportRetire:
		p.retire(pr, r.Reason)
	}
}
