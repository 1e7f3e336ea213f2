package pool

import (
	"context"
	"fmt"
	"os"
	"syscall"
	"time"
)

const (
	// readerGrace is for a shell, which ends right after its child and says how.
	readerGrace = 100 * time.Millisecond
	// pollInterval is for systems that tell of the end of a stranger in no other way.
	pollInterval = 100 * time.Millisecond
)

// reader is the process that speaks on a worker's channel when it is not the leader:
// the server behind "sh -c server". It is watched and never signalled: it belongs to
// the group, which is killed with its leader, or it has left it on purpose.
type reader struct {
	pid   int
	ended bool
	// forget ends the watching.
	forget context.CancelFunc
}

func (r *reader) alive() bool { return r != nil && !r.ended }

// watched is a process that may be anybody's child.
type watched interface {
	// wait returns true when the process has ended, false when ctx has. It is
	// called once, and releases what is held.
	wait(ctx context.Context) bool
}

// SetReader says which process speaks on the worker's channel, as its socket tells.
// The worker then has ended only when this one has too; see Hooks.Orphaned. If it
// ends before the leader does, the worker is taken for dead and its group is killed.
//
// It should be called as soon as the process is known to live, since its number may
// be another's once it has ended. Numbers that are nobody's (0 is that of a process in
// another pid namespace) are ignored, and so is our own.
func (p *Pool) SetReader(id uint64, pid int) {
	if pid <= 1 || pid == os.Getpid() {
		return
	}
	w := p.sys.watch(pid) // at once, for that reason
	if !p.tellReader(id, pid, w) {
		discard(w)
	}
}

// tellReader reports whether the loop takes w.
func (p *Pool) tellReader(id uint64, pid int, w watched) bool {
	p.phaseMu.Lock()
	defer p.phaseMu.Unlock()
	switch p.phase {
	case phaseOver:
		return false
	case phaseFrozen: // a handle does not cross
		p.kept = append(p.kept, Report{Kind: reportReader, ID: id, PID: pid})
		return false
	default:
		p.inbox.post(func() { p.setReader(p.procs[id], pid, w) })
		return true
	}
}

// discard releases what nobody is going to wait for.
func discard(w watched) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w.wait(ctx)
}

func (p *Pool) setReader(pr *proc, pid int, w watched) {
	if pr == nil || pid == pr.w.PID {
		discard(w)
		return
	}
	if pr.reader != nil {
		pr.reader.forget()
	}
	p.watchReader(pr, pid, w)
	if pr.ended && !pr.counted {
		p.orphaned(pr) // just in time; if it is not alive, that comes next
	}
}

func (p *Pool) watchReader(pr *proc, pid int, w watched) {
	ctx, forget := context.WithCancel(p.lifeCtx)
	r := &reader{pid: pid, forget: forget}
	pr.reader = r
	p.tasks.Go(func() { p.awaitReader(ctx, pr, r, w) })
}

// awaitReader tells the loop of the end of a reader. Run waits for it.
func (p *Pool) awaitReader(ctx context.Context, pr *proc, r *reader, w watched) {
	defer r.forget()
	if w.wait(ctx) {
		p.inbox.post(func() { p.readerEnded(pr, r) })
	}
}

func (p *Pool) readerEnded(pr *proc, r *reader) {
	if pr.reader != r {
		return
	}
	r.ended = true
	switch {
	case !pr.ended:
		if !pr.killed {
			pr.timers.set(readerTimer, time.Now(), readerGrace)
		}
	case pr.outputDone:
		p.gone(pr)
	default:
		pr.release()
	}
}

// release lets the output of a process be read to its end.
func (pr *proc) release() {
	if !pr.released() {
		close(pr.releasedC)
	}
}

func (pr *proc) released() bool {
	select {
	case <-pr.releasedC:
		return true
	default:
		return false
	}
}

// killShell: the reader has ended, and the leader goes on without it.
func (p *Pool) killShell(pr *proc) {
	pr.shellOnly = true
	var reason string
	if !pr.requested {
		reason = fmt.Sprintf("process %d, which spoke for it, has ended", pr.reader.pid)
	}
	p.kill(pr, reason)
}

// polledWatch is for systems that give no handle of a process. One that was not
// reaped by its parent is taken to live, and one whose number is used again too.
type polledWatch int

func (pid polledWatch) wait(ctx context.Context) bool {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		if syscall.Kill(int(pid), 0) == syscall.ESRCH { // EPERM is life
			return true
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return false
		}
	}
}

// endedWatch is a process that is not there any more.
type endedWatch struct{}

func (endedWatch) wait(context.Context) bool { return true }
