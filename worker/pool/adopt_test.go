package pool

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// upgrade puts a pool of the present state in the place of the pool.
func (w *world) upgrade() {
	w.t.Helper()
	w.replace(w.saved())
}

// saved freezes the pool and returns its state as another program reads it.
func (w *world) saved() *SavedState {
	w.t.Helper()
	w.stand()
	s, err := w.State()
	if err != nil {
		w.t.Fatal(err)
	}
	s.SavedAt = 0 // not of a bubble's clock
	return overJSON(w.t, s)
}

func overJSON(t *testing.T, s *SavedState) *SavedState {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	back := new(SavedState)
	if err := json.Unmarshal(b, back); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(back)
	if err != nil || !bytes.Equal(b, again) {
		t.Errorf("state is not the same after JSON, %v:\n%s\n%s", err, b, again)
	}
	return back
}

// replace lets a pool of s run instead of the frozen one.
func (w *world) replace(s *SavedState) {
	w.t.Helper()
	desert(w.Pool)
	if err := <-w.runC; err != nil {
		w.t.Error(err)
	}
	w.stop()
	p, err := Restore(w.conf, s)
	if err != nil {
		w.t.Fatal(err)
	}
	w.Pool = p
	w.fake()
	w.run()
}

// desert ends a frozen pool as exec(2) does: it knows of no process any more, and touches
// none. Descriptors are closed here, since they are duplicates of those that go on.
func desert(p *Pool) {
	p.phaseMu.Lock()
	for _, pr := range p.procs {
		if pr.output != nil {
			pr.output.out = nil
			pr.output.discard()
		}
		if pr.notify != nil {
			pr.notify.Close()
		}
		pr.releaseReaders()
	}
	clear(p.procs)
	p.slots, p.desired, p.kept, p.stopping = nil, 0, nil, true
	p.thawLocked()
	p.phaseMu.Unlock()
}

// scripts bring a pool of two workers into every state that a process or a slot can be
// in; up is called there.
var scripts = map[string]struct {
	config Config
	play   func(w *world, up func())
}{
	"starting": {Config{StartTimeout: 10 * time.Second}, func(w *world, up func()) {
		w.do(func() { w.at(0).exit(exitStatus{code: 1}) })
		w.pass(2 * time.Second)
		up()
		w.pass(4 * time.Second) // silent
		up()
		w.pass(6 * time.Second) // killed
	}},
	"ready without a word": {Config{SharesListeners: true, ReadyAfter: 4 * time.Second}, func(w *world, up func()) {
		w.do(func() { w.at(0).exit(exitStatus{code: 1}) })
		w.pass(2 * time.Second)
		up()
		w.pass(4 * time.Second)
	}},
	"ready": {Config{}, func(w *world, up func()) {
		up()
		w.pass(20 * time.Second)
		up()
		w.do(func() { w.at(0).exit(exitStatus{code: 1}) }) // after a healthy run: at once
	}},
	"draining": {Config{}, func(w *world, up func()) {
		w.at(0).set(true, false)
		w.do(func() { w.Retire(w.id(0), "test") })
		w.pass(10 * time.Second)
		up()
		w.pass(19 * time.Second)
		w.do(func() { w.Drained(w.id(0)) }) // TERM, KILL 5 s later
		w.pass(time.Second)
		up()
		w.pass(4 * time.Second)
	}},
	"drain timeout": {Config{}, func(w *world, up func()) {
		w.do(func() { w.Retire(w.id(0), "test") })
		w.pass(10 * time.Second)
		up()
		w.pass(20 * time.Second)
	}},
	"aborted": {Config{}, func(w *world, up func()) {
		w.at(0).set(true, false)
		w.do(func() { w.Abort(w.id(0), syscall.SIGABRT, "hung") })
		w.pass(time.Second)
		up()
		w.pass(4 * time.Second)
	}},
	"killed": {Config{}, func(w *world, up func()) {
		f := w.at(0)
		f.set(true, true)
		w.do(func() { w.Kill(w.id(0), "hung") })
		w.pass(time.Second)
		up()
		w.do(func() { f.exit(killedStatus) })
	}},
	"stuck": {Config{}, func(w *world, up func()) {
		f := w.freezeSlot()
		w.pass(time.Second)
		up() // to become so
		w.pass(time.Second)
		up()
		w.pass(time.Minute)
		w.do(func() { f.exit(killedStatus) })
	}},
	"stuck slot": {Config{}, func(w *world, up func()) {
		var f *fakeProcess
		for range 3 {
			f = w.freezeSlot()
			w.pass(10 * time.Second)
		}
		up()
		w.pass(time.Minute)
		w.do(func() { f.exit(killedStatus) })
		w.pass(time.Minute)
		for _, f := range w.all()[:4] {
			w.do(func() { f.exit(killedStatus) })
		}
	}},
	"orphan": {Config{}, func(w *world, up func()) {
		w.do(func() { w.SetReader(w.id(0), readerPID) })
		up()
		w.do(func() { w.at(0).exit(exitStatus{code: 3}) })
		w.pass(10 * time.Second)
		up()
		w.pass(10 * time.Second)
		w.endReader(readerPID)
	}},
	"reader ended": {Config{}, func(w *world, up func()) {
		w.do(func() { w.SetReader(w.id(0), readerPID) })
		w.endReader(readerPID)
		w.pass(readerGrace / 2)
		up()
		w.pass(readerGrace / 2)
	}},
	"orphan without output": {Config{}, func(w *world, up func()) {
		w.ask(func() { // in the place of the process, which has never ended
			pr := w.Pool.procs[w.slots[0].cur.w.ID]
			pr.outputDone = true
			w.leaderEnded(pr, exitStatus{code: 1}, background{})
			w.setReader(pr, readerPID, w.watch(readerPID))
		})
		synctest.Wait()
		w.pass(10 * time.Second)
		up()
		w.endReader(readerPID)
	}},
	"backoff": {Config{}, func(w *world, up func()) {
		for range 4 {
			w.do(func() { w.at(0).exit(exitStatus{code: 1}) })
			w.pass(500 * time.Millisecond)
			up()
			w.pass(10 * time.Second)
		}
	}},
	"leaves": {Config{}, func(w *world, up func()) {
		w.do(func() { w.Leaves(w.id(0)) })
		up()
		w.do(func() { w.at(0).exit(exitStatus{}) })
	}},
	"down": {Config{Restart: RestartOnFailure}, func(w *world, up func()) {
		w.do(func() { w.at(0).exit(exitStatus{}) })
		up()
		w.pass(time.Minute)
		w.do(func() { w.at(1).exit(exitStatus{code: 1}) })
		w.pass(10 * time.Second)
	}},
	"held": {Config{}, func(w *world, up func()) {
		_ = w.DrainSlot(0)
		up()
		w.do(func() { w.Drained(w.id(0)) })
		up()
		w.pass(time.Minute)
		_ = w.UndrainSlot(0)
		synctest.Wait()
	}},
	"smaller": {Config{}, func(w *world, up func()) {
		_ = w.Resize(1)
		up()
		w.do(func() { w.Drained(w.id(1)) })
		up()
		_, _ = w.Grow()
		synctest.Wait()
	}},
	"roll": {Config{}, func(w *world, up func()) {
		r := w.roll(RollConfig{})
		w.readyNext(0)
		w.readyNext(1)
		if err := r.rolled(); err != nil {
			w.t.Error(err)
		}
		up() // both old ones drain
		w.do(func() { w.at(0).exit(exitStatus{code: 1}) })
		w.pass(40 * time.Second)
		w.wantKinds("newer.2 starting", "newer.2 ready")
	}},
}

// freezeSlot is freeze for a slot that others stand beside.
func (w *world) freezeSlot() *fakeProcess {
	w.t.Helper()
	s := w.Snapshot().Slots[0]
	f := w.proc(s.PID - 100)
	f.set(true, true)
	w.do(func() { w.Ready(s.ID); w.Kill(s.ID, "hung") })
	return f
}

// outcome is the log of all that happened and the end of it.
type outcome struct {
	Log  []string
	Snap Snapshot
}

// play plays a script with or without upgrades.
func play(t *testing.T, c Config, upgrades bool, script func(w *world, up func())) (o outcome) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c.Size = 2
		w := newWorld(t, c).run()
		// So that ID and pid tell the slot.
		if w.id(0) != 1 || w.at(0).number != 100 {
			w.finish()
			return
		}
		w.do(func() { w.Ready(1) })
		w.do(func() { w.Ready(2) })
		script(w, func() {
			w.t.Helper()
			before := w.Snapshot()
			if !upgrades {
				return
			}
			w.upgrade()
			if diff := cmp.Diff(before, w.Snapshot()); diff != "" {
				w.t.Errorf("after an upgrade (-before +after):\n%s", diff)
			}
		})
		o = outcome{w.sorted(), w.Snapshot()}
		for _, f := range w.all() {
			f.exit(killedStatus)
		}
		for pid, f := range w.watches {
			if !f.ended() {
				w.endReader(pid)
			}
		}
		w.finish()
	})
	if o.Log == nil { // they were started the other way round
		return play(t, c, upgrades, script)
	}
	return o
}

// sorted is the log by lines: what happens at one time is told in any order.
func (w *world) sorted() []string {
	lines := strings.Split(w.text(), "\n")
	slices.Sort(lines)
	return lines
}

// Whatever happens goes on as it would have without an upgrade, and nothing is told twice.
func TestUpgradeChangesNothing(t *testing.T) {
	for name, script := range scripts {
		t.Run(name, func(t *testing.T) {
			want := play(t, script.config, false, script.play)
			got := play(t, script.config, true, script.play)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-without +with):\n%s", diff)
			}
		})
	}
}

// The same for whatever comes.
func TestUpgradeAtAnyTime(t *testing.T) {
	runs := 150
	if testing.Short() {
		runs = 20
	}
	for seed := range runs {
		script := func(w *world, up func()) { randomly(w, rand.New(rand.NewPCG(1, uint64(seed))), up) }
		c := Config{Restart: RestartPolicies()[seed%2], SharesListeners: seed%3 == 0}
		want := play(t, c, false, script)
		got := play(t, c, true, script)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("seed %d (-without +with):\n%s", seed, diff)
		}
	}
}

// randomly does things to slot 0; the other one makes the pool go on.
func randomly(w *world, r *rand.Rand, up func()) {
	readers := readerPID
	for range 40 {
		s := w.Snapshot().Slots[0]
		var ids []uint64
		if s.ID > 0 {
			ids = append(ids, s.ID)
		}
		for _, o := range s.Older {
			ids = append(ids, o.ID)
		}
		switch n := r.IntN(16); {
		case n == 0:
			_ = w.DrainSlot(0)
			synctest.Wait()
		case n == 1:
			_ = w.UndrainSlot(0)
			synctest.Wait()
		case n < 6:
			w.pass(time.Duration(r.IntN(5000)) * time.Millisecond)
		case len(ids) == 0:
		default:
			id := ids[r.IntN(len(ids))]
			f := w.byID(id)
			w.do(func() {
				switch n {
				case 6, 7:
					w.Ready(id)
				case 8:
					w.Drained(id)
				case 9:
					w.Retire(id, "test")
				case 10:
					f.exit(exitStatus{code: r.IntN(2)})
				case 11:
					f.set(true, r.IntN(2) == 0)
				case 12:
					w.Kill(id, "hung")
				case 13:
					if w.Pool.procs[id].reader == nil {
						readers++
						w.SetReader(id, readers)
					}
				case 14:
					w.Abort(id, syscall.SIGABRT, "aborted")
				case 15:
					w.Leaves(id)
				}
			})
		}
		if f := w.watches[readers]; f != nil && !f.ended() && r.IntN(6) == 0 {
			w.endReader(readers)
		}
		if r.IntN(4) == 0 {
			up()
		}
	}
}

// byID is only for what is at rest.
func (w *world) byID(id uint64) *fakeProcess { return w.proc(w.Pool.procs[id].w.PID - 100) }

// Who ends while nobody looks is found; who is no child any more is not touched.
func TestEndsWhileFrozen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 3, Config{})
		lost, ended, told := w.at(0), w.at(1), w.at(2)
		ids := []uint64{w.id(0), w.id(1), w.id(2)}
		w.lines, w.told = nil, nil
		w.stand()
		w.Kill(ids[2], "hung")
		s := w.saved2()
		w.do(func() { ended.exit(exitStatus{code: 7}) })
		w.wantLog("")
		w.lost = map[int]bool{lost.number: true}
		w.replace(s)
		log := w.text()
		for _, want := range []string{
			"slot 0 exited with code -1 after 0s, cause code",
			"slot 1 exited with code 7 after 0s, cause code",
			"slot 2 was ended by signal 9 (killed) after 0s: hung, cause killed_stuck",
			fmt.Sprintf("pid %d killed", told.number),
		} {
			if !strings.Contains(log, want) {
				t.Errorf("not told: %s", want)
			}
		}
		if strings.Contains(log, fmt.Sprintf("pid %d", lost.number)) {
			t.Error("a stranger was signalled")
		}
		if t.Failed() {
			t.Log(log)
		}
		lost.exit(exitStatus{})
		w.finish()
	})
}

// saved2 is saved for a pool that is frozen already.
func (w *world) saved2() *SavedState {
	s, err := w.State()
	if err != nil {
		w.t.Fatal(err)
	}
	s.SavedAt = 0
	return overJSON(w.t, s)
}

// Every kind of report crosses.
func TestReportsCross(t *testing.T) {
	tests := map[string]struct {
		tell func(*world)
		want string
	}{
		"ready":       {func(w *world) { w.Ready(2) }, "0s slot 0 ready"},
		"spoke":       {func(w *world) { w.Spoke(2) }, ""},
		"drained":     {func(w *world) { w.Drained(2) }, ""},
		"kill":        {func(w *world) { w.Kill(2, "test") }, "1s slot 0 was ended by signal 9 (killed) after 0s: test, cause killed_stuck"},
		"abort":       {func(w *world) { w.Abort(2, syscall.SIGABRT, "test") }, "1s pid 101 gets aborted"},
		"retire":      {func(w *world) { w.Retire(2, "test") }, "1s pid 101 gets terminated"},
		"hung up":     {func(w *world) { w.HungUp(2) }, "6s pid 101 gets terminated"},
		"stop":        {func(w *world) { w.Stop() }, "1s pid 101 gets terminated"},
		"stop within": {func(w *world) { w.StopWithin(time.Second) }, "1s pid 101 gets terminated"},
		"stop now":    {func(w *world) { w.StopNow() }, "1s pid 101 killed"},
		"reader":      {func(w *world) { w.SetReader(2, readerPID); w.proc(1).exit(exitStatus{}) }, "1s slot 0 orphaned, id 2"},
		"notified":    {func(w *world) { w.report(Report{Kind: reportNotified, ID: 2}) }, "1s slot 0 ready"},
		"of nobody":   {func(w *world) { w.Kill(77, "test") }, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := serving(t, 1, Config{})
				w.do(func() { w.proc(0).exit(exitStatus{code: 1}) })
				w.pass(time.Second)
				w.stand()
				tt.tell(w)
				w.replace(w.saved2())
				w.pass(6 * time.Second)
				if log := w.text(); !strings.Contains(log, tt.want) {
					t.Errorf("not told: %s\n%s", tt.want, log)
				}
				w.StopNow()
				if name == "reader" {
					w.endReader(readerPID)
				}
				if err := w.end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A pool that is restored and does not run yet shows what it has, and changes nothing.
func TestRestoredBeforeRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serving(t, 1, Config{})
		s := w.saved()
		desert(w.Pool)
		if err := <-w.runC; err != nil {
			t.Error(err)
		}
		p, err := Restore(w.conf, s)
		if err != nil {
			t.Fatal(err)
		}
		if snap := p.Snapshot(); snap.Slots[0].State != StateReady || snap.Slots[0].PID != 100 || !snap.Booted {
			t.Errorf("%+v", snap)
		}
		for what, err := range map[string]error{
			"signal": p.Signal(0, syscall.SIGHUP), "drain": p.DrainSlot(0), "resize": p.Resize(2), "freeze": p.Freeze(t.Context()),
		} {
			if !errors.Is(err, ErrBusy) {
				t.Errorf("%s: %v", what, err)
			}
		}
		w.stop()
		w.Pool = p
		w.fake()
		p.Stop() // before Run: it drains whom it has adopted
		w.pass(time.Hour)
		w.run()
		w.wantState(StateDraining)
		w.pass(29 * time.Second)
		w.wantState(StateDraining)
		w.finish()
	})
}
