package leakcheck

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// children describes every child of this process. It reads all of /proc rather
// than /proc/self/task/*/children, which needs a kernel built for it.
func children() map[int]string {
	found := make(map[int]string)
	for _, pid := range processes() {
		p, ok := readStat(pid)
		if ok && p.parent == os.Getpid() {
			found[pid] = p.String()
		}
	}
	return found
}

// carriers describes the processes that were started with env, NAME=value, in
// their environment (proc_pid_environ(5)). A zombie's environment is gone: it is
// its parent's to miss. Processes of other users cannot be read and do not count.
func carriers(env string) map[int]string {
	found := make(map[int]string)
	for _, pid := range processes() {
		if pid == os.Getpid() {
			continue
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil || !bytes.Contains(append([]byte{0}, text...), []byte("\x00"+env+"\x00")) {
			continue
		}
		if p, ok := readStat(pid); ok {
			found[pid] = p.String()
		}
	}
	return found
}

// processes returns the numbers in /proc, none where there is no /proc.
func processes() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1) // What was read before an error is still true.
	pids := make([]int, 0, len(names))
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// process is what a check wants of /proc/PID/stat.
type process struct {
	name    string
	state   string
	parent  int
	cmdline string
}

func (p process) String() string {
	if p.state == "Z" {
		return fmt.Sprintf("%s, a zombie: nobody waited for it", p.name)
	}
	return fmt.Sprintf("%s, state %s, running %s", p.name, p.state, p.cmdline)
}

// readStat is not ok when the process is gone.
func readStat(pid int) (p process, ok bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, false
	}
	if p, ok = parseStat(string(text)); !ok {
		return process{}, false
	}
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	p.cmdline = strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
	return p, true
}

// parseStat reads "PID (NAME) STATE PPID ...". A name may hold spaces and
// brackets of its own, so it ends at the last one (proc_pid_stat(5)).
func parseStat(text string) (p process, ok bool) {
	open, end := strings.IndexByte(text, '('), strings.LastIndexByte(text, ')')
	if open < 0 || end < open {
		return process{}, false
	}
	fields := strings.Fields(text[end+1:])
	if len(fields) < 2 {
		return process{}, false
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return process{}, false
	}
	return process{name: text[open+1 : end], state: fields[0], parent: parent}, true
}
