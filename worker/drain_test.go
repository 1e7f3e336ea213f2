package worker

import (
	"errors"
	"net"
	"testing"

	"rrd/handoff"
	"rrd/test/leakcheck"
)

func isDraining(ch *channel) bool {
	select {
	case <-ch.drainC:
		return true
	default:
		return false
	}
}

func TestDrainWaitsForOpenConnections(t *testing.T) {
	leakcheck.Check(t)
	m := newMaster(t)
	ch := m.worker(0)
	ln := m.listen(ch, 1)
	m.handOff(1)
	first := accepted(t, accept(t, ln))
	m.handOff(1)
	second := accepted(t, accept(t, ln))
	blocked := accept(t, ln)
	parked(t, ch, 0, waiterReads)

	if isDraining(ch) {
		t.Fatal("draining before DRAIN")
	}
	m.send(handoff.Frame{Type: handoff.Drain})
	<-ch.drainC
	_, late := m.handOff(1)
	m.expect(handoff.Ready)
	m.expect(handoff.Ack)
	m.expect(handoff.Ack)
	m.expectReject(late, handoff.ReasonDraining)

	_ = first.Close()
	m.barrier() // not yet DRAINED
	_ = second.Close()
	m.expect(handoff.Drained)
	m.barrier()
	if len(blocked) > 0 {
		t.Error("Accept has returned")
	}
	_ = ln.Close()
	if _, err := wait(t, blocked); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept ends with %v", err)
	}
	m.expect(handoff.Leave)
}

func TestDrainRejectsWhatIsQueued(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	m.listen(ch, 1)
	_, seq := m.handOff(1)
	m.send(handoff.Frame{Type: handoff.Drain})
	m.expectReject(seq, handoff.ReasonDraining)
	m.expect(handoff.Drained)
}

func TestDrainBeforeTheFirstAccept(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln := m.listen(ch, 1)
	m.send(handoff.Frame{Type: handoff.Drain})
	m.expect(handoff.Drained)
	accept(t, ln)
	parked(t, ch, 0, waiterReads)
	m.barrier() // and no READY
	_ = ln.Close()
}

func TestSecondDrainSaysNothing(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	m.listen(ch, 1)
	m.send(handoff.Frame{Type: handoff.Drain})
	m.send(handoff.Frame{Type: handoff.Drain})
	m.expect(handoff.Drained)
	m.barrier()
	if len(m.got) > 0 {
		t.Errorf("also says %v", m.got)
	}
}

func TestMasterGoneFinishesThenExits(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln := m.listen(ch, 1)
	exited := exits(ch)
	client, _ := m.handOff(1)
	conn := accepted(t, accept(t, ln))
	blocked := accept(t, ln)
	m.die()
	<-ch.drainC
	exchange(t, client, conn)
	if len(blocked) > 0 {
		t.Error("Accept has returned")
	}
	if exited.Load() > 0 {
		t.Error("exit with an open connection")
	}
	_ = conn.Close()
	eventually(t, func() bool { return exited.Load() == 1 })
	_ = ln.Close()
}

// What the master had handed off before it died is served: nobody else can.
func TestMasterGoneServesWhatItHadSent(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln := m.listen(ch, 1)
	exited := exits(ch)
	first := accept(t, ln)
	client, _ := m.handOff(1)
	conn := accepted(t, first)
	exchange(t, client, conn) // its ack is left unread: the channel ends with a reset
	last, _ := m.handOff(1)
	m.die()
	exchange(t, last, accepted(t, accept(t, ln)))
	if exited.Load() > 0 {
		t.Error("exit with an open connection")
	}
}

// And it may wait for the program as long as it needs.
func TestMasterGoneWaitsForTheProgram(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln := m.listen(ch, 1)
	exits(ch)
	first := accept(t, ln)
	_, _ = m.handOff(1)
	_ = accepted(t, first)
	last, _ := m.handOff(1)
	m.die()
	<-ch.drainC
	setTakeTime(ch, 0)
	ch.onLater()
	exchange(t, last, accepted(t, accept(t, ln)))
}

func TestMasterGoneThenTimeOver(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln := m.listen(ch, 1)
	exited := exits(ch)
	m.send(handoff.Frame{Type: handoff.Hello, Arg: 1, Seq: 5}) // 5 ms to finish
	m.handOff(1)
	accepted(t, accept(t, ln))
	m.die()
	eventually(t, func() bool { return exited.Load() == 1 })
}

func TestMasterGoneWhileListening(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	exits(ch)
	c := later(func() (net.Listener, error) { return ch.listen("tcp", ":1") })
	m.expect(handoff.Listen)
	m.die()
	if _, err := wait(t, c); !errors.Is(err, errGone) {
		t.Errorf("Listen: %v", err)
	}
	if _, err := ch.listen("tcp", ":1"); !errors.Is(err, errGone) {
		t.Errorf("Listen: %v", err)
	}
}

// A program that only asks about the drain is not ended by the library.
func TestMasterGoneWithoutListenerDoesNotExit(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ch.start()
	m.barrier()
	m.die()
	<-ch.drainC // exit would fail the test
}
