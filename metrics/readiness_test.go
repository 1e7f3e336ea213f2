package metrics

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestReady(t *testing.T) {
	for _, c := range []struct {
		name    string
		change  func(s *Snapshot)
		err     error
		workers int
		reason  string // "": ready
	}{
		{"two workers", func(*Snapshot) {}, nil, 2, ""},
		{"zero rule takes one", func(s *Snapshot) { s.ReadyRule = ReadyRule{}; s.Workers = s.Workers[:1] }, nil, 1, ""},
		{"no worker", func(s *Snapshot) { s.Workers = nil }, nil, 0, "not enough workers are ready: --ready-min is 1"},
		{"states that do not serve", func(s *Snapshot) { s.Workers[0].State, s.Workers[1].State = "starting", StateUnhealthy }, nil, 0, "not enough workers are ready: --ready-min is 1"},
		{"fewer than the minimum", func(s *Snapshot) { s.ReadyRule.Min = 3 }, nil, 2, "not enough workers are ready: --ready-min is 3"},
		{"as many as the minimum", func(s *Snapshot) { s.ReadyRule.Min = 2 }, nil, 2, ""},
		{"all late", func(s *Snapshot) { s.Workers[0].LateFor, s.Workers[1].LateFor = lateAfter, time.Minute }, nil, 0,
			"not enough workers are ready and answer: --ready-min is 1, and late for 500ms or longer: 2"},
		{"not late for long", func(s *Snapshot) { s.Workers[0].LateFor, s.Workers[1].LateFor = lateAfter-1, time.Minute }, nil, 1, ""},
		{"late and draining", func(s *Snapshot) { s.Workers[0].LateFor, s.Workers[0].State = time.Minute, "draining" }, nil, 1, ""},
		{"young queue", func(s *Snapshot) { s.OldestWait = 5*time.Second - 1 }, nil, 2, ""},
		{"old queue", func(s *Snapshot) { s.OldestWait = 5 * time.Second }, nil, 2, "a connection has waited for a worker for 5s: --ready-max-wait is 5s"},
		{"old queue, off", func(s *Snapshot) { s.OldestWait, s.ReadyRule.MaxWait = time.Hour, 0 }, nil, 2, ""},
		{"time-out just now", func(s *Snapshot) { s.LastQueueTimeout = s.Time }, nil, 2, "a connection was closed by --queue-timeout 0s ago: --ready-max-wait is 5s"},
		{"time-out after the copy", func(s *Snapshot) { s.LastQueueTimeout = s.Time.Add(time.Second) }, nil, 2, "a connection was closed by --queue-timeout 0s ago: --ready-max-wait is 5s"},
		{"time-out long ago", func(s *Snapshot) { s.LastQueueTimeout = s.Time.Add(-5 * time.Second) }, nil, 2, ""},
		{"time-out, off", func(s *Snapshot) { s.LastQueueTimeout, s.ReadyRule.MaxWait = s.Time, 0 }, nil, 2, ""},
		{"unreachable", func(s *Snapshot) {
			s.Listeners = []Listener{{Name: "a"}, {Name: "web", Unreachable: "its file was removed"}}
		}, nil, 2,
			"no client can connect to listener web: its file was removed"},
		{"draining", func(s *Snapshot) { s.Draining = true }, nil, 2, "draining"},
		{"no answer", func(*Snapshot) {}, errors.New("no copy within 1s"), 0, "the dispatch loop does not answer: no copy within 1s"},
	} {
		s := &Snapshot{Time: time.Unix(1700000000, 0), Desired: 2, ReadyRule: ReadyRule{Min: 1, MaxWait: 5 * time.Second},
			Workers: []Worker{{Slot: 0, State: "ready"}, {Slot: 1, State: "ready"}}}
		c.change(s)
		if got, want := Ready(s, c.err), (Readiness{OK: c.reason == "", Workers: c.workers, Reason: c.reason}); got != want {
			t.Errorf("%s: %+v, want %+v", c.name, got, want)
		}
	}
	if got := Ready(nil, nil); got.OK || got.Reason == "" {
		t.Errorf("without a copy: %+v", got)
	}
}

func TestReadyPage(t *testing.T) {
	snap := fullSnapshot()
	snap.ReadyRule = ReadyRule{Min: 2, MaxWait: time.Second}
	snap.OldestWait = 1500 * time.Millisecond
	snap.Workers[0].LateFor = 2 * time.Second
	h := NewServer(New(Config{Source: fixed(snap)}), ServerConfig{}).Handler()
	want := "not ready: not enough workers are ready and answer: --ready-min is 2, and late for 500ms or longer: 1 (0 of 2 workers are ready)\n"
	if rec := get(h, "GET", "/-/ready"); rec.Code != 503 || rec.Body.String() != want {
		t.Errorf("%d %q, want %q", rec.Code, rec.Body, want)
	}
	body := get(h, "GET", "/status.json").Body.String()
	for _, want := range []string{`"ready": false`, `"oldest_wait_seconds": 1.5`, `"late_seconds": 2`} {
		if !strings.Contains(body, want) {
			t.Errorf("/status.json has no %s", want)
		}
	}
}
