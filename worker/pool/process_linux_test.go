package pool

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// What a worker has is exactly what it should have, whatever the master holds.
func TestWorkerSeesExactly(t *testing.T) {
	var stray [2]int
	if err := syscall.Pipe2(stray[:], 0); err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(stray[0])
	defer syscall.Close(stray[1])
	if err := CloseOnExecAll(); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	lent, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer lent.Close()
	parent := t.TempDir()
	dir := filepath.Join(parent, "0.1")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	e := runReal(t, Config{
		Argv: self("report", "{slot}-{generation}", "x y"),
		Dir:  filepath.Join(parent, "{slot}.{generation}"),
		Env: []string{"KEPT=1", "PATH=/bin", "RRD_POLICY=none", "RRD_CHANNEL_FD=9", "LISTEN_FDS=3", "LISTEN_PID=1",
			"NOTIFY_SOCKET=/run/x", "WATCHDOG_USEC=1", "NODE_CHANNEL_FD=4", "NODE_CHANNEL_SERIALIZATION_MODE=json",
			"NODE_UNIQUE_ID=1", "NODE_ENV=production", "TWICE=old"},
		ExtraEnv:        []string{"TWICE=new", "NAME=web-{slot}.{generation}"},
		SharesListeners: true,
		Hooks: Hooks{Listeners: func(slot, generation int) ([]Inherited, error) {
			if slot != 0 || generation != 1 {
				return nil, fmt.Errorf("slot %d, generation %d", slot, generation)
			}
			return []Inherited{{"web", lent}, {":80", lent}}, nil // closed by the pool
		}},
	})
	var r report
	if err := json.Unmarshal([]byte(e.line(t)), &r); err != nil {
		t.Fatal(err)
	}
	w := recv(t, e.startedC)
	if r.PID != w.PID || r.Dir != dir {
		t.Errorf("pid %d in %s, want %d in %s", r.PID, r.Dir, w.PID, dir)
	}
	if diff := cmp.Diff([]string{"0-1", "x y"}, r.Args); diff != "" {
		t.Errorf("args (-want +got):\n%s", diff)
	}
	var kinds []string
	for _, fd := range r.FDs {
		if strings.Contains(fd, " /sys/fs/cgroup/") {
			continue // of the Go runtime in the worker
		}
		kind, _, _ := strings.Cut(strings.TrimSuffix(fd, "]"), ":[")
		kinds = append(kinds, kind)
	}
	if diff := cmp.Diff([]string{"0 /dev/null", "1 pipe", "2 pipe", "3 socket", "4 socket", "5 socket"}, kinds); diff != "" {
		t.Errorf("descriptors (-want +got):\n%s", diff)
	}
	env := slices.Sorted(slices.Values(r.Env))
	env = slices.DeleteFunc(env, func(kv string) bool {
		return strings.HasPrefix(kv, "NOTIFY_SOCKET=@") // the name is the kernel's
	})
	if len(env) != len(r.Env)-1 {
		t.Error("no NOTIFY_SOCKET of its own")
	}
	want := []string{"KEPT=1", "LISTEN_FDNAMES=web:unknown", "LISTEN_FDS=2", fmt.Sprint("LISTEN_PID=", w.PID),
		"NAME=web-0.1", "NODE_ENV=production", "PATH=/bin", "RRD_CHANNEL_FD=5", "RRD_GENERATION=1",
		"RRD_PROTOCOL=2", "RRD_SLOT=0", "TWICE=new"}
	if diff := cmp.Diff(want, env); diff != "" {
		t.Errorf("environment (-want +got):\n%s", diff)
	}
	e.line(t) // it waits
	e.Stop()
	if x := recv(t, e.exitedC); x.Cause != CauseRequested || x.Code != 0 {
		t.Errorf("exit %+v", x)
	}
	if err := recv(t, e.runC); err != nil {
		t.Error(err)
	}
}

// status runs a command as the only worker and returns the fields of /proc/self/status
// that it prints, and its whole output.
func status(t *testing.T, c Config) map[string]string {
	t.Helper()
	e := runReal(t, c)
	if err := recv(t, e.runC); err == nil {
		t.Fatal("no BootError for a command that just ends")
	}
	fields := make(map[string]string)
	for _, l := range e.rest() {
		k, v, _ := strings.Cut(l, ":")
		fields[k] = strings.Join(strings.Fields(v), " ")
	}
	return fields
}

func TestWorkerIdentity(t *testing.T) {
	show := []string{"sh", "-c", "echo nofile: $(ulimit -Sn) $(ulimit -Hn); exec cat /proc/self/status"}
	f := status(t, Config{Argv: show, NoFile: 77})
	if f["nofile"] != "77 77" {
		t.Errorf("nofile %s", f["nofile"])
	}
	for k, want := range map[string]string{"NoNewPrivs": "1", "SigBlk": "0000000000000000", "SigIgn": "0000000000000000"} {
		if f[k] != want {
			t.Errorf("%s = %s, want %s", k, f[k], want)
		}
	}
	f = status(t, Config{Argv: show})
	if want := strconv.FormatUint(OriginalNoFile(), 10); !strings.HasPrefix(f["nofile"], want+" ") {
		t.Errorf("nofile %s, want that of the start, %s", f["nofile"], want)
	}

	needRoot(t)
	f = status(t, Config{Argv: show, Credential: &Credential{UID: 1234, GID: 2345, Groups: []uint32{7, 8}}})
	for k, want := range map[string]string{
		"Uid": "1234 1234 1234 1234", "Gid": "2345 2345 2345 2345", "Groups": "7 8",
		"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "NoNewPrivs": "1",
	} {
		if f[k] != want {
			t.Errorf("with credential: %s = %q, want %q", k, f[k], want)
		}
	}
	f = status(t, Config{Argv: show, Credential: &Credential{UID: 1234, GID: 2345}})
	if f["Groups"] != "" {
		t.Errorf("groups %q were kept", f["Groups"])
	}
}

// A master that was started with ignored signals (nohup) does not pass that on.
func TestIgnoredSignalsEndAtTheMaster(t *testing.T) {
	out := shellOutput(t, `trap "" HUP INT USR1; exec "$0" "$@"`,
		self("master", "/bin/sh", "-c", "grep SigIgn /proc/self/status"))
	if got := strings.Fields(out); !slices.Equal(got, []string{"SigIgn:", "0000000000000000"}) {
		t.Errorf("%q", out)
	}
}

// What the master may inherit to programs does not outlive its workers' change of user.
func TestDropCapabilities(t *testing.T) {
	needRoot(t)
	doneC := make(chan error)
	go func() { // ends its thread too, as it stays locked
		runtime.LockOSThread()
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		err := unix.Capget(&header, &caps[0])
		caps[0].Inheritable = caps[0].Permitted
		if err == nil {
			err = unix.Capset(&header, &caps[0])
		}
		if err == nil {
			err = dropCapabilities()
		}
		if err == nil {
			err = unix.Capget(&header, &caps[0])
		}
		if err == nil && caps != [2]unix.CapUserData{} {
			err = fmt.Errorf("%+v", caps)
		}
		doneC <- err
	}()
	if err := <-doneC; err != nil {
		t.Error(err)
	}
}

func TestResetThreadEmptiesMask(t *testing.T) {
	doneC := make(chan error)
	go func() { // ends its thread too, as it stays locked
		runtime.LockOSThread()
		var set, got unix.Sigset_t
		set.Val[0] = 1 << (syscall.SIGUSR2 - 1)
		err := unix.PthreadSigmask(unix.SIG_BLOCK, &set, nil)
		if err == nil {
			err = resetThread()
		}
		if err == nil {
			err = unix.PthreadSigmask(unix.SIG_BLOCK, nil, &got)
		}
		if err == nil && got.Val[0] != 0 {
			err = fmt.Errorf("mask %x", got.Val[0])
		}
		doneC <- err
	}()
	if err := <-doneC; err != nil {
		t.Error(err)
	}
}

func TestSpawnErrors(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	noRights := write("norights", "x", 0o644)
	noFormat := write("noformat", "no program", 0o755)
	tests := []struct {
		name string
		c    Config
		want error
		text string
	}{
		{"no file", Config{Argv: []string{"/nowhere/app"}}, syscall.ENOENT, `exec "/nowhere/app": no such file or directory`},
		{"not in PATH", Config{Argv: []string{"no-such-app"}, Env: []string{"PATH=/nowhere:" + dir}}, syscall.ENOENT, `exec "no-such-app": not found in PATH: no such file or directory`},
		{"no rights", Config{Argv: []string{noRights}}, syscall.EACCES, "permission denied"},
		{"no rights in PATH", Config{Argv: []string{"norights"}, Env: []string{"PATH=" + dir + ":/nowhere"}}, syscall.EACCES, "permission denied"},
		{"no format", Config{Argv: []string{noFormat}}, syscall.ENOEXEC, "exec format error"},
		{"no directory", Config{Argv: []string{"true"}, Dir: "/nowhere"}, syscall.ENOENT, `chdir "/nowhere": no such file or directory`},
		{"too long", Config{Argv: []string{"true", strings.Repeat("x", 1<<18)}}, syscall.E2BIG, "fork: argument list too long"},
		{"no helper", Config{Argv: []string{"true"}, HelperPath: "/nowhere"}, syscall.ENOENT, "fork: no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := recv(t, runReal(t, tt.c).runC)
			var se *SpawnError
			if !errors.Is(err, tt.want) || !errors.As(err, &se) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Run = %v, want %q", err, tt.text)
			}
		})
	}
}

// The whole group ends with its leader, and a descendant's pipes delay nothing.
func TestGroupEndsWithLeader(t *testing.T) {
	e := runReal(t, Config{Argv: []string{"sh", "-c", "sleep 1000 & echo $!; sleep 1000 & echo last words >&2; exit 3"}})
	err := recv(t, e.runC)
	boot := new(BootError)
	if !errors.As(err, &boot) {
		t.Fatal(err)
	}
	x := boot.Failures[0].Exit
	if x.Code != 3 || x.Cause != CauseCode || !strings.Contains(boot.LastWords(), "last words\n") {
		t.Errorf("%+v", x)
	}
	pid := e.rest()[0]
	for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() { // KILL takes its time
		b, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || strings.Contains(string(b), ") Z ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("descendant lives: %s", b)
		}
	}
}

// A descendant that left the group and holds the pipes cannot hold the exit.
func TestEscapedDescendantHoldsNothing(t *testing.T) {
	e := runReal(t, Config{Argv: []string{"sh", "-c", "setsid sleep 1000 & echo $!; exit 0"}})
	pid, err := strconv.Atoi(e.line(t))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pid, syscall.SIGKILL)
	if x := recv(t, e.exitedC); x.Uptime > 10*time.Second {
		t.Errorf("exit was held up: %+v", x)
	}
	_ = recv(t, e.runC)
}

func TestKillStuckWorker(t *testing.T) {
	e := runReal(t, Config{Argv: self("ignores"), StopTimeout: 50 * time.Millisecond})
	e.line(t)
	w := recv(t, e.startedC)
	e.Ready(w.ID)
	recv(t, e.readyC)
	if err := e.Signal(0, syscall.SIGSTOP); err != nil { // KILL must do even so
		t.Fatal(err)
	}
	e.Stop()
	e.Drained(w.ID)
	x := recv(t, e.exitedC)
	if x.Cause != CauseKilledStuck || x.Signal != syscall.SIGKILL || !x.Requested || !x.WasReady {
		t.Errorf("%+v", x)
	}
	if err := recv(t, e.runC); err != nil {
		t.Error(err)
	}
}

func TestKilledFromOutsideIsRespawned(t *testing.T) {
	e := runReal(t, Config{Argv: self("wait"), Size: 2, RespawnMin: time.Millisecond, RespawnMax: time.Millisecond})
	for n := range 6 {
		w := recv(t, e.startedC)
		e.Ready(w.ID)
		recv(t, e.readyC)
		if n >= 4 {
			continue
		}
		if err := syscall.Kill(w.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if x := recv(t, e.exitedC); x.Cause != CauseSignal || x.Signal != syscall.SIGKILL {
			t.Errorf("%+v", x)
		}
	}
	e.StopNow()
	if err := recv(t, e.runC); err != nil {
		t.Error(err)
	}
}

// Waiting for a worker parks in the poller: no thread for each.
func TestWaitingTakesNoThread(t *testing.T) {
	const size = 60
	e := runReal(t, Config{Argv: []string{"sleep", "1000"}, Size: size})
	for range size {
		recv(t, e.startedC)
	}
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	if len(threads) > size/2 {
		t.Errorf("%d threads for %d workers", len(threads), size)
	}
	e.StopNow()
	if err := recv(t, e.runC); err != nil {
		t.Error(err)
	}
}

func TestNotifySocket(t *testing.T) {
	for _, tt := range []struct {
		name     string
		messages []string
		ready    bool
	}{
		{"ready", []string{"STATUS=x", "STATUS=starting\nREADY=1\nMAINPID=1"}, true},
		{"other words", []string{"READY=0", "XREADY=1", "READY=1x", "STATUS=READY=1"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := runReal(t, Config{Argv: self("notify", tt.messages...), SharesListeners: true, ReadyAfter: NoTimeout})
			e.line(t) // all was sent
			if tt.ready {
				recv(t, e.readyC)
			}
			e.Stop()
			_ = recv(t, e.runC)
			if len(e.readyC) != 0 {
				t.Error("became ready")
			}
		})
	}
}

// Only the worker's own processes are believed.
func TestNotifyOfStranger(t *testing.T) {
	n, err := listenNotify()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	send := func(command ...string) *exec.Cmd {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Env = []string{"NOTIFY_SOCKET=" + n.name()}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	cmd := send(self("notify", "READY=1")...)
	defer cmd.Wait()
	defer cmd.Process.Kill()
	for _, tt := range []struct {
		leader int
		want   bool
	}{{cmd.Process.Pid, true}, {os.Getpid(), false}} {
		if tt.leader == os.Getpid() {
			other := send(self("notify", "READY=1")...)
			defer other.Wait()
			defer other.Process.Kill()
		}
		ready, err := n.receive(tt.leader)
		if err != nil || ready != tt.want {
			t.Errorf("leader %d: ready %v, %v", tt.leader, ready, err)
		}
	}
}

func TestOriginalNoFile(t *testing.T) {
	if out := shellOutput(t, `ulimit -Sn 200; exec "$0" "$@"`, self("limits")); out != "200 true true" {
		t.Errorf("%q", out)
	}
	if out := shellOutput(t, `ulimit -n 200; exec "$0" "$@"`, self("limits")); out != "200 true false" {
		t.Errorf("%q", out)
	}
}

func TestCloseOnExecAll(t *testing.T) {
	defer func(f func() error) { closeRange = f }(closeRange)
	for name, fallback := range map[string]error{"close_range": nil, "walk": syscall.ENOSYS} {
		if fallback != nil {
			closeRange = func() error { return fallback }
		}
		var fds [2]int
		if err := syscall.Pipe2(fds[:], 0); err != nil {
			t.Fatal(err)
		}
		if err := CloseOnExecAll(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, fd := range fds {
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("%s: flags %x, %v", name, flags, err)
			}
			syscall.Close(fd)
		}
	}
	if err := closeOnExecWalk(t.TempDir()); err == nil {
		t.Error("a walk without descriptors: no error")
	}
}

// As PID 1 strangers are reaped, and no worker's status is taken with them.
func TestPID1(t *testing.T) {
	needRoot(t)
	// A /proc of its own, so that it sees who is left.
	words := self("pid1")
	cmd := exec.Command("/bin/sh", append([]string{"-c", `mount -t proc proc /proc && exec "$0" "$@"`}, words...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) {
		t.Skip("may not make a pid namespace")
	}
	want := "children: 2\nrun: <nil>\nexit: requested terminated\nexit: requested terminated\nleft: 0\n"
	if err != nil || string(out) != want {
		t.Errorf("%v, output:\n%s\nwant:\n%s", err, out, want)
	}
}

func TestOOMFiles(t *testing.T) {
	got := oomFiles("9:name=systemd:/\n4:memory:/jobs/1\n0::/user.slice\n")
	want := []string{"/sys/fs/cgroup/memory/jobs/1/memory.oom_control", "/sys/fs/cgroup/user.slice/memory.events"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if n := parseOOMKills([]byte("low 0\noom 3\noom_kill 2\noom_group_kill 1\n")); n != 2 {
		t.Errorf("%d kills, want 2", n)
	}
	if n := parseOOMKills([]byte("max 1\n")); n != 0 {
		t.Errorf("%d kills, want 0", n)
	}
}
