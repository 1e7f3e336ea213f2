package pool

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// freezer returns functions that freeze processes so that even KILL waits, and thaw
// them again. Version 1 is needed: what version 2 freezes can be killed.
func freezer(t *testing.T) (freeze func(pid int), thaw func()) {
	t.Helper()
	dir, err := os.MkdirTemp("/sys/fs/cgroup/freezer", "rrd-pool-test-")
	if err != nil {
		t.Skipf("no freezer of cgroup version 1: %v", err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	thaw = func() { write("freezer.state", "THAWED") }
	t.Cleanup(func() {
		thaw()
		for deadline := time.Now().Add(10 * time.Second); syscall.Rmdir(dir) != nil; runtime.Gosched() {
			if time.Now().After(deadline) {
				t.Errorf("%s is not empty", dir)
				return
			}
		}
	})
	return func(pid int) {
		write("cgroup.procs", strconv.Itoa(pid))
		write("freezer.state", "FROZEN")
		for { // it takes a moment
			if b, err := os.ReadFile(filepath.Join(dir, "freezer.state")); err != nil || string(b) == "FROZEN\n" {
				return
			}
		}
	}, thaw
}

func TestFrozenWorker(t *testing.T) {
	t.Parallel() // it mostly waits
	freeze, thaw := freezer(t)
	e := runReal(t, Config{Argv: self("wait")})
	frozen := recv(t, e.startedC)
	e.line(t)
	freeze(frozen.PID)
	e.Ready(frozen.ID)
	killed := time.Now()
	e.Kill(frozen.ID, "hung")
	next := recv(t, e.startedC)
	if d := time.Since(killed); d < stuckAfter || next.Slot != frozen.Slot {
		t.Errorf("successor %+v after %v", next, d)
	}
	if s := e.Snapshot().Slots[0]; len(s.Older) != 1 || s.Older[0].Worker != frozen || s.Older[0].State != StateStuck {
		t.Errorf("%+v", s)
	}
	thaw()
	if x := recv(t, e.exitedC); x.Cause != CauseKilledStuck || x.Reason != "hung" {
		t.Errorf("%+v", x)
	}
	e.line(t)
	e.Stop()
	if err := recv(t, e.runC); err != nil {
		t.Error(err)
	}
}

// Nothing of a process that is left behind stays with us but the process itself.
func TestFrozenWorkerIsLeft(t *testing.T) {
	t.Parallel() // it mostly waits
	freeze, thaw := freezer(t)
	e := runReal(t, Config{Argv: self("wait")})
	w := recv(t, e.startedC)
	e.line(t)
	freeze(w.PID)
	e.StopNow()
	err := recv(t, e.runC)
	if left := new(LeftError); !errors.As(err, &left) || left.Workers[0] != w {
		t.Errorf("Run = %v", err)
	}
	thaw()
	var ws syscall.WaitStatus
	if _, err := syscall.Wait4(w.PID, &ws, 0, nil); err != nil || ws.Signal() != syscall.SIGKILL {
		t.Errorf("left process: %v, %v", ws, err)
	}
}

// runWithReader runs a worker behind a shell, which runs line and prints the pid of the
// process that speaks on the channel.
func runWithReader(t *testing.T, line string) (e *events, w Worker, reader int) {
	t.Helper()
	e = runReal(t, Config{Argv: []string{"/bin/sh", "-c", line}, RespawnMin: time.Millisecond, RespawnMax: time.Millisecond})
	reader, err := strconv.Atoi(e.line(t))
	if err != nil {
		t.Fatal(err)
	}
	w = recv(t, e.startedC)
	e.SetReader(w.ID, reader)
	e.Ready(w.ID)
	recv(t, e.readyC)
	return e, w, reader
}

// A server behind a shell: it goes with the shell, and the exit comes after it.
func TestReaderInGroup(t *testing.T) {
	e, w, reader := runWithReader(t, `sleep 1000 & echo $!; wait; exit 1`)
	if err := syscall.Kill(w.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	x := recv(t, e.exitedC)
	if x.Cause != CauseSignal || x.Signal != syscall.SIGKILL || x.Blame() {
		t.Errorf("%+v", x)
	}
	if !dead(reader) {
		t.Errorf("exit was told while process %d lives", reader)
	}
	if next := recv(t, e.startedC); next.ID == w.ID {
		t.Errorf("%+v", next)
	}
}

// A server that left the group lives on after its shell, with its output, and
// the slot without it.
func TestReaderLeftGroup(t *testing.T) {
	e, w, reader := runWithReader(t, `
		trap "exit 0" TERM
		setsid sh -c 'trap "echo still here" USR1; echo $$; while :; do sleep 0.05; done' & wait; exit 1`)
	defer syscall.Kill(reader, syscall.SIGKILL)
	if err := syscall.Kill(w.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	next := recv(t, e.startedC)
	other, err := strconv.Atoi(e.line(t))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(other, syscall.SIGKILL)
	if orphan := recv(t, e.orphanC); orphan.ID != w.ID || next.Slot != w.Slot {
		t.Errorf("orphan %+v, successor %+v", orphan, next)
	}
	if s := e.Snapshot().Slots[0]; len(s.Older) != 1 || s.Older[0].State != StateOrphan || s.Older[0].ReaderPID != reader || s.PID != next.PID {
		t.Errorf("%+v", s)
	}
	if err := syscall.Kill(reader, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	if l := recv(t, e.lineC); string(l.Text) != "still here" || l.Worker.ID != w.ID {
		t.Errorf("%s of %+v", l.Text, l.Worker)
	}
	if len(e.exitedC) != 0 {
		t.Errorf("exit was told while process %d lives", reader)
	}
	if err := syscall.Kill(reader, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if x := recv(t, e.exitedC); x.Signal != syscall.SIGKILL || x.Cause != CauseSignal {
		t.Errorf("%+v", x)
	}
}

// A shell that stays when its server has ended is no worker.
func TestReaderEndsBeforeShell(t *testing.T) {
	e, w, reader := runWithReader(t, `sleep 1000 & echo $!; wait; exec sleep 1000`)
	if err := syscall.Kill(reader, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	x := recv(t, e.exitedC)
	if x.Cause != CauseSignal || !x.ReaderLost || !strings.Contains(x.Reason, strconv.Itoa(reader)) || !dead(w.PID) {
		t.Errorf("%+v", x)
	}
}

// One that ends with it has the word.
func TestShellTellsOfReader(t *testing.T) {
	e, _, reader := runWithReader(t, `sleep 1000 & echo $!; wait $!`)
	if err := syscall.Kill(reader, syscall.SIGSEGV); err != nil {
		t.Fatal(err)
	}
	if x := recv(t, e.exitedC); x.Cause != CauseCode || x.Code != 128+int(syscall.SIGSEGV) || !x.Blame() {
		t.Errorf("%+v", x)
	}
}

func TestAbortReal(t *testing.T) {
	e := runReal(t, Config{Argv: self("wait")})
	w := recv(t, e.startedC)
	e.line(t)
	e.Ready(w.ID)
	e.Abort(w.ID, syscall.SIGABRT, "hung")
	x := recv(t, e.exitedC)
	if x.Cause != CauseKilledStuck || x.Code != 2 || x.Reason != "hung" || !strings.Contains(x.LastWords, "goroutine ") {
		t.Errorf("%+v", x) // Go exits with 2 after it has printed its stacks
	}
}

func TestWatch(t *testing.T) {
	for name, watch := range map[string]func(int) watched{
		"pidfd": watch,
		"poll":  func(pid int) watched { return polledWatch(pid) },
	} {
		child, err := os.StartProcess("/bin/sleep", []string{"sleep", "1000"}, &os.ProcAttr{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		givenUp := watch(child.Pid)
		cancel()
		if givenUp.wait(ctx) {
			t.Errorf("%s: process has ended", name)
		}
		lives := watch(child.Pid)
		if err := child.Kill(); err != nil {
			t.Fatal(err)
		}
		if name == "pidfd" && !lives.wait(t.Context()) { // a zombie is enough
			t.Errorf("%s: process lives", name)
		}
		if _, err := child.Wait(); err != nil {
			t.Fatal(err)
		}
		if name == "poll" && !lives.wait(t.Context()) {
			t.Errorf("%s: process lives", name)
		}
		if !watch(child.Pid).wait(t.Context()) {
			t.Errorf("%s: reaped process lives", name)
		}
	}
}

// Where there are no pidfds all is the same, with a thread for each leader and by asking
// for readers.
func TestWithoutPidfd(t *testing.T) {
	defer func(f func(int, int) (int, error)) { pidfdOpen = f }(pidfdOpen)
	pidfdOpen = func(int, int) (int, error) { return -1, syscall.ENOSYS }
	reader, err := os.StartProcess("/bin/sleep", []string{"sleep", "1000"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	e := runReal(t, Config{Argv: self("wait")})
	w := recv(t, e.startedC)
	e.SetReader(w.ID, reader.Pid)
	e.Ready(w.ID)
	recv(t, e.readyC)
	if err := syscall.Kill(w.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	recv(t, e.orphanC)
	if err := reader.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := reader.Wait(); err != nil { // a zombie would be taken to live
		t.Fatal(err)
	}
	if x := recv(t, e.exitedC); x.Signal != syscall.SIGKILL {
		t.Errorf("%+v", x)
	}
	e.StopNow()
	if err := recv(t, e.runC); err != nil {
		t.Error(err)
	}
}

// dead says whether a process is a zombie or gone.
func dead(pid int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err != nil || strings.Contains(string(b), ") Z ")
}
