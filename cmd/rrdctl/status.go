//go:build unix

package main

import (
	"fmt"
	"slices"
	"strings"

	"rrd/cmd/internal/control"
)

// workerColumns are those of status, workers and top, most important first by drop.
var workerColumns = []column{
	{title: "SLOT", right: true},
	{title: "PID", right: true},
	{title: "GEN", right: true, drop: 9},
	{title: "STATE", least: 9}, // so that most changes of state move nothing
	{title: "UPTIME", right: true, drop: 1},
	{title: "CONN/S", right: true, drop: 2, rare: true}, // top only
	{title: "CONNS", right: true, drop: 7, rare: true},
	{title: "ACTIVE", right: true, drop: 3, rare: true},
	{title: "INFLIGHT", right: true, drop: 4, rare: true},
	{title: "REJ", right: true, drop: 9, rare: true},
	{title: "FAIL", right: true, drop: 10, rare: true},
	{title: "RESTARTS", right: true, drop: 6},
	{title: "CPU%", right: true, drop: 3, rare: true}, // top only
	{title: "CPU", right: true, drop: 8, rare: true},
	{title: "RSS", right: true, drop: 4, rare: true},
	{title: "FDS", right: true, drop: 11, rare: true},
	{title: "BEAT", right: true, drop: 5, rare: true}, // who has stopped shows here first
	{title: "LAST EXIT", drop: 12, rare: true},
}

// speed is what top works out between two looks; nil: not known.
type speed struct{ conns, cpu *float64 }

// workerTable has a row for each slot and for each further process of it. states
// are those of the rows. Under a policy other than rr the master does not see whom
// the workers serve.
func workerTable(workers []control.WorkerStatus, policy string, speeds map[int]speed) (t *table, states []string) {
	t = &table{columns: workerColumns}
	for i := range workers {
		w := &workers[i]
		row := workerRow(w, speeds[w.Slot])
		if policy != "rr" && w.Handoffs == 0 {
			for _, i := range []int{6, 8, 9, 10} {
				row[i] = "-"
			}
		}
		t.rows = append(t.rows, row)
		states = append(states, rowState(w))
		for _, o := range w.Others {
			row := make([]string, len(workerColumns))
			row[0], row[1], row[3], row[4] = plain(o.Name), number(o.PID), plain(o.State), age(o.Uptime)
			t.rows = append(t.rows, row)
			states = append(states, o.State)
		}
	}
	return t, states
}

// rowState is what the row of a worker is painted by.
func rowState(w *control.WorkerStatus) string {
	if w.Late && w.State == "ready" {
		return "late"
	}
	return w.State
}

func workerRow(w *control.WorkerStatus, s speed) []string {
	pid, generation, uptime := "-", "-", "-"
	if w.PID > 0 {
		pid, generation, uptime = number(w.PID), number(w.Generation), age(w.Uptime)
	}
	state := plain(w.State)
	switch {
	case w.State == "backoff" && w.Backoff > 0:
		uptime = "in " + age(w.Backoff)
	case w.Held:
		state += " held"
	case w.Late:
		state += " late"
	}
	return []string{
		number(w.Slot), pid, generation, state, uptime,
		or(s.conns, rate), count(w.Acks), or(w.Active, number), number(w.InFlight), count(w.Rejections), count(w.Failures), count(w.Restarts),
		or(s.cpu, func(v float64) string { return fmt.Sprintf("%.1f", v) }), or(w.CPU, age), or(w.RSS, size), or(w.FDs, number), or(w.Heard, age),
		plain(w.LastExit),
	}
}

// or formats what may not be known.
func or[T any](v *T, format func(T) string) string {
	if v == nil {
		return "-"
	}
	return format(*v)
}

// listenerTable has a row for each listener.
func listenerTable(listeners []control.ListenerStatus) *table {
	t := &table{columns: []column{
		{title: "LISTENER"},
		{title: "ADDRESS", drop: 2},
		{title: "ACCEPTED", right: true},
		{title: "ACKED", right: true, drop: 3},
		{title: "RESCUED", right: true, drop: 7},
		{title: "DROPPED", right: true, drop: 1},
		{title: "QUEUED", right: true, drop: 4},
		{title: "INFLIGHT", right: true, drop: 5},
		{title: "KERNEL", right: true, drop: 6, rare: true},
		{title: "LAW", drop: 3},
		{title: "PAUSED", drop: 8, rare: true},
	}}
	for i := range listeners {
		l := &listeners[i]
		address := plain(l.Address)
		if l.Network == "unix" || strings.HasPrefix(l.Network, "udp") {
			address = l.Network + " " + address
		}
		row := []string{plain(l.Name), address, "-", "-", "-", "-", "-", "-", "-", "shared", ""}
		if q := l.KernelQueue; q != nil {
			row[8] = fmt.Sprintf("%d/%d", q.Length, q.Limit)
		}
		if !l.Shared || l.Accepted > 0 {
			row[2], row[3], row[4], row[5] = count(l.Accepted), count(l.Acked), count(l.Rescued), count(sum(l.Dropped))
			row[6], row[7], row[9] = number(l.Queued), number(l.InFlight), law(l.LawHolds)
		}
		if l.Paused {
			row[10] = "paused"
		}
		t.rows = append(t.rows, row)
	}
	return t
}

func law(holds bool) string {
	if holds {
		return "holds"
	}
	return "BROKEN"
}

func sum(counts map[string]uint64) (n uint64) {
	for _, c := range counts {
		n += c
	}
	return n
}

// total adds up what is asked of every listener.
func total[T int | uint64](listeners []control.ListenerStatus, of func(*control.ListenerStatus) T) (n T) {
	for i := range listeners {
		n += of(&listeners[i])
	}
	return n
}

func acceptedOf(l *control.ListenerStatus) uint64 { return l.Accepted }

func dropped(l *control.ListenerStatus) uint64 { return sum(l.Dropped) }

// condition is the state of the whole in a word.
func condition(s *control.Status) string {
	switch {
	case s.Stopping:
		return "stopping"
	case s.LameDuck:
		return "lame duck"
	case s.Draining:
		return "draining"
	case s.Ready:
		return "ready"
	}
	return "NOT READY: " + plain(s.Reason)
}

func readyWorkers(s *control.Status) (n int) {
	for i := range s.Workers {
		if s.Workers[i].State == "ready" {
			n++
		}
	}
	return n
}

func lawful(s *control.Status) bool {
	return !slices.ContainsFunc(s.Listeners, func(l control.ListenerStatus) bool { return !l.LawHolds })
}

// kernelQueue is that of all listeners, where the system tells it.
func kernelQueue(s *control.Status) string {
	length, limit := 0, 0
	for i := range s.Listeners {
		if q := s.Listeners[i].KernelQueue; q != nil {
			length, limit = length+q.Length, limit+q.Limit
		}
	}
	if limit == 0 {
		return ""
	}
	return fmt.Sprintf("  kernel queue %d/%d", length, limit)
}

// helpers names the helper processes.
func helpers(s *control.Status) string {
	pids := ""
	for _, h := range s.Helpers {
		pids += fmt.Sprintf(" %d", h.PID)
	}
	if pids == "" {
		return ""
	}
	return "  helpers" + pids
}

// helperHangs is the age in seconds from which a helper's call gets a line.
const helperHangs = 1

// headLines tell of the whole: accepted is a number or a rate, dispatch the counts
// of the histogram, of all time or of a part.
func headLines(s *control.Status, accepted string, dispatch []uint64) []string {
	lines := []string{
		fmt.Sprintf("rrd %s  pid %d  up %s  policy %s  %s", plain(s.Version), s.PID, age(s.Time.Sub(s.Started).Seconds()), plain(s.Policy), condition(s)),
		fmt.Sprintf("workers %d/%d ready  accepted %s  queue %d/%d  in flight %d  dropped %s",
			readyWorkers(s), s.Desired, accepted, total(s.Listeners, func(l *control.ListenerStatus) int { return l.Queued }), s.QueueLimit,
			total(s.Listeners, func(l *control.ListenerStatus) int { return l.InFlight }), count(total(s.Listeners, dropped))),
		fmt.Sprintf("dispatch p50 %s p99 %s%s%s  law %s",
			quantile(s.Dispatch.Bounds, dispatch, 0.5), quantile(s.Dispatch.Bounds, dispatch, 0.99), kernelQueue(s), helpers(s), law(lawful(s))),
	}
	for _, h := range s.Helpers {
		if h.Busy >= helperHangs {
			lines = append(lines, fmt.Sprintf("helper %d has been held up by a worker for %s", h.PID, age(h.Busy)))
		}
	}
	if r := s.Reload; r != nil && !r.OK {
		lines = append(lines, fmt.Sprintf("LAST RELOAD FAILED, the configuration is that of %s ago: %s", age(s.Time.Sub(r.LastSuccess).Seconds()), plain(r.Error)))
	}
	return lines
}

// statusLines is the whole of rrdctl status.
func (a *app) statusLines(s *control.Status) (lines []string) {
	accepted := count(total(s.Listeners, acceptedOf))
	for _, l := range headLines(s, accepted, s.Dispatch.Counts) {
		// Not cut: a reason is worth a second line.
		if strings.Contains(l, "NOT READY") || strings.Contains(l, "FAILED") || strings.Contains(l, "BROKEN") {
			l = a.paint(l, "failed")
		}
		lines = append(lines, l)
	}
	if len(s.Listeners) > 0 {
		lines = append(lines, "")
		for i, l := range listenerTable(s.Listeners).lines(a.width) {
			if i > 0 && !s.Listeners[i-1].LawHolds {
				l = a.paint(l, "failed")
			}
			lines = append(lines, l)
		}
	}
	return append(append(lines, ""), a.workerLines(s.Workers, s.Policy)...)
}

func (a *app) workerLines(workers []control.WorkerStatus, policy string) []string {
	t, states := workerTable(workers, policy, nil)
	lines := t.lines(a.width)
	for i, state := range states {
		lines[i+1] = a.paint(lines[i+1], state)
	}
	return lines
}
