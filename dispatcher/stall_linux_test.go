package dispatcher

import (
	"testing"
	"time"

	"rrd/handoff"
)

const stallHang = 30 * time.Second

// stalling returns a dispatcher with heartbeats and a worker that has read a handoff and
// owes its answer.
func stalling(t *testing.T) (*stepped, *peer) {
	s := newStepped(t, Config{Configured: true, BusyAfter: 50 * time.Millisecond, HangTimeout: stallHang})
	s.l.beatAt = s.l.clock.now() + s.l.beatEvery()
	ln := s.listen("web")
	p := s.serving(ln)
	s.connect(ln, 1)
	s.settle()
	p.mustGet(1)
	return s, p
}

// run lets time pass for a master that runs.
func (s *stepped) run(d time.Duration) {
	s.Helper()
	for ; d > 0; d -= time.Second {
		s.pass(min(d, time.Second))
		s.step()
	}
}

// A worker that was not late before a stall of the master is not late after it.
func TestALateTurnForgives(t *testing.T) {
	s, p := stalling(t)
	s.pass(time.Minute)
	s.step()
	if p.k.late {
		t.Fatal("late after a stall of the master")
	}
	s.pass(50 * time.Millisecond)
	s.step()
	if !p.k.late {
		t.Error("forgiven for ever")
	}
}

// A master and its workers that were frozen together lose no worker.
func TestAStallLeavesALateWorkerItsTime(t *testing.T) {
	s, p := stalling(t)
	s.run(20 * time.Second)
	if !p.k.late || p.k.pinged == 0 {
		t.Fatal("not late")
	}
	s.pass(time.Minute)
	s.step()
	s.run(5 * time.Second)
	if s.heard("hung") {
		t.Fatalf("hung after 25 s of %v", stallHang)
	}
	p.ack(1)
	s.settle()
	if p.k.late {
		t.Error("still late after its answer")
	}
}

// Stalls do not add to the time that a worker may hang. Its library answers each PING.
func TestStallsKeepNoHungWorkerAlive(t *testing.T) {
	s, p := stalling(t)
	for range 5 {
		for range 8 {
			s.run(time.Second)
			if p.k.pinged != 0 {
				p.hear()
				p.say(handoff.Frame{Type: handoff.Pong, Seq: p.last(handoff.Ping).Seq})
				s.step()
			}
		}
		s.pass(10 * time.Second)
		s.step()
	}
	s.mustHear("hung 1")
}

// The same where workers answer no PING.
func TestStallsKeepNoMuteWorkerAlive(t *testing.T) {
	s := newStepped(t, Config{Configured: true, BusyAfter: 50 * time.Millisecond, HangTimeout: stallHang})
	s.l.beatAt = s.l.clock.now() + s.l.beatEvery()
	ln := s.listen("web")
	p, _ := s.speaking(handoff.Traits{NoPong: true})
	p.ready(ln)
	s.connect(ln, 1)
	s.settle()
	p.mustGet(1)
	for range 5 {
		s.run(8 * time.Second)
		s.pass(10 * time.Second)
		s.step()
	}
	s.mustHear("hung 1")
}

// A silent worker that owes no connection is found by its heartbeat, stalls or not.
func TestStallsKeepNoSilentWorkerAlive(t *testing.T) {
	s, p := stalling(t)
	p.ack(1)
	s.settle()
	for range 6 {
		s.run(8 * time.Second)
		s.pass(10 * time.Second)
		s.step()
	}
	s.mustHear("hung 1")
}

// Upgrades in place keep both deadlines of a worker: of its answer and of its PONG.
func TestUpgradesKeepTheHangDeadline(t *testing.T) {
	for name, owes := range map[string]bool{"an answer": true, "a PONG": false} {
		t.Run(name, func(t *testing.T) {
			s, p := stalling(t)
			if !owes {
				p.ack(1)
				s.settle()
			}
			for n := 0; !s.heard("hung"); n++ {
				if n == 40 {
					t.Fatal("upgrades every second keep a stopped worker alive")
				}
				s.pass(700 * time.Millisecond)
				s.step()
				s.upgradeIn(300*time.Millisecond, p)
				s.step()
			}
		})
	}
}

// Neither do reloads, which set the limits again.
func TestReloadsKeepTheHeartbeat(t *testing.T) {
	s, p := stalling(t)
	p.ack(1)
	s.settle()
	for n := 0; !s.heard("hung"); n++ {
		if n == 40 {
			t.Fatal("reloads every second keep a stopped worker alive")
		}
		s.run(time.Second)
		s.l.setLimits(s.l.limits())
	}
}

// An upgrade that takes long is a stall.
func TestASlowUpgradeIsAStall(t *testing.T) {
	s, p := stalling(t)
	s.run(20 * time.Second)
	s.upgradeIn(time.Minute, p)
	s.step()
	s.run(5 * time.Second)
	if s.heard("hung") {
		t.Fatalf("hung after 25 s of %v", stallHang)
	}
	s.run(10 * time.Second)
	s.mustHear("hung 1")
}

// A successor that stood still too gets its second to ask for its predecessor's listeners.
func TestAStallLeavesASuccessorItsTime(t *testing.T) {
	s := newStepped(t, Config{})
	old := s.peer()
	old.ask(1, "tcp", "127.0.0.1:0", 0)
	old.answered(1)
	old.say(readyFrame)
	s.settle()
	s.peers = 0 // the same slot
	next := s.peer()
	next.say(readyFrame)
	s.step()
	if len(s.l.settling) != 1 {
		t.Fatal("not settling")
	}
	s.pass(time.Minute)
	s.step()
	if len(s.l.settling) != 1 {
		t.Error("a stall counts as the second of quiet")
	}
}

// A rejected connection has no death of a worker, also if the answer is read after it.
func TestRejectedBeforeDeath(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln := s.listen("web")
	dies := s.serving(ln)
	s.connect(ln, 2)
	s.settle()
	dies.mustGet(1, 2)
	dies.reject(1)
	dies.die(Removal{Blame: true})
	other := s.serving(ln)
	if len(other.has) != 2 || other.has[0].deaths != 0 || other.has[1].deaths != 1 {
		t.Errorf("got %+v", other.has)
	}
	st := s.l.copyStats()
	if st.Slots[0].Rejects[handoff.ReasonBusy] != 1 || st.Redispatches[RedispatchRejected] != 1 {
		t.Errorf("%+v %v", st.Slots[0], st.Redispatches)
	}
}
