package main

import (
	"os"
	"strconv"
	"strings"
)

// residentMemory is that of one process, in bytes: the second field of
// /proc/PID/statm, in pages (proc_pid_statm(5)).
func residentMemory(pid int) (uint64, bool) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
	if err != nil {
		return 0, false
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0, false
	}
	pages, err := strconv.ParseUint(fields[1], 10, 64)
	return pages * uint64(os.Getpagesize()), err == nil
}
