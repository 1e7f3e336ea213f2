package pool

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Exit tells how a process ended.
type Exit struct {
	Code      int            // exit code; -1 when a signal ended it
	Signal    syscall.Signal // 0 when it exited itself
	Core      bool           // it left a core dump
	Requested bool           // the pool had asked it to end
	Cause     Cause
	// Reason says why the pool ended it: a time-out, or what Kill, Abort or Retire
	// was told.
	Reason   string
	Uptime   time.Duration // until the leader ended
	WasReady bool
	Spoke    bool // it said something on its channel
	// Left: it ended cleanly of its own accord, as it had said before, or as Node
	// workers do that have closed their channel.
	Left bool
	// ReaderLost: another process spoke on its channel (SetReader) and ended, how is
	// not known, and the leader was killed because it did not follow by itself.
	ReaderLost bool
	// Daemon is the process that it has left in the background, having daemonized itself; 0:
	// it has not. Its slot stays down.
	Daemon int
	// LastWords is the end of its output, when that is captured.
	LastWords string
}

// String continues a sentence that begins with the worker.
func (x Exit) String() string {
	var b strings.Builder
	if x.Signal == 0 {
		fmt.Fprintf(&b, "exited with code %d", x.Code)
	} else {
		fmt.Fprintf(&b, "was ended by signal %d (%v)", int(x.Signal), x.Signal)
	}
	if x.Core {
		b.WriteString(" and dumped core")
	}
	fmt.Fprintf(&b, " after %v", x.Uptime.Round(time.Millisecond))
	if x.Reason != "" {
		fmt.Fprintf(&b, ": %s", x.Reason)
	}
	return b.String()
}

// Blame says whether the death may have been the doing of what the worker had been
// given: nobody had asked for it, and it was no KILL or TERM from outside. Where a shell
// stands between, it tells of its child's signal as 128 and the number (POSIX, Shell
// Command Language, 2.8.2), as some programs do after a TERM. An unknown
// death counts.
func (x Exit) Blame() bool {
	switch {
	case x.Requested || x.Left || x.Cause == CauseRequested:
		return false
	case x.Cause == CauseSignal:
		return x.ReaderLost || x.Signal != syscall.SIGKILL && x.Signal != syscall.SIGTERM
	case x.Cause == CauseCode:
		return x.Code != 128+int(syscall.SIGKILL) && x.Code != 128+int(syscall.SIGTERM)
	default:
		return true
	}
}

func (x *Exit) clean() bool { return x.Signal == 0 && x.Code == 0 }

// leaderEnded: the leader is reaped, its group was killed before. Without a reader
// of its own the process is gone as soon as its output is read to the end.
func (p *Pool) leaderEnded(pr *proc, status exitStatus, left background) {
	pr.ended = true
	pr.exit = Exit{
		Code:       status.code,
		Signal:     status.signal,
		Core:       status.core,
		Requested:  pr.requested,
		Cause:      p.cause(pr, status),
		Uptime:     time.Since(pr.w.Started),
		WasReady:   pr.wasReady,
		Spoke:      pr.said,
		Left:       (pr.leaves || p.cfg.Protocol == ProtocolNode && pr.wasReady) && !pr.requested && status.signal == 0 && status.code == 0,
		ReaderLost: pr.shellOnly,
	}
	pr.exit.Reason = pr.retired
	if pr.killed || pr.aborted {
		// What a process did of its own accord needs no reason of ours.
		if pr.exit.Cause == CauseKilledStuck || pr.killAsked || pr.shellOnly && pr.exit.Cause == CauseSignal {
			pr.exit.Reason = joinReasons(pr.retired, pr.reason)
		}
	}
	pr.daemonized(status, left)
	if pr.orphan() {
		p.orphaned(pr)
		return
	}
	pr.timers = timers{}
	pr.release()
}

func joinReasons(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "; " + b
}

// outputEnded is the last that comes of a process whose reader has ended too.
func (p *Pool) outputEnded(pr *proc, lastWords string) {
	pr.outputDone = true
	pr.exit.LastWords = lastWords
	if !pr.orphan() { // one that was made known just now is waited for
		p.gone(pr)
	}
}

// gone: no process of this start is left to serve anything.
func (p *Pool) gone(pr *proc) {
	s := pr.s
	delete(p.procs, pr.w.ID)
	p.count(pr)
	if hook := p.cfg.Hooks.Exited; hook != nil {
		x := pr.exit
		p.hooks.post(func() { hook(pr.w, x) })
	}
	p.rollEnded(pr)
	switch {
	case s.cur == pr:
		s.cur = nil
		p.succeed(pr)
		return
	case s.next == pr:
		s.next = nil
		p.refill(s)
		return
	}
	if s.kept == pr {
		s.kept = nil
		return
	}
	s.older = slices.DeleteFunc(s.older, func(o *proc) bool { return o == pr })
	p.supersede(s) // which may have waited for this
}

// count counts an exit, once.
func (p *Pool) count(pr *proc) {
	if !pr.counted {
		pr.counted = true
		x := pr.exit
		pr.s.exits[x.Cause]++
		pr.s.lastExit = &x
	}
}

// succeed plans the successor of a process that has left its place, if it is to
// have one.
func (p *Pool) succeed(pr *proc) {
	s := pr.s
	switch {
	case p.stopping || s.index >= p.desired:
	case s.held:
		s.down = true
	case s.next != nil || s.nextSpawning && s.nextTmpl != nil:
		// It takes the place as soon as it can; see refill.
	case pr.requested && pr.retired == "": // its slot was taken away and given back
		p.start(s, StartScale)
	case p.booting:
		p.failBoot(pr)
	case p.roll.putsBack(s): // whatever the restart policy
	case pr.requested:
		p.start(s, StartRecycle)
	case pr.exit.Daemon != 0:
		s.down = true // another start would leave another daemon
	case p.cfg.Restart == RestartNever || p.cfg.Restart == RestartOnFailure && pr.ended && pr.exit.clean():
		s.down = true
	case pr.exit.Left:
		p.plan(s, p.pauseAfterLeaving(pr), StartRecycle)
	default:
		p.plan(s, p.pauseAfter(pr), StartCrash)
	}
}

// pauseAfter is the backoff of the slot after pr. That of a stuck process began when it
// was killed: by now most of it is over.
func (p *Pool) pauseAfter(pr *proc) time.Duration {
	now := time.Now()
	end, waited := now, time.Duration(0)
	if pr.stuck {
		end, waited = pr.killedAt, now.Sub(pr.killedAt)
	}
	healthy := pr.wasReady && end.Sub(pr.readyAt) >= p.cfg.HealthyAfter
	return pr.s.backoff.next(healthy, p.sys.jitter()) - waited
}

// cause judges an exit. What was asked for is only "requested" if it ended as asked:
// a worker that crashes while it drains has crashed.
func (p *Pool) cause(pr *proc, status exitStatus) Cause {
	killed := status.signal == syscall.SIGKILL
	switch {
	case pr.aborted: // whatever the signal made of it: a core, or an exit of its own
		return CauseKilledStuck
	case killed && pr.killed && !pr.requested && pr.shellOnly:
		return CauseSignal
	case killed && pr.killed && pr.reason != "" && !pr.killAsked:
		return CauseKilledStuck
	case killed && pr.killed:
		return CauseRequested
	case pr.requested && (status.signal == 0 ||
		status.signal == syscall.SIGTERM || status.signal == p.cfg.StopSignal):
		return CauseRequested
	case killed && p.outOfMemory():
		return CauseOOM
	case status.signal != 0:
		return CauseSignal
	default:
		return CauseCode
	}
}

// outOfMemory says whether our cgroup has seen a kill that no exit has been put
// down to. With KILLs of others at the same time it may name the wrong one; there
// is no better source.
func (p *Pool) outOfMemory() bool {
	if p.sys.oomKills() <= p.oomSeen {
		return false
	}
	p.oomSeen++
	return true
}
