package pool

import (
	"errors"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"rrd/handoff"
)

// stand freezes the pool and returns its state.
func (e *events) stand(t *testing.T) *SavedState {
	t.Helper()
	err := e.Freeze(t.Context())
	for errors.Is(err, ErrBusy) { // Run has not begun
		runtime.Gosched()
		err = e.Freeze(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	s, err := e.State()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// replace lets a pool of s run in the place of the frozen one. In one program both have
// descriptors of their own.
func (e *events) replace(t *testing.T, s *SavedState) {
	t.Helper()
	s = overJSON(t, s)
	s.eachProcess(func(_ int, ps *ProcessState) {
		if o := ps.Output; o != nil {
			o.Stdout.FD, o.Stderr.FD = dup(t, o.Stdout.FD), dup(t, o.Stderr.FD)
		}
		if ps.Notify != nil {
			ps.Notify.FD = dup(t, ps.Notify.FD)
		}
	})
	desert(e.Pool)
	if err := recv(t, e.runC); err != nil {
		t.Error(err)
	}
	p, err := Restore(e.conf, s)
	if err != nil {
		t.Fatal(err)
	}
	e.run(t, p)
}

func dup(t *testing.T, d handoff.FD) handoff.FD {
	t.Helper()
	n, err := d.Dup()
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// ready has all workers that were started be ready.
func (e *events) ready(t *testing.T, n int) map[int]Worker {
	t.Helper()
	workers := make(map[int]Worker)
	for range n {
		w := recv(t, e.startedC)
		e.Ready(w.ID)
		recv(t, e.readyC)
		workers[w.Slot] = w
	}
	return workers
}

// Children go on under another pool: their output has no seam, and their ends are seen,
// also one that came while nobody looked.
func TestAdoptedProcesses(t *testing.T) {
	e := runReal(t, Config{Size: 3, Argv: []string{"sh", "-c", `
		trap 'echo line; echo said >&2' USR1
		trap 'echo bye; exit 0' TERM
		printf 'half a '
		while :; do sleep 0.02; done`}})
	workers := e.ready(t, 3)
	var s *SavedState
	for whole := false; !whole; { // the pool goes on between two looks
		s = e.stand(t)
		whole = true
		for _, slot := range s.Slots {
			whole = whole && string(slot.Worker.Output.Stdout.Half) == "half a "
		}
		if !whole {
			e.Thaw()
			time.Sleep(time.Millisecond) // that a line was begun nobody tells
		}
	}
	if n := len(s.FDs()); n != 6 {
		t.Errorf("%d descriptors, want 6", n)
	}
	if err := syscall.Kill(workers[1].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for !dead(workers[1].PID) {
		runtime.Gosched()
	}
	if err := syscall.Kill(workers[2].PID, syscall.SIGUSR1); err != nil { // into the pipe
		t.Fatal(err)
	}
	e.replace(t, s)
	if x := recv(t, e.exitedC); x.Signal != syscall.SIGKILL || x.Cause != CauseSignal || x.LastWords != "half a " {
		t.Errorf("%+v", x)
	}
	if next := recv(t, e.startedC); next.Slot != 1 || next.ID != 4 {
		t.Errorf("successor %+v", next)
	}
	if err := e.Signal(0, syscall.SIGUSR1); err != nil {
		t.Error(err)
	}
	lines := make(map[string]int)
	for lines["0 half a line"] == 0 || lines["2 half a line"] == 0 || lines["0 said"] == 0 || lines["2 said"] == 0 {
		l := recv(t, e.lineC)
		lines[string(rune('0'+l.Worker.Slot))+" "+string(l.Text)]++
	}
	if len(e.readyC) != 0 {
		t.Error("Ready was told again")
	}
	for _, slot := range e.Snapshot().Slots {
		if w, ok := workers[slot.Slot]; ok && slot.Slot != 1 && (slot.PID != w.PID || slot.ID != w.ID || slot.State != StateReady || slot.Uptime < time.Since(w.Started)-time.Second) {
			t.Errorf("%+v was %+v", slot, w)
		}
	}
	e.Stop()
	for _, w := range workers {
		e.Drained(w.ID)
	}
	if err := recv(t, e.runC); err != nil {
		t.Error(err)
	}
	close(e.exitedC)
	for x := range e.exitedC {
		if x.Cause != CauseRequested {
			t.Errorf("%+v", x)
		}
	}
	for pid := range map[int]bool{workers[0].PID: true, workers[2].PID: true} {
		if syscall.Kill(pid, 0) != syscall.ESRCH {
			t.Errorf("process %d was not reaped", pid)
		}
	}
	if rest := strings.Join(e.rest(), "\n"); strings.Count(rest, "bye") < 2 {
		t.Errorf("last lines:\n%s", rest)
	}
}

// Thaw goes on with the same readers.
func TestThawedProcesses(t *testing.T) {
	e := runReal(t, Config{Argv: []string{"sh", "-c", `i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i+1)); done; exec sleep 1000`}})
	e.ready(t, 1)
	for n := 0; n < 400; {
		e.stand(t)
		e.Thaw()
		for first := true; n < 400 && (first || len(e.lineC) > 0); first = false {
			if l := e.line(t); l != "line "+strconv.Itoa(n) {
				t.Fatalf("%q, want line %d", l, n)
			}
			n++
		}
	}
}

// A worker that will be ready says so to a socket that has crossed.
func TestAdoptedNotifySocket(t *testing.T) {
	e := runReal(t, Config{Size: 2, Argv: self("later", "{slot}"), SharesListeners: true, ReadyAfter: NoTimeout})
	if w := recv(t, e.readyC); w.Slot != 0 {
		t.Fatalf("%+v", w)
	}
	for e.line(t) != "to be told" {
	}
	recv(t, e.startedC)
	recv(t, e.startedC)
	for range 2 { // the socket has another number each time
		e.replace(t, e.stand(t))
	}
	if err := syscall.Kill(e.Snapshot().Slots[1].PID, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if w := recv(t, e.readyC); w.Slot != 1 {
		t.Errorf("%+v", w)
	}
	e.Stop()
	if err := recv(t, e.runC); err != nil {
		t.Error(err)
	}
}

// One that was reaped by somebody else has ended, and its number is not used.
func TestAdoptedStranger(t *testing.T) {
	e := runReal(t, Config{Argv: self("wait"), Restart: RestartNever})
	w := e.ready(t, 1)[0]
	s := e.stand(t)
	if err := syscall.Kill(w.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(w.PID, &ws, 0, nil); err != nil {
		t.Fatal(err)
	}
	s.Slots[0].Worker.PID = syscall.Getppid() // may be anybody's by now
	e.replace(t, s)
	if x := recv(t, e.exitedC); x.Code != -1 || x.Signal != 0 {
		t.Errorf("%+v", x)
	}
	if err := recv(t, e.runC); err == nil {
		t.Error("no error of a worker that is down")
	}
}

// An orphan is watched on.
func TestAdoptedOrphan(t *testing.T) {
	e, w, reader := runWithReader(t, `
		trap "exit 0" TERM
		setsid sh -c 'echo $$; exec sleep 1000' & wait; exit 1`)
	defer syscall.Kill(reader, syscall.SIGKILL)
	if err := syscall.Kill(w.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	recv(t, e.orphanC)
	recv(t, e.startedC)
	second, err := strconv.Atoi(e.line(t)) // of its successor, and outside of that one's group
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(second, syscall.SIGKILL)
	e.replace(t, e.stand(t))
	if s := e.Snapshot().Slots[0]; len(s.Older) != 1 || s.Older[0].State != StateOrphan || s.Older[0].ReaderPID != reader {
		t.Errorf("%+v", s)
	}
	if err := syscall.Kill(reader, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if x := recv(t, e.exitedC); x.Signal != syscall.SIGKILL {
		t.Errorf("%+v", x)
	}
}
