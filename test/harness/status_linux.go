package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Status is /status.json, read as a user's script would.
type Status struct {
	Ready        bool
	Reason       string
	Stale        string
	Policy       string
	Draining     bool
	Desired      int `json:"workers_desired"`
	Law          map[string]Law
	Listeners    []Listener
	Workers      []Worker
	Redispatches map[string]int
}

// Law is one listener's.
type Law struct {
	Holds   bool
	In, Out int
}

// Listener is one listener of the Status.
type Listener struct {
	Name     string
	Network  string
	Address  string
	Shared   bool
	Accepted int
	Acked    int
	Rescued  int
	Dropped  map[string]int
	Queued   int
	InFlight int `json:"in_flight"`
	Paused   bool
}

// Worker is one slot of the Status.
type Worker struct {
	Slot       int
	PID        int
	Generation int
	State      string
	Handoffs   int
	Acks       int
	Rejections map[string]int
	Failures   map[string]int
	InFlight   int  `json:"in_flight"`
	Active     *int `json:"connections_active"`
	Starts     map[string]int
	Exits      map[string]int
	Backoff    float64 `json:"respawn_backoff_seconds"`
	Late       bool
}

func (l *Listener) dropped() int { return sum(l.Dropped) }

// Total adds up a count over all listeners.
func (s *Status) Total(of func(*Listener) int) (n int) {
	for i := range s.Listeners {
		n += of(&s.Listeners[i])
	}
	return n
}

// Accepted, Acked, Dropped and Open add up all listeners. Open is what is queued
// or in flight.
func (s *Status) Accepted() int { return s.Total(func(l *Listener) int { return l.Accepted }) }
func (s *Status) Acked() int    { return s.Total(func(l *Listener) int { return l.Acked }) }
func (s *Status) Dropped() int  { return s.Total((*Listener).dropped) }
func (s *Status) Open() int     { return s.Total(func(l *Listener) int { return l.Queued + l.InFlight }) }

// checkLaw computes the law itself, from the same counts.
func (s *Status) checkLaw() error {
	for i := range s.Listeners {
		l := &s.Listeners[i]
		in, out := l.Accepted+l.Rescued, l.Acked+l.dropped()+l.Queued+l.InFlight
		if law := s.Law[l.Name]; in != out || !law.Holds || law.In != in || law.Out != out {
			return fmt.Errorf("law broken at %s: %+v, and rrd says %+v", l.Name, *l, law)
		}
	}
	for _, w := range s.Workers { // likewise for each slot; other failures are sends, of which nothing came
		unanswered := w.Failures["ack_timeout"] + w.Failures["worker_exit"]
		if out := w.Acks + sum(w.Rejections) + unanswered + w.InFlight; w.Handoffs != out {
			return fmt.Errorf("slot %d was handed %d connections and %d are accounted for: %+v", w.Slot, w.Handoffs, out, w)
		}
	}
	return nil
}

func sum(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

// newClient returns a client of one master that has one connection and keeps it, so
// that the master's descriptors and goroutines are the same at each look.
func newClient() *http.Client {
	return &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1, IdleConnTimeout: time.Hour}, Timeout: 10 * time.Second}
}

// Get asks the master's HTTP address for a path.
func (m *Master) Get(path string) (status int, body string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+m.metrics+path, nil)
	if err != nil {
		return 0, "", err
	}
	res, err := m.client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	return res.StatusCode, string(text), err
}

func (m *Master) status() (*Status, error) {
	code, body, err := m.Get("/status.json")
	if err != nil {
		return nil, err
	}
	s := new(Status)
	if err := json.Unmarshal([]byte(body), s); err != nil {
		return nil, fmt.Errorf("status %d: %w in %.200q", code, err, body)
	}
	if s.Stale == "" {
		err = s.checkLaw()
	}
	return s, err
}

// TryStatus is Status for tests in whose course the master may not answer.
func (m *Master) TryStatus() (*Status, error) { return m.status() }

// Status returns /status.json; the law holds in it, or the test fails.
func (m *Master) Status() *Status {
	m.t.Helper()
	s, err := m.status()
	if err != nil {
		m.t.Fatal(err)
	}
	return s
}

// WaitStatus waits until cond is true of the Status.
func (m *Master) WaitStatus(what string, cond func(*Status) bool) *Status {
	m.t.Helper()
	var last *Status
	Poll(m.t, what, func() error {
		s, err := m.status()
		if err != nil {
			return err
		}
		if last = s; !cond(s) {
			return fmt.Errorf("it is %+v", *s)
		}
		return nil
	})
	return last
}

// Idle waits until nothing waits for a worker or an answer.
func (m *Master) Idle() *Status {
	m.t.Helper()
	return m.WaitStatus("the master to be idle", func(s *Status) bool { return s.Open() == 0 })
}

// AllReady waits until every desired slot has a ready worker.
func (m *Master) AllReady() *Status {
	m.t.Helper()
	return m.WaitStatus("all workers to be ready", func(s *Status) bool { return s.ready() == s.Desired })
}

func (s *Status) ready() (n int) {
	for _, w := range s.Workers {
		if w.State == "ready" {
			n++
		}
	}
	return n
}

// PID returns the process that a slot has now; it fails the test if there is none.
func (m *Master) PID(slot int) int {
	m.t.Helper()
	for _, w := range m.Status().Workers {
		if w.Slot == slot && w.PID > 0 {
			return w.PID
		}
	}
	m.t.Fatalf("slot %d has no process", slot)
	return 0
}

// Metrics returns /metrics as text and its samples by their name with labels.
func (m *Master) Metrics() (text string, samples map[string]float64) {
	m.t.Helper()
	text, samples, err := m.scrape()
	if err != nil {
		m.t.Fatal(err)
	}
	return text, samples
}

func (m *Master) scrape() (string, map[string]float64, error) {
	code, text, err := m.Get("/metrics")
	if err != nil {
		return "", nil, err
	}
	if code != http.StatusOK {
		return "", nil, fmt.Errorf("/metrics: status %d: %s", code, text)
	}
	samples := make(map[string]float64)
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		i := strings.LastIndexByte(line, ' ')
		if i < 0 || line[0] == '#' {
			continue
		}
		v, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			return "", nil, fmt.Errorf("/metrics: %w in %q", err, line)
		}
		samples[line[:i]] = v
	}
	return text, samples, nil
}

// WatchLaw looks at the Status all the time until the returned function is
// called, which fails the test if the law was broken in any of them.
func (m *Master) WatchLaw() (stop func()) {
	w := &lawWatch{m: m, end: make(chan struct{}), ended: make(chan error, 1)}
	go w.run() // waited for in stop
	return w.stop
}

type lawWatch struct {
	m     *Master
	end   chan struct{}
	ended chan error
	over  bool
}

func (w *lawWatch) run() {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-w.end:
			w.ended <- nil
			return
		case <-tick.C:
		}
		_, err := w.m.status()
		var unreachable net.Error
		if err != nil && !errors.As(err, &unreachable) && !w.m.gone() {
			w.ended <- err
			return
		}
	}
}

func (w *lawWatch) stop() {
	w.m.t.Helper()
	if w.over {
		return
	}
	w.over = true
	close(w.end)
	if err := <-w.ended; err != nil {
		w.m.t.Errorf("while it was watched: %v", err)
	}
}
