package pool

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// findBackground returns a process that leader, a zombie, has left running. Such a process
// is in the group of leader, or it was forked by leader or by a process that was: then it
// has leader's environment (proc_pid_environ(5)), or, if it has overwritten that, one of
// the sockets lent, and no worker of ours as the leader of its group.
func findBackground(leader int, lent []uint64) background {
	self, start := os.Getpid(), readProc(leader).start
	var found background
	for _, pid := range processes() {
		p := readProc(pid)
		switch {
		case pid == leader || pid == self || p.state == "" || p.state == "Z" || p.start < start:
		case p.group == leader:
			return background{pid: pid, group: true}
		case found.found():
		case hasListenPID(pid, leader),
			readProc(p.group).parent != self && holds(pid, lent):
			found = background{pid: pid}
		}
	}
	return found
}

// processes lists the pids of all processes.
func processes() (pids []int) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1) // after an error a part of the names is enough
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// procStat is a part of proc_pid_stat(5). The zero value is a process that is gone.
type procStat struct {
	state         string
	parent, group int
	start         uint64 // clock ticks after boot
}

func readProc(pid int) (p procStat) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return p
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]) // after the name, from the third on
	const state, parent, group, start = 0, 1, 2, 19
	if len(fields) <= start {
		return p
	}
	p.state = string(fields[state])
	p.parent, _ = strconv.Atoi(string(fields[parent]))
	p.group, _ = strconv.Atoi(string(fields[group]))
	p.start, _ = strconv.ParseUint(string(fields[start]), 10, 64)
	return p
}

// hasListenPID reports whether a process was started with the environment of the worker
// that leader is. Ours is the only one with that LISTEN_PID.
func hasListenPID(pid, leader int) bool {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
	if err != nil {
		return false
	}
	want := []byte("LISTEN_PID=" + strconv.Itoa(leader))
	for v := range bytes.SplitSeq(b, []byte{0}) {
		if bytes.Equal(v, want) {
			return true
		}
	}
	return false
}

// holds reports whether a process has one of these sockets open.
func holds(pid int, sockets []uint64) bool {
	if len(sockets) == 0 {
		return false
	}
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	d, err := os.Open(dir)
	if err != nil {
		return false
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1) // as above
	for _, name := range names {
		target, err := os.Readlink(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		text, ok := strings.CutPrefix(target, "socket:[")
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64); err == nil && slices.Contains(sockets, n) {
			return true
		}
	}
	return false
}
