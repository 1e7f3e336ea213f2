package pool

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
	"strings"
)

// oomKills returns the out-of-memory kills of the master's own cgroup and those below
// it, which is where its workers are (memory.events of v2, memory.oom_control of v1;
// Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst). 0 if unknown.
func oomKills() uint64 {
	table, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return 0
	}
	var n uint64
	for _, path := range oomFiles(string(table)) {
		if b, err := os.ReadFile(path); err == nil {
			n += parseOOMKills(b)
		}
	}
	return n
}

// oomFiles names the files to look at for a /proc/self/cgroup. Under a cgroup
// namespace the paths are relative to its root, which is what is mounted there.
func oomFiles(table string) (paths []string) {
	for line := range strings.Lines(table) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		switch {
		case len(f) != 3:
		case f[0] == "0":
			paths = append(paths, "/sys/fs/cgroup"+f[2]+"/memory.events")
		case f[1] == "memory":
			paths = append(paths, "/sys/fs/cgroup/memory"+f[2]+"/memory.oom_control")
		}
	}
	return paths
}

func parseOOMKills(b []byte) uint64 {
	for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), "oom_kill "); ok {
			n, _ := strconv.ParseUint(v, 10, 64)
			return n
		}
	}
	return 0
}
