package harness

import (
	"bufio"
	"encoding/json"
	"io"
	"strings"
	"sync"
	"testing"
	"time"
)

// Event is one message of the master's log.
type Event struct {
	Name   string // the field event
	Fields map[string]any
	Line   string
}

// Str returns a field that is a text, "" if it is not there.
func (e Event) Str(key string) string {
	s, _ := e.Fields[key].(string)
	return s
}

// Int returns a field that is a number, -1 if it is not there.
func (e Event) Int(key string) int { return int(e.Num(key)) }

// Num returns a field that is a number, -1 if it is not there.
func (e Event) Num(key string) float64 {
	if n, ok := e.Fields[key].(float64); ok {
		return n
	}
	return -1
}

// Bool returns a field that is true or false.
func (e Event) Bool(key string) bool {
	b, _ := e.Fields[key].(bool)
	return b
}

// Match says which events are meant.
type Match func(Event) bool

// Named matches by the name of the event.
func Named(name string) Match { return func(e Event) bool { return e.Name == name } }

// OfSlot matches an event of a worker.
func OfSlot(name string, slot int) Match {
	return func(e Event) bool { return e.Name == name && e.Int("worker") == slot }
}

// stream is one output of a master, line by line.
type stream struct {
	mu      sync.Mutex
	lines   []string
	events  []Event
	changed chan struct{} // closed and replaced with each line
	ended   chan struct{} // closed when nobody holds the pipe any more
}

func newStream() *stream {
	return &stream{changed: make(chan struct{}), ended: make(chan struct{})}
}

// read takes in r until its end, and closes it. What waits for it is ended.
func (s *stream) read(r io.ReadCloser) {
	defer close(s.ended)
	defer r.Close()
	in := bufio.NewReaderSize(r, 1<<16)
	for {
		line, err := in.ReadString('\n')
		if line != "" {
			s.add(strings.TrimSuffix(line, "\n"))
		}
		if err != nil {
			return
		}
	}
}

func (s *stream) add(line string) {
	e := Event{Line: line}
	if strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &e.Fields) == nil {
		e.Name = e.Str("event")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line)
	if e.Name != "" {
		s.events = append(s.events, e)
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// find returns the first n events from index on that match, and what is closed
// when there are more.
func (s *stream) find(from, n int, match Match) ([]Event, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []Event
	for _, e := range s.events[min(from, len(s.events)):] {
		if match(e) {
			if found = append(found, e); len(found) == n {
				break
			}
		}
	}
	return found, s.changed
}

func (s *stream) mark() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.events)
}

// Text returns everything that came until now.
func (s *stream) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.lines, "\n")
}

// Mark returns the present end of the log, for WaitFrom.
func (m *Master) Mark() int { return m.log.mark() }

// Wait waits for an event, also one that has been, and returns it. The test fails
// if it does not come.
func (m *Master) Wait(match Match) Event {
	m.t.Helper()
	return m.WaitFrom(0, 1, match)[0]
}

// WaitFrom waits for n events that came after a Mark.
func (m *Master) WaitFrom(mark, n int, match Match) []Event {
	m.t.Helper()
	deadline := time.NewTimer(Patience)
	defer deadline.Stop()
	for {
		found, changed := m.log.find(mark, n, match)
		if len(found) == n {
			return found
		}
		select {
		case <-changed:
		case <-m.log.ended:
			if found, _ := m.log.find(mark, n, match); len(found) == n {
				return found
			}
			m.t.Fatalf("the log has ended, and only %d of %d awaited events came", len(found), n)
		case <-deadline.C:
			m.t.Fatalf("only %d of %d awaited events came in %v", len(found), n, Patience)
		}
	}
}

// Events returns the events so far that match; nil: all.
func (m *Master) Events(match Match) []Event {
	if match == nil {
		match = func(Event) bool { return true }
	}
	m.catchUp()
	found, _ := m.log.find(0, -1, match)
	return found
}

// catchUp waits for what a master that has ended had still written; not for workers that
// live on and hold its output.
func (m *Master) catchUp() {
	if !m.gone() {
		return
	}
	m.caughtUp.Do(func() {
		limit := time.NewTimer(time.Second)
		defer limit.Stop()
		for _, s := range []*stream{m.log, m.out} {
			select {
			case <-s.ended:
			case <-limit.C:
				return
			}
		}
	})
}

// Log returns everything that the master, and workers whose output is raw, have
// written to stderr until now.
func (m *Master) Log() string { m.catchUp(); return m.log.text() }

// Stdout is Log for stdout.
func (m *Master) Stdout() string { m.catchUp(); return m.out.text() }

// WaitLog waits until the log contains a text.
func (m *Master) WaitLog(text string) {
	m.t.Helper()
	Poll(m.t, "the log to contain "+text, func() error { return contains(m.Log(), text) })
}

// WaitStdout waits until the standard output contains a text.
func (m *Master) WaitStdout(text string) {
	m.t.Helper()
	Poll(m.t, "stdout to contain "+text, func() error { return contains(m.Stdout(), text) })
}

// Poll calls f, ever more rarely, until it returns nil, and fails the test if it
// does not in time.
func Poll(t testing.TB, what string, f func() error) {
	t.Helper()
	if err := poll(Patience, f); err != nil {
		t.Fatalf("waited %v for %s: %v", Patience, what, err)
	}
}

func poll(patience time.Duration, f func() error) error {
	return pollFrom(time.Millisecond, patience, f)
}

// pollFrom begins with that pause; the later ones are longer.
func pollFrom(pause, patience time.Duration, f func() error) error {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for ; ; pause = min(2*pause, 50*time.Millisecond) {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-deadline.C:
			return err
		case <-time.After(pause):
		}
	}
}
