//go:build unix

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"

	"rrd/cmd/internal/control"
)

// The live view. What it shows is worked out from two looks at the master, so that
// rates are those of the time between; nothing is kept longer.

// sortKeys are what rows can be ordered by, in the order of < and >.
var sortKeys = []string{"slot", "conns", "active", "cpu", "rss", "restarts", "uptime"}

func (a *app) topCommand() *cobra.Command {
	once, by, interval := false, "slot", time.Second
	c := a.verb("top", "live view of the workers", 0, func([]string) error {
		if !slices.Contains(sortKeys, by) {
			return fmt.Errorf("--sort: %q is not one of %s: %w", by, strings.Join(sortKeys, ", "), errUsage)
		}
		if interval < 100*time.Millisecond || interval > time.Minute {
			return fmt.Errorf("--interval: %v is not from 100ms to 1m: %w", interval, errUsage)
		}
		if once || !a.terminal || a.json() {
			return a.topOnce(by, interval)
		}
		return a.top(by, interval)
	})
	c.Flags().BoolVar(&once, "once", false, "print one view and end, as it does where there is no terminal")
	c.Flags().StringVar(&by, "sort", by, strings.Join(sortKeys, ", "))
	c.Flags().DurationVar(&interval, "interval", interval, "time between two looks")
	return c
}

// look asks the master.
func (a *app) look() (*control.Status, json.RawMessage, error) {
	raw, err := a.call(control.CmdStatus, nil, nil)
	if err != nil {
		return nil, nil, err
	}
	s := new(control.Status)
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, nil, fmt.Errorf("read the answer: %w", err)
	}
	return s, raw, nil
}

func (a *app) topOnce(by string, interval time.Duration) error {
	before, _, err := a.look()
	if err != nil {
		return err
	}
	select {
	case <-time.After(interval):
	case <-a.ctx.Done():
		return errors.New("interrupted")
	}
	now, raw, err := a.look()
	if err != nil {
		return err
	}
	if a.json() {
		a.writeJSON(raw)
		return nil
	}
	v := topView{now: now, before: before, by: by, width: a.width}
	a.lines(v.head())
	a.lines([]string{""})
	table, _ := v.table()
	a.lines(table)
	return nil
}

// topView is what there is to see.
type topView struct {
	now, before   *control.Status // before is nil at the first look
	by            string
	reverse       bool
	width, height int
}

// elapsed is the time between the two looks in seconds, 0 if there was one only.
func (v *topView) elapsed() float64 {
	if v.before == nil || v.before.PID != v.now.PID {
		return 0
	}
	return max(v.now.Time.Sub(v.before.Time).Seconds(), 0)
}

// head is the lines above the table.
func (v *topView) head() []string {
	accepted, counts := "-/s", v.now.Dispatch.Counts
	if t := v.elapsed(); t > 0 {
		accepted = rate(float64(total(v.now.Listeners, acceptedOf)-total(v.before.Listeners, acceptedOf))/t) + "/s"
		if was := v.before.Dispatch.Counts; len(was) == len(counts) {
			counts = slices.Clone(counts)
			for i := range counts {
				counts[i] -= was[i]
			}
		}
	}
	lines := headLines(v.now, accepted, counts)
	for i := range lines {
		lines[i] = cut(lines[i], v.width)
	}
	return lines
}

// speeds are the rates of each slot whose process is the same as before.
func (v *topView) speeds() map[int]speed {
	speeds := make(map[int]speed)
	t := v.elapsed()
	if t == 0 {
		return speeds
	}
	before := make(map[int]*control.WorkerStatus)
	for i := range v.before.Workers {
		before[v.before.Workers[i].Slot] = &v.before.Workers[i]
	}
	for i := range v.now.Workers {
		now := &v.now.Workers[i]
		was := before[now.Slot]
		if was == nil {
			continue
		}
		var s speed
		if v.now.Policy == "rr" {
			conns := float64(now.Acks-was.Acks) / t
			s.conns = &conns
		}
		if now.CPU != nil && was.CPU != nil && now.PID == was.PID {
			cpu := max(*now.CPU-*was.CPU, 0) / t * 100
			s.cpu = &cpu
		}
		speeds[now.Slot] = s
	}
	return speeds
}

// table is the heading and the rows in order, and the slot of each row.
func (v *topView) table() (lines []string, slots []int) {
	speeds := v.speeds()
	workers := slices.Clone(v.now.Workers)
	slices.SortStableFunc(workers, func(a, b control.WorkerStatus) int {
		n := cmp.Or(-cmp.Compare(v.key(&a, speeds), v.key(&b, speeds)), cmp.Compare(a.Slot, b.Slot))
		if v.reverse {
			n = -n
		}
		return n
	})
	for i := range workers {
		workers[i].CPU, workers[i].LastExit = nil, "" // their columns are those of status
	}
	t, _ := workerTable(workers, v.now.Policy, speeds)
	for i := range workers {
		for range 1 + len(workers[i].Others) {
			slots = append(slots, workers[i].Slot)
		}
	}
	return t.lines(v.width), slots
}

// key is what a worker is ordered by: most first, slots and ages as they come.
func (v *topView) key(w *control.WorkerStatus, speeds map[int]speed) float64 {
	s := speeds[w.Slot]
	switch v.by {
	case "conns":
		return value(s.conns)
	case "active":
		return float64(value(w.Active))
	case "cpu":
		return value(s.cpu)
	case "rss":
		return float64(value(w.RSS))
	case "restarts":
		return float64(w.Restarts)
	case "uptime":
		return w.Uptime
	}
	return -float64(w.Slot)
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// top runs the view on the terminal.
func (a *app) top(by string, interval time.Duration) error {
	m := &topModel{app: a, view: topView{by: by}, interval: interval}
	p := tea.NewProgram(m, tea.WithContext(a.ctx), tea.WithInput(a.in), tea.WithOutput(a.out), tea.WithoutSignalHandler())
	if _, err := p.Run(); err != nil && a.ctx.Err() == nil {
		return fmt.Errorf("show the live view: %w", err)
	}
	return m.fatal
}

// topModel is the view with its keys. bubbletea calls it from one goroutine.
type topModel struct {
	app      *app
	view     topView
	interval time.Duration
	slot     int // selected
	first    int // row at the top
	confirm  *question
	message  string // of the last action
	failed   bool   // it is one
	lost     error  // the master did not answer at the last look
	fatal    error  // there was none from the beginning
}

// question waits for a yes.
type question struct {
	text, cmd string
	slot      int
}

type (
	lookMsg struct{}
	seenMsg struct {
		status *control.Status
		err    error
	}
	doneMsg struct {
		text string
		err  error
	}
)

// Init looks at once.
func (m *topModel) Init() tea.Cmd { return m.see }

// see is run by a goroutine of bubbletea's.
func (m *topModel) see() tea.Msg {
	s, _, err := m.app.look()
	return seenMsg{s, err}
}

// Update takes what has happened.
func (m *topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.view.width, m.view.height = msg.Width, msg.Height
	case lookMsg:
		return m, m.see
	case seenMsg:
		if m.lost = msg.err; msg.err == nil {
			m.view.before, m.view.now = m.view.now, msg.status
		} else if m.view.now == nil {
			m.fatal = msg.err
			return m, tea.Quit
		}
		return m, tea.Tick(m.interval, func(time.Time) tea.Msg { return lookMsg{} })
	case doneMsg:
		if m.message, m.failed = msg.text, msg.err != nil; msg.err != nil {
			m.message = plain(msg.err.Error())
		}
	case tea.KeyPressMsg:
		return m, m.key(msg.String())
	}
	return m, nil
}

func (m *topModel) key(key string) tea.Cmd {
	if key == "q" || key == "ctrl+c" {
		return tea.Quit
	}
	if m.view.now == nil {
		return nil
	}
	if q := m.confirm; q != nil {
		m.confirm = nil
		if key != "y" {
			m.message, m.failed = "nothing done", false
			return nil
		}
		m.message, m.failed = q.text+" ...", false
		return m.act(q)
	}
	switch key {
	case "up":
		m.move(-1)
	case "down":
		m.move(1)
	case "pgup":
		m.move(-m.rows())
	case "pgdown":
		m.move(m.rows())
	case "home":
		m.move(-len(m.view.now.Workers) * 2)
	case "end":
		m.move(len(m.view.now.Workers) * 2)
	case ">", "right":
		m.sort(1)
	case "<", "left":
		m.sort(-1)
	case "r":
		m.view.reverse = !m.view.reverse
		m.sort(0)
	case "d":
		m.ask("drain", control.CmdWorkersDrain)
	case "u":
		m.ask("undrain", control.CmdWorkersUndrain)
	case "k":
		m.ask("kill", control.CmdWorkersKill)
	}
	return nil
}

// sort selects what is first in the new order.
func (m *topModel) sort(by int) {
	at := slices.Index(sortKeys, m.view.by)
	m.view.by = sortKeys[(at+by+len(sortKeys))%len(sortKeys)]
	if _, slots := m.view.table(); len(slots) > 0 {
		m.slot = slots[0]
	}
}

// move selects another slot, by rows of the table.
func (m *topModel) move(by int) {
	_, slots := m.view.table()
	if len(slots) == 0 {
		return
	}
	at := max(slices.Index(slots, m.slot), 0)
	to := min(max(at+by, 0), len(slots)-1)
	for to > 0 && to < len(slots)-1 && slots[to] == m.slot { // a further process of the same slot
		to += cmp.Compare(by, 0)
	}
	m.slot = slots[to]
}

func (m *topModel) ask(verb, cmd string) {
	if i := slices.IndexFunc(m.view.now.Workers, func(w control.WorkerStatus) bool { return w.Slot == m.slot }); i >= 0 {
		process := "no process"
		if pid := m.view.now.Workers[i].PID; pid > 0 {
			process = "pid " + number(pid)
		}
		m.confirm = &question{fmt.Sprintf("%s slot %d (%s)", verb, m.slot, process), cmd, m.slot}
	}
}

// act does what was confirmed, in a goroutine of bubbletea's.
func (m *topModel) act(q *question) tea.Cmd {
	return func() tea.Msg {
		_, err := m.app.call(q.cmd, control.SlotArgs{Slot: &q.slot}, nil)
		return doneMsg{q.text + ": done", err}
	}
}

// rows is how many rows of the table there is room for.
func (m *topModel) rows() int {
	taken := len(m.view.head()) + 4 // a blank line, the heading, message and keys
	return max(m.view.height-taken, 1)
}

// View draws the whole screen.
func (m *topModel) View() tea.View {
	v := tea.NewView(strings.Join(m.screen(), "\n"))
	v.AltScreen = true
	return v
}

func (m *topModel) screen() []string {
	if m.view.now == nil || m.view.width == 0 {
		return []string{"..."}
	}
	a := m.app
	lines := m.view.head()
	if m.lost != nil {
		lines[0] = a.paint(cut("NO ANSWER: "+plain(m.lost.Error()), m.view.width), "failed")
	} else if a.color {
		lines[0] = bold + lines[0] + reset
	}
	table, slots := m.view.table()
	rows := m.rows()
	at := max(slices.Index(slots, m.slot), 0)
	m.first = min(max(m.first, at-rows+1), at, max(len(slots)-rows, 0))
	last := min(m.first+rows, len(slots))
	lines = append(lines, "", m.heading(table[0]))
	states := make(map[int]string)
	for i := range m.view.now.Workers {
		states[m.view.now.Workers[i].Slot] = rowState(&m.view.now.Workers[i])
	}
	for i := m.first; i < last; i++ {
		line := table[1+i]
		switch {
		case i == at && a.color:
			line = invert + line + strings.Repeat(" ", max(m.view.width-len([]rune(line)), 0)) + reset
		case i == at:
			line = cut(">"+strings.TrimPrefix(line, " "), m.view.width)
		default:
			line = a.paint(line, states[slots[i]])
		}
		lines = append(lines, line)
	}
	for len(lines) < m.view.height-2 {
		lines = append(lines, "")
	}
	return append(lines, m.messageLine(), m.keysLine(last, len(slots)))
}

func (m *topModel) heading(line string) string {
	if m.app.color {
		return bold + line + reset
	}
	return line
}

func (m *topModel) messageLine() string {
	switch {
	case m.confirm != nil:
		return cut(m.confirm.text+"? y or n", m.view.width)
	case m.failed:
		return m.app.paint(cut(m.message, m.view.width), "failed")
	}
	return cut(m.message, m.view.width)
}

// keysLine also says which rows are shown, if not all, and their order.
func (m *topModel) keysLine(last, all int) string {
	keys := "q quit  up/down select  d drain  u undrain  k kill  < > sort: " + m.view.by
	if m.view.reverse {
		keys += " (r)"
	}
	if all > m.rows() {
		keys += fmt.Sprintf("  %d-%d/%d", m.first+1, last, all)
	}
	return cut(keys, m.view.width)
}
