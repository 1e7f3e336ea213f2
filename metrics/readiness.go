package metrics

import (
	"fmt"
	"time"
)

// lateAfter is how long a worker may have been late and still count as ready. A worker
// that recovers sooner is busy, and its clients hardly notice.
const lateAfter = 500 * time.Millisecond

// ReadyRule is the condition of readiness. The zero value asks for one worker.
type ReadyRule struct {
	// Min is the number of workers that must be ready and answer; 0 means 1.
	Min int
	// MaxWait bounds the age of the oldest waiting connection; 0 means no bound.
	MaxWait time.Duration
}

// Readiness is the answer of Ready.
type Readiness struct {
	OK bool
	// Workers is the number of workers that are ready and answer.
	Workers int
	// Reason is the reason why OK is false, in a few words.
	Reason string
}

// Ready decides whether load balancers should send new clients here. It is the only rule:
// /-/ready, /status.json, rrdctl status and STATUS= show its result. s and err are the
// results of a Source.
func Ready(s *Snapshot, err error) Readiness {
	switch {
	case err != nil:
		return Readiness{Reason: "the dispatch loop does not answer: " + err.Error()}
	case s == nil:
		return Readiness{Reason: "the dispatch loop does not answer"}
	}
	r := Readiness{}
	late := 0
	for i := range s.Workers {
		switch w := &s.Workers[i]; {
		case w.State != readyState:
		case w.LateFor >= lateAfter:
			late++
		default:
			r.Workers++
		}
	}
	r.Reason = s.whyNotReady(r.Workers, late)
	r.OK = r.Reason == ""
	return r
}

// whyNotReady returns "" if the service is ready. workers is the number of ready workers
// that answer, and late the number of ready workers that do not.
func (s *Snapshot) whyNotReady(workers, late int) string {
	least, limit := max(s.ReadyRule.Min, 1), s.ReadyRule.MaxWait
	sinceTimeout := s.Time.Sub(s.LastQueueTimeout)
	switch {
	case s.Draining:
		return "draining"
	case workers < least && late > 0:
		return fmt.Sprintf("not enough workers are ready and answer: --ready-min is %d, and late for %v or longer: %d", least, lateAfter, late)
	case workers < least:
		return fmt.Sprintf("not enough workers are ready: --ready-min is %d", least)
	case limit <= 0:
	case s.OldestWait >= limit:
		return fmt.Sprintf("a connection has waited for a worker for %v: --ready-max-wait is %v", s.OldestWait.Round(time.Millisecond), limit)
	case !s.LastQueueTimeout.IsZero() && sinceTimeout < limit:
		return fmt.Sprintf("a connection was closed by --queue-timeout %v ago: --ready-max-wait is %v", max(sinceTimeout, 0).Round(time.Millisecond), limit)
	}
	for i := range s.Listeners {
		if ln := &s.Listeners[i]; ln.Unreachable != "" {
			return fmt.Sprintf("no client can connect to listener %s: %s", ln.Name, ln.Unreachable)
		}
	}
	return ""
}
