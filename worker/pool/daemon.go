package pool

import (
	"fmt"
	"os"
	"slices"
	"syscall"
	"time"
)

// A program that daemonizes forks, and its first process exits with code 0 at once. If the
// pool took that for an ordinary exit, it would start daemon after daemon, each with the
// listener open. So after an early and clean exit the pool looks for a process that was left
// behind.

// daemonWithin is how soon after its start a program that daemonizes exits at the latest. Most do
// so within 1 s, on a machine that is not busy.
const daemonWithin = 3 * time.Second

// background is a process that a leader has left running.
type background struct {
	pid int
	// group: it is in the leader's process group, and ends with the leader.
	group bool
}

func (b background) found() bool { return b.pid != 0 }

// cure returns one line with the cure for a program that daemonizes.
func (b background) cure() string {
	text := fmt.Sprintf("the command has put itself into the background as process %d, which rrd cannot supervise: run it in the foreground "+
		"(--foreground, -F, --no-daemon, --nodaemon, -D, or a setting such as \"daemon off;\" of nginx)", b.pid)
	if !b.group {
		text += fmt.Sprintf(", and end process %d", b.pid)
	}
	return text
}

// leavesBackground looks for a process that the leader has left. Call it between the
// leader's end and its reaping: while the leader is a zombie, no other process gets its pid.
func (p *Pool) leavesBackground(pr *proc) background {
	if !p.fixed.mayBeListenFDs() || pr.ran.IsZero() || time.Since(pr.ran) > daemonWithin {
		return background{}
	}
	return p.sys.background(pr.w.PID, pr.lent)
}

// daemonized notes that a leader has daemonized. If the program has spoken, or was asked to
// end, its exit is an ordinary one.
func (pr *proc) daemonized(status exitStatus, b background) {
	if b.found() && status == (exitStatus{}) && !pr.requested && !pr.said && !pr.killed {
		pr.exit.Daemon = b.pid
		pr.exit.Reason = b.cure()
	}
}

// inodes names the listening sockets that a process is given.
func inodes(listeners []Inherited) (list []uint64) {
	for _, l := range listeners {
		if info, err := l.File.Stat(); err == nil {
			list = append(list, inode(info))
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func inode(info os.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}
