package leakcheck

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// startCat starts a process that lives until its stdin is closed; end does that
// and waits for it.
func startCat(t *testing.T, env ...string) (cmd *exec.Cmd, end func()) {
	t.Helper()
	linuxOnly(t)
	cmd = exec.Command("cat")
	cmd.Env = append(os.Environ(), env...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, func() {
		t.Helper()
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("wait for cat: %v", err)
		}
	}
}

func TestNoChildrenSeesALivingChildThenNone(t *testing.T) {
	cmd, end := startCat(t)
	r := &recorder{TB: t}
	noChildren(r, short)
	wantContains(t, r.text(), "1 children left", fmt.Sprintf("child process %d: cat, state", cmd.Process.Pid), "running cat")
	end()
	NoChildren(t)
}

func TestCheckSeesAStrayChild(t *testing.T) {
	r := &recorder{TB: t}
	check(r, short)
	cmd, end := startCat(t)
	r.end()
	end()
	wantContains(t, r.text(), fmt.Sprintf("child process %d: cat", cmd.Process.Pid))
}

func TestCheckSeesAZombie(t *testing.T) {
	linuxOnly(t)
	r := &recorder{TB: t}
	check(r, short)
	cmd := exec.Command("cat")
	stdout, err := cmd.StdoutPipe() // ends with the process
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, stdout); err != nil {
		t.Fatal(err)
	}
	r.end()
	if err := cmd.Wait(); err != nil {
		t.Errorf("wait for cat: %v", err)
	}
	wantContains(t, r.text(), fmt.Sprintf("child process %d: cat, a zombie", cmd.Process.Pid))
}

// The grandchild outlives its parent and so is nobody's child here.
func TestNoProcessFindsAnOrphan(t *testing.T) {
	linuxOnly(t)
	env := fmt.Sprintf("LEAKCHECK_TEST_RUN=%d", os.Getpid())
	// fd 3 is the orphan's stdin: closing our end ends it.
	orphanStdin, ours, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "cat <&3 >/dev/null 2>&1 &")
	cmd.Env = append(os.Environ(), env)
	cmd.ExtraFiles = []*os.File{orphanStdin}
	err = cmd.Run()
	_ = orphanStdin.Close()
	if err != nil {
		_ = ours.Close()
		t.Fatal(err)
	}
	r := &recorder{TB: t}
	noProcess(r, env, short)
	_ = ours.Close()
	wantContains(t, r.text(), "1 processes with "+env+" left", "cat")
	NoProcess(t, env)
}

// A value that only begins like the wanted one is another run's.
func TestNoProcessComparesTheWholeValue(t *testing.T) {
	_, end := startCat(t, "LEAKCHECK_TEST_RUN=12")
	defer end()
	noProcess(t, "LEAKCHECK_TEST_RUN=1", short)
}

func TestNoProcessWantsNameAndValue(t *testing.T) {
	for _, env := range []string{"", "NAME", "=value"} {
		r := &recorder{TB: t}
		noProcess(r, env, short)
		wantContains(t, r.text(), fmt.Sprintf("variable %q: write it as NAME=value", env))
	}
}

func TestList(t *testing.T) {
	if got, want := list([]string{"a\nb", "c"}), "  a\n  b\n  c\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := strings.Join(sorted("pid", map[int]string{10: "b", 9: "a"}), ", "); got != "pid 9: a, pid 10: b" {
		t.Errorf("got %q", got)
	}
}
