package pool

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// leaves runs a shell as the leader of a group, with a listener as descriptor 3, and looks
// for what it has left when it is a zombie. The script writes the pid that it leaves.
func leaves(t *testing.T, script string) (found background, pid int) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// The pid is that of the shell, as the exec helper sets it.
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec sh -c "$0"`, script)
	cmd.ExtraFiles = []*os.File{f}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if pid, err = strconv.Atoi(strings.TrimSpace(line)); err != nil {
		t.Fatal(err)
	}
	if pid > 0 {
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGKILL) })
	}
	if !awaitExit(t.Context(), cmd.Process.Pid) {
		t.Fatal("the leader has not ended")
	}
	return findBackground(cmd.Process.Pid, inodes([]Inherited{{File: f}})), pid
}

func TestFindBackground(t *testing.T) {
	const (
		inGroup  = `sleep 100 >&- 2>&- & echo $!`
		outOfIt  = `setsid sh -c 'echo $$; exec sleep 100 >&- 2>&-' ` // says its number when it is out
		nothing  = `sleep 0 & wait; echo 0`
		stranger = `env -i ` + outOfIt
	)
	for name, tt := range map[string]struct {
		script string
		group  bool
	}{
		"in the group":             {inGroup, true},
		"out of the group":         {outOfIt + `3>&- &`, false},
		"with another environment": {stranger + `&`, false},
	} {
		t.Run(name, func(t *testing.T) {
			found, pid := leaves(t, tt.script)
			if want := (background{pid, tt.group}); found != want {
				t.Errorf("found %+v, want %+v", found, want)
			}
		})
	}
	if found, _ := leaves(t, nothing); found.found() {
		t.Errorf("found %+v where nothing is left", found)
	}
	if found, _ := leaves(t, stranger+`3>&- &`); found.found() {
		t.Errorf("found %+v, which has nothing of the worker", found)
	}
}

// A worker beside the leader has the same sockets.
func TestAnotherWorkerIsNotBackground(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	start := func(script string) *exec.Cmd {
		cmd := exec.Command("sh", "-c", script)
		cmd.ExtraFiles = []*os.File{f}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	leader := start("exit 0")
	other := start("sleep 100 & sleep 100")
	defer func() {
		_ = syscall.Kill(-other.Process.Pid, syscall.SIGKILL)
		_, _ = leader.Wait(), other.Wait()
	}()
	if !awaitExit(t.Context(), leader.Process.Pid) {
		t.Fatal("the leader has not ended")
	}
	if found := findBackground(leader.Process.Pid, inodes([]Inherited{{File: f}})); found.found() {
		t.Errorf("found %+v", found)
	}
}
