//go:build linux

package test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
)

// journaled is an rrd whose stderr is a stream to a journal, as JOURNAL_STREAM says. The
// lines come without waiting for one another.
type journaled struct {
	*exec.Cmd
	t     *testing.T
	lines chan string
}

func startJournaled(t *testing.T, args ...string) *journaled {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var st syscall.Stat_t
	if err := syscall.Fstat(int(w.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	j := &journaled{Cmd: exec.Command(harness.RRD(t), args...), t: t, lines: make(chan string, 1000)}
	j.Env = append(os.Environ(), fmt.Sprintf("JOURNAL_STREAM=%d:%d", st.Dev, st.Ino))
	j.Stdout, j.Stderr = w, w
	if err := j.Start(); err != nil {
		t.Fatal(err)
	}
	go j.read(r) // ends with the last process that has the other end
	t.Cleanup(func() {
		_ = j.Process.Kill() // it has ended, unless the test has failed
		_ = j.Wait()
	})
	return j
}

func (j *journaled) read(r *os.File) {
	defer r.Close()
	defer close(j.lines)
	for s := bufio.NewScanner(r); s.Scan(); {
		j.lines <- s.Text()
	}
}

// next returns the next line, or "" at the end.
func (j *journaled) next() string {
	j.t.Helper()
	select {
	case line := <-j.lines:
		return line
	case <-time.After(30 * time.Second):
		j.t.Fatal("no line within 30 s")
	}
	return ""
}

// event waits for an event. Every record before it has the priority of its level.
func (j *journaled) event(name string) (line string) {
	j.t.Helper()
	want := map[string]string{"debug": "<7>", "info": "<6>", "warn": "<4>", "error": "<3>"}
	for line := j.next(); line != ""; line = j.next() {
		var record struct{ Level, Event string }
		priority, text := line[:min(3, len(line))], line[min(3, len(line)):]
		if err := json.Unmarshal([]byte(text), &record); err != nil || priority != want[record.Level] {
			j.t.Errorf("%v: %q", err, line)
		}
		if record.Event == name {
			return line
		}
	}
	j.t.Fatalf("the log has ended without %s", name)
	return ""
}

// Records to the journal have priorities, also after an upgrade in place, and so have the
// lines of workers in records.
func TestJournalPriorities(t *testing.T) {
	t.Parallel()
	j := startJournaled(t, "--listen", "127.0.0.1:0", "--policy", "none", "--metrics", "off", "--control", "off", "--workers", "1",
		"--log-level", "debug", "--log-format", "json", "--worker-output", "json", "--ready-after", "10ms", "--",
		"sh", "-c", "echo '<2>its own' >&2; exec sleep 60")
	if line := j.event("worker.output"); !strings.Contains(line, `"line":"<2>its own"`) {
		t.Error(line)
	}
	j.event("ready")
	if err := j.Process.Signal(syscall.SIGUSR2); err != nil {
		t.Fatal(err)
	}
	j.event("upgrade.done")
	if err := j.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	j.event("stop")
	if err := j.Wait(); err != nil {
		t.Error(err)
	}
}

// Lines of workers behind a prefix have the priority of info.
func TestJournalPrefixedOutput(t *testing.T) {
	t.Parallel()
	j := startJournaled(t, "--listen", "127.0.0.1:0", "--policy", "none", "--metrics", "off", "--control", "off", "--workers", "1",
		"--worker-output", "prefix", "--", "sh", "-c", "echo one; echo two >&2; exit 7")
	var prefixed int
	for line := j.next(); line != ""; line = j.next() {
		switch {
		case strings.HasPrefix(line, "<6>[slot 0] "):
			prefixed++
		case !strings.HasPrefix(line, "<"):
			t.Errorf("%q", line)
		}
	}
	if prefixed != 2 {
		t.Errorf("%d lines of the worker", prefixed)
	}
}

// An error before the log is open has a priority too. Raw output of workers has none but
// its own.
func TestJournalErrorsAndRawOutput(t *testing.T) {
	t.Parallel()
	j := startJournaled(t, "--nosuch")
	if line := j.next(); !strings.HasPrefix(line, "<3>rrd: ") {
		t.Errorf("%q", line)
	}
	j = startJournaled(t, "--listen", "127.0.0.1:0", "--policy", "none", "--metrics", "off", "--control", "off", "--workers", "1",
		"--worker-output", "raw", "--", "sh", "-c", "echo 'raw line' >&2; exit 7")
	var raw, errs int
	for line := j.next(); line != ""; line = j.next() {
		switch {
		case line == "raw line":
			raw++
		case strings.HasPrefix(line, "<3>rrd: "):
			errs++
		case !strings.HasPrefix(line, "<"):
			t.Errorf("%q", line)
		}
	}
	if raw != 1 || errs != 1 {
		t.Errorf("%d raw lines, %d errors", raw, errs)
	}
}

// A variable that was inherited says nothing about a stderr that was redirected.
func TestJournalRedirected(t *testing.T) {
	t.Parallel()
	c := exec.Command(harness.RRD(t), "--nosuch")
	c.Env = append(os.Environ(), "JOURNAL_STREAM=9:12345")
	out, err := c.CombinedOutput()
	if err == nil || !strings.HasPrefix(string(out), "rrd: ") {
		t.Errorf("%v %q", err, out)
	}
}
