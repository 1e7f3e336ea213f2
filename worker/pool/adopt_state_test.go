package pool

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"rrd/handoff"
)

// aState is one with a bit of everything.
func aState() *SavedState {
	return &SavedState{
		Booted: true, Desired: 2, LastID: 9, Generations: 2,
		Templates: []TemplateState{{Generation: 1, Argv: [][]byte{[]byte("a\xff")}, ExtraEnv: [][]byte{[]byte("A=b")}, NoFile: 64}},
		Startups:  []uint64{1, 2}, OutputLost: 3, OutputUntold: 1,
		Slots: []SlotState{{
			Starts:   map[string]uint64{"initial": 1, "crash": 2, "later": 3},
			Exits:    map[string]uint64{"oom": 1},
			LastExit: &ExitState{Cause: "oom", Code: -1, Signal: 9, LastWords: []byte("x\xff")},
			Worker: &ProcessState{ID: 9, Generation: 2, PID: 4000, State: StateReady, WasReady: true, ReadyAge: time.Hour,
				Timers: map[string]time.Duration{"later": 1},
				Output: &OutputState{Stdout: StreamState{FD: handoff.Own(1001), Half: []byte("ha\xfflf")}, Stderr: StreamState{FD: handoff.Own(1002)}},
				Notify: &NotifyState{FD: handoff.Own(1003), Name: []byte("@1")}},
			Older: []ProcessState{{ID: 3, Generation: 1, PID: 4001, State: StateDraining, Reader: 4002, Exit: &ExitState{Cause: "code"}, OutputDone: true}},
		}, {Start: &PlannedStart{In: time.Second, Pause: 2 * time.Second, Reason: "crash"}, Failures: 2}},
		Reports: []Report{{Kind: reportReady, ID: 9}},
	}
}

var restoreConfig = Config{Size: 1, Argv: []string{"worker"}, HelperPath: "helper", Env: []string{}}

func TestRestoredStateIsTheSame(t *testing.T) {
	p, err := Restore(restoreConfig, overJSON(t, aState()))
	if err != nil {
		t.Fatal(err)
	}
	snap := p.Snapshot()
	s := snap.Slots[0]
	if s.Starts[StartCrash] != 2 || s.Exits[CauseOOM] != 1 || s.LastExit.LastWords != "x\xff" || s.Restarts != 2 ||
		s.Older[0].State != StateOrphan || s.Older[0].ReaderPID != 4002 || snap.StartDurations.Total() != 3 {
		t.Errorf("%+v", s)
	}
	if b := snap.Slots[1]; b.State != StateBackoff || b.Backoff != 2*time.Second {
		t.Errorf("%+v", b)
	}
	if p.slots[0].tmpl.Argv[0] != "a\xff" || p.slots[1].tmpl != p.tmpl {
		t.Errorf("%+v", p.slots[0].tmpl)
	}
	var fds []int
	for _, d := range aState().FDs() {
		fds = append(fds, d.Num())
	}
	if diff := cmp.Diff([]int{1001, 1002, 1003}, fds); diff != "" {
		t.Errorf("descriptors (-want +got):\n%s", diff)
	}
}

func TestImpossibleStates(t *testing.T) {
	tests := map[string]func(*SavedState){
		"no worker was ever ready": func(s *SavedState) { s.Booted = false },
		"0 workers":                func(s *SavedState) { s.Desired = 0 },
		"2 slots for 3 workers":    func(s *SavedState) { s.Desired = 3 },
		"generation 0":             func(s *SavedState) { s.Generations = 0 },
		"start durations":          func(s *SavedState) { s.StartSum = -1 },
		"less than the 4 untold":   func(s *SavedState) { s.OutputUntold = 4 },
		"command is empty":         func(s *SavedState) { s.Templates[0].Argv = nil },
		"generation 3: must be":    func(s *SavedState) { s.Templates[0].Generation = 3 },
		"template 1: there are 1":  func(s *SavedState) { s.Template = 1 },
		"slot 1: template -1":      func(s *SavedState) { s.Slots[1].Template = -1 },
		`report "x"`:               func(s *SavedState) { s.Reports[0].Kind = "x" },
		"-1 failures":              func(s *SavedState) { s.Slots[0].Failures = -1 },
		"start in -1ns":            func(s *SavedState) { s.Slots[1].Start.In = -1 },
		`start reason "x"`:         func(s *SavedState) { s.Slots[1].Start.Reason = "x" },
		`exit cause "x"`:           func(s *SavedState) { s.Slots[0].LastExit.Cause = "x" },
		"id 10":                    func(s *SavedState) { s.Slots[0].Worker.ID = 10 },
		"id 9: it is there twice":  func(s *SavedState) { s.Slots[0].Older[0].ID = 9 },
		"process 1: it cannot":     func(s *SavedState) { s.Slots[0].Worker.PID = 1 },
		"process 4000: it is there": func(s *SavedState) {
			s.Slots[1].Worker = &ProcessState{ID: 1, Generation: 1, PID: 4000, State: StateReady}
		},
		"process 4000: generation 0":  func(s *SavedState) { s.Slots[0].Worker.Generation = 0 },
		`state "stuck"`:               func(s *SavedState) { s.Slots[0].Worker.State = StateStuck },
		"ages -1ns":                   func(s *SavedState) { s.Slots[0].Worker.Age = -1 },
		"reader -5":                   func(s *SavedState) { s.Slots[0].Worker.Reader = -5 },
		"one has ended, but which":    func(s *SavedState) { s.Slots[0].Worker.ReaderEnded = true },
		"there is no reader":          func(s *SavedState) { s.Slots[0].Older[0].Reader = 0 },
		"it has not ended":            func(s *SavedState) { s.Slots[0].Worker.Counted = true },
		"its output is done":          func(s *SavedState) { s.Slots[0].Older[0].Notify = &NotifyState{} },
		"older process 4001: exit":    func(s *SavedState) { s.Slots[0].Older[0].Exit.Cause = "" },
		"timer term in -1ns":          func(s *SavedState) { s.Slots[0].Worker.Timers["term"] = -1 },
		"half a line":                 func(s *SavedState) { s.Slots[0].Worker.Output.Stderr.Half = make([]byte, maxLine) },
		"descriptor 2: must be above": func(s *SavedState) { s.Slots[0].Worker.Notify.FD = handoff.Own(2) },
		"descriptor -1: must be":      func(s *SavedState) { s.Slots[0].Worker.Notify.FD = handoff.FD{} },
		"descriptor 1001: it is":      func(s *SavedState) { s.Slots[0].Worker.Notify.FD = handoff.Own(1001) },
	}
	for want, spoil := range tests {
		s := aState()
		spoil(s)
		if _, err := Restore(restoreConfig, s); err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "restore pool: ") {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := Restore(Config{}, aState()); err == nil {
		t.Error("an empty Config: no error")
	}
}

// Whatever the state says, Restore does not panic, and what it accepts can be shown and
// comes out of JSON as it went in.
func FuzzRestoreState(f *testing.F) {
	b, err := json.Marshal(aState())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"Booted":true,"Desired":1,"Generations":1,"Unknown":[{}],"Templates":[{"Generation":1,"Argv":["eA=="]}],"Slots":[{}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := new(SavedState)
		if json.Unmarshal(b, s) != nil {
			return
		}
		s.FDs()
		p, err := Restore(restoreConfig, s)
		if err != nil {
			return
		}
		p.Snapshot()
		overJSON(t, s)
	})
}
