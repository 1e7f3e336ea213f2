package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Children returns the children of a process, with their states as one letter.
func Children(pid int) map[int]byte {
	found := make(map[int]byte)
	names, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range names {
		fields, ok := stat(name)
		if parent, err := strconv.Atoi(fields[1]); ok && err == nil && parent == pid {
			child, _ := strconv.Atoi(strings.Split(name, "/")[2])
			found[child] = fields[0][0]
		}
	}
	return found
}

// Helpers returns the helper processes of a master.
func Helpers(pid int) (pids []int) {
	for child := range Children(pid) {
		args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child))
		if strings.Contains(string(args), "__rrd-aside") {
			pids = append(pids, child)
		}
	}
	return pids
}

// stat returns the fields behind the name: state, ppid and so on
// (proc_pid_stat(5), from the third).
func stat(name string) ([]string, bool) {
	text, err := os.ReadFile(name)
	if err != nil {
		return make([]string, 50), false
	}
	_, rest, _ := strings.Cut(string(text[strings.LastIndexByte(string(text), ')'):]), " ")
	fields := strings.Fields(rest)
	return fields, len(fields) > 20
}

// Alive reports whether a process is there and no zombie.
func Alive(pid int) bool {
	fields, ok := stat(fmt.Sprintf("/proc/%d/stat", pid))
	return ok && fields[0] != "Z"
}

// State returns the state of a process as one letter, "" if it is gone.
func State(pid int) string {
	fields, _ := stat(fmt.Sprintf("/proc/%d/stat", pid))
	return fields[0]
}

// stopped returns an error as long as a thread of the process runs.
func stopped(pid int) error {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	for _, name := range threads {
		if fields, ok := stat(name); ok && fields[0] != "T" && fields[0] != "Z" && fields[0] != "X" {
			return fmt.Errorf("%s is in state %s", name, fields[0])
		}
	}
	return nil
}

// clockTick is what /proc counts CPU time in; it is 100 on every Linux that Go
// runs on (sysconf(3), _SC_CLK_TCK).
const clockTick = 10 * time.Millisecond

// CPU returns the time that a process has had, in the kernel and outside.
func CPU(pid int) (time.Duration, error) {
	fields, ok := stat(fmt.Sprintf("/proc/%d/stat", pid))
	if !ok {
		return 0, fmt.Errorf("no process %d", pid)
	}
	user, err := strconv.Atoi(fields[11])
	if err != nil {
		return 0, err
	}
	system, err := strconv.Atoi(fields[12])
	return time.Duration(user+system) * clockTick, err
}

// FDs returns what a process has open, by number.
func FDs(pid int) (map[int]string, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	open := make(map[int]string, len(entries))
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // closed since
		}
		open[n] = target
	}
	return open, nil
}

// Status returns the fields of /proc/PID/status.
func StatusFields(pid int) (map[string]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	fields := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			fields[key] = strings.Join(strings.Fields(value), " ")
		}
	}
	return fields, nil
}

// Environ returns the environment that a process was started with.
func Environ(pid int) (map[string]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return nil, err
	}
	env := make(map[string]string)
	for kv := range strings.SplitSeq(strings.TrimSuffix(string(text), "\x00"), "\x00") {
		key, value, _ := strings.Cut(kv, "=")
		env[key] = value
	}
	return env, nil
}

// marked returns the processes, other than this one, whose environment has the
// variable.
func marked(kv string) (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil || !strings.Contains("\x00"+string(text), "\x00"+kv+"\x00") {
			continue
		}
		if pid, err := strconv.Atoi(strings.Split(name, "/")[2]); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

func contains(text, want string) error {
	if !strings.Contains(text, want) {
		return fmt.Errorf("it is %.2000q", text)
	}
	return nil
}
