package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"rrd/dispatcher"
)

// portPatience is how long a port may take to close after the last worker. Processes of
// the worker's group were killed with it and may still be ending.
const portPatience = time.Second

// keptPorts returns an error if a process that has outlived its worker, outside of its
// process group, still has one of these ports open. A new rrd could not bind it, or clients
// would get no answer.
func keptPorts(ports []dispatcher.Port) error {
	began := time.Now()
	for {
		kept := openPorts(ports)
		if len(kept) == 0 {
			return nil
		}
		if time.Since(began) >= portPatience {
			return fmt.Errorf("%s keeps %s open, and has left the process group of its worker, which rrd kills: end it",
				ownerOf(kept[0].Inode), kept[0].Address)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// openPorts returns the ports that the kernel still lists, although rrd has closed its
// sockets.
func openPorts(ports []dispatcher.Port) (open []dispatcher.Port) {
	if len(ports) == 0 {
		return nil
	}
	listed := make(map[string]bool)
	for _, name := range []string{"tcp", "tcp6", "udp", "udp6"} {
		text, err := os.ReadFile("/proc/self/net/" + name)
		if err != nil {
			continue // such a port is not reported
		}
		for line := range bytes.Lines(text) {
			const inode = 9 // proc_pid_net(5)
			if fields := bytes.Fields(line); len(fields) > inode {
				listed[string(fields[inode])] = true
			}
		}
	}
	for _, p := range ports {
		if listed[strconv.FormatUint(p.Inode, 10)] {
			open = append(open, p)
		}
	}
	return open
}

// ownerOf names a process that has a socket.
func ownerOf(inode uint64) string {
	target := fmt.Sprintf("socket:[%d]", inode)
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range processes {
		fds, err := os.ReadDir(dir + "/fd")
		if err != nil {
			continue // another's, or gone
		}
		for _, fd := range fds {
			if to, err := os.Readlink(dir + "/fd/" + fd.Name()); err == nil && to == target {
				comm, _ := os.ReadFile(dir + "/comm")
				return fmt.Sprintf("process %s (%s)", filepath.Base(dir), plain(strings.TrimSpace(string(comm))))
			}
		}
	}
	return "a process that rrd may not look at"
}
