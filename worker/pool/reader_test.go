package pool

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const readerPID = 5000

// withReader is a world whose worker is ready behind a shell.
func withReader(t *testing.T, c Config) *world {
	w := newWorld(t, c).run()
	w.do(func() { w.SetReader(1, readerPID); w.Ready(1) })
	return w
}

// The leader ends, its reader goes on: the slot has a successor at once, the exit is
// told when both have ended.
func TestOrphan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := withReader(t, Config{})
		w.pass(20 * time.Second)
		w.do(func() { w.proc(0).exit(exitStatus{code: -1, signal: syscall.SIGKILL}) })
		w.wantState(StateStarting)
		w.wantOlder(0, "0.1 id 1 orphan 5000")
		if s := w.Snapshot().Slots[0]; s.Exits[CauseSignal] != 1 || s.LastExit == nil {
			t.Errorf("%+v", s)
		}
		w.do(func() { w.Ready(1); w.Retire(1, "late"); w.Abort(1, syscall.SIGABRT, "late") }) // too late for all
		w.do(func() { w.Ready(2) })
		w.pass(time.Hour)
		w.endReader(readerPID)
		w.wantOlder(0)
		w.wantState(StateReady)
		w.StopNow()
		if err := w.end(); err != nil {
			t.Error(err)
		}
		w.wantLog(`
			0s slot 0 started id 1 pid 100
			0s slot 0 ready
			20s slot 0 orphaned, id 1
			20s slot 0 started id 2 pid 101
			20s slot 0 ready
			1h0m20s slot 0 was ended by signal 9 (killed) after 20s, cause signal
			1h0m20s slot 0 drain
			1h0m20s slot 0 was ended by signal 9 (killed) after 1h0m0s, cause requested
			1h0m20s pid 101 killed
		`)
		if s := w.Snapshot().Slots[0]; s.Exits[CauseSignal] != 1 {
			t.Errorf("counted twice: %+v", s.Exits)
		}
	})
}

// The reader ends first: the shell may say how, or is killed.
func TestReaderEndsFirst(t *testing.T) {
	tests := []struct {
		name  string
		act   func(*world)
		want  string // of the exit
		cause Cause
		lost  bool
		blame bool
	}{
		{"shell tells", func(w *world) {
			w.pass(readerGrace / 2)
			w.proc(0).exit(exitStatus{code: 139})
		}, "exited with code 139 after 1.05s", CauseCode, false, true},
		{"shell tells of a KILL", func(w *world) {
			w.pass(readerGrace / 2)
			w.proc(0).exit(exitStatus{code: 137})
		}, "exited with code 137 after 1.05s", CauseCode, false, false},
		{"shell goes on", func(w *world) { w.pass(readerGrace) },
			"was ended by signal 9 (killed) after 1.1s: process 5000, which spoke for it, has ended", CauseSignal, true, true},
		{"drained", func(w *world) { w.Stop(); w.pass(readerGrace) },
			"was ended by signal 9 (killed) after 1.1s", CauseRequested, true, false},
		{"killed meanwhile", func(w *world) { w.Kill(1, "hung") },
			"was ended by signal 9 (killed) after 1s: hung", CauseKilledStuck, false, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var got Exit
				c := Config{}
				c.Hooks.Exited = func(w Worker, x Exit) {
					if w.ID == 1 {
						got = x
					}
				}
				w := withReader(t, c)
				w.proc(0).set(true, false) // the shell hears no TERM
				w.pass(time.Second)
				w.endReader(readerPID)
				w.do(func() { tt.act(w) })
				w.wantOlder(0)
				w.StopNow()
				if err := w.end(); err != nil {
					t.Error(err)
				}
				if got.String() != tt.want || got.Cause != tt.cause || got.ReaderLost != tt.lost || got.Blame() != tt.blame {
					t.Errorf("exit: worker %s\n%+v, blame %v", got, got, got.Blame())
				}
			})
		})
	}
}

// A reader that had ended before it became known is no different, and READY
// does not undo it.
func TestReaderEndedBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{}).run()
		w.sys.watch = func(int) watched { return endedWatch{} }
		w.do(func() { w.SetReader(1, readerPID) })
		w.do(func() { w.Ready(1) })
		w.pass(readerGrace)
		w.wantState(StateBackoff)
		w.StopNow()
		_ = w.end()
	})
}

func TestReaderThatIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{}).run()
		w.do(func() {
			for _, pid := range []int{-1, 0, 1, os.Getpid()} {
				w.SetReader(1, pid)
			}
			w.SetReader(1, 100) // the leader
			w.SetReader(77, readerPID)
		})
		if n := len(w.watches); n != 2 {
			t.Errorf("%d processes were watched, want 2", n)
		}
		w.do(func() { w.Ready(1); w.proc(0).exit(exitStatus{code: 1}) })
		w.wantState(StateBackoff)
		w.wantOlder(0)
		w.StopNow()
		if err := w.end(); err != nil { // sees to it that both were released
			t.Error(err)
		}
		w.SetReader(1, readerPID)
		select {
		case <-w.watches[readerPID].released:
		default:
			t.Error("watched after Run")
		}
	})
}

// A second reader takes the place of the first.
func TestReaderReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := withReader(t, Config{})
		w.do(func() { w.SetReader(1, readerPID+1) })
		w.endReader(readerPID)
		w.pass(time.Second)
		w.wantState(StateReady)
		w.do(func() { w.proc(0).exit(exitStatus{code: 1}) })
		w.wantOlder(0, "0.1 id 1 orphan 5001")
		w.endReader(readerPID + 1)
		w.wantOlder(0)
		w.StopNow()
		_ = w.end()
	})
}

// A reader that becomes known between the end of the leader and that of its output
// is still waited for, in whichever order the rest comes.
func TestReaderJustInTime(t *testing.T) {
	for _, outputFirst := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, Config{}).run()
			w.do(func() { w.Ready(1) })
			var pr *proc
			w.ask(func() { // in the place of the process, which never ends
				pr = w.Pool.procs[1]
				w.leaderEnded(pr, exitStatus{code: 1}, background{})
				w.setReader(pr, readerPID, w.watch(readerPID))
			})
			synctest.Wait()
			w.wantOlder(0, "0.1 id 1 orphan 5000")
			if outputFirst {
				w.ask(func() { w.outputEnded(pr, "") })
				w.wantOlder(0, "0.1 id 1 orphan 5000")
				w.endReader(readerPID)
			} else {
				w.endReader(readerPID)
				w.ask(func() { w.outputEnded(pr, "") })
			}
			w.wantOlder(0)
			w.StopNow()
			if err := w.end(); err != nil {
				t.Error(err)
			}
			w.wantLog(`
				0s slot 0 started id 1 pid 100
				0s slot 0 ready
				0s slot 0 orphaned, id 1
				0s slot 0 backs off 1s
				0s slot 0 exited with code 1 after 0s, cause code
			`)
		})
	}
}

func TestOrphansAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Config{RespawnMin: time.Millisecond}).run()
		for id := range uint64(3) {
			w.do(func() { w.SetReader(id+1, readerPID+int(id)); w.Ready(id + 1) })
			w.do(func() { w.at(0).exit(exitStatus{code: 1}) })
			w.pass(time.Second)
		}
		w.wantState(StateStuck)
		w.wantOlder(0, "0.1 id 1 orphan 5000", "0.1 id 2 orphan 5001")
		w.endReader(readerPID)
		w.pass(time.Second)
		w.wantState(StateStarting)
		w.wantOlder(0, "0.1 id 2 orphan 5001", "0.1 id 3 orphan 5002")
		w.endReader(readerPID + 1)
		w.endReader(readerPID + 2)
		w.StopNow()
		_ = w.end()
	})
}

// An orphan is drained like a worker, and left when it takes too long.
func TestOrphanAtTheEnd(t *testing.T) {
	for _, policy := range []RestartPolicy{RestartAlways, RestartNever} {
		synctest.Test(t, func(t *testing.T) {
			w := withReader(t, Config{Restart: policy})
			w.do(func() { w.proc(0).exit(exitStatus{}) })
			began := time.Now()
			if policy == RestartAlways { // otherwise the pool ends by itself
				w.pass(time.Second)
				began = time.Now()
				w.do(w.Stop)
			}
			err := w.endLeaving()
			left := new(LeftError)
			if !errors.As(err, &left) || len(left.Workers) != 1 || left.Workers[0].PID != readerPID {
				t.Errorf("Run = %v", err)
			}
			if took := time.Since(began); took != (30+5)*time.Second+stuckAfter+leaveAfter {
				t.Errorf("Run took %v", took)
			}
		})
		synctest.Test(t, func(t *testing.T) {
			w := withReader(t, Config{Restart: policy})
			w.do(func() { w.proc(0).exit(exitStatus{}) })
			w.do(w.Stop)
			w.pass(time.Second)
			w.do(func() { w.Drained(1) })
			w.endReader(readerPID)
			if err := w.end(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestBlame(t *testing.T) {
	tests := []struct {
		x    Exit
		want bool
	}{
		{Exit{Cause: CauseCode}, true},
		{Exit{Cause: CauseCode, Code: 139}, true},
		{Exit{Cause: CauseCode, Code: 143}, false},
		{Exit{Cause: CauseSignal, Signal: syscall.SIGSEGV}, true},
		{Exit{Cause: CauseSignal, Signal: syscall.SIGKILL}, false},
		{Exit{Cause: CauseSignal, Signal: syscall.SIGTERM}, false},
		{Exit{Cause: CauseOOM, Signal: syscall.SIGKILL}, true},
		{Exit{Cause: CauseKilledStuck, Signal: syscall.SIGKILL}, true},
		{Exit{Cause: CauseRequested, Requested: true}, false},
		{Exit{Cause: CauseSignal, Signal: syscall.SIGSEGV, Requested: true}, false},
	}
	for _, tt := range tests {
		if got := tt.x.Blame(); got != tt.want {
			t.Errorf("%+v: %v", tt.x, got)
		}
	}
}
