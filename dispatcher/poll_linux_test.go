package dispatcher

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/test/leakcheck"
)

// newBusyPoller has been woken until it is busy.
func newBusyPoller(t *testing.T) *poller {
	t.Helper()
	leakcheck.Check(t)
	p, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	for deadline := time.Now().Add(10 * time.Second); !p.beating; {
		if time.Now().After(deadline) {
			t.Fatal("many waits in a short time do not make it busy")
		}
		p.wake()
		if out, err := p.wait(nil, -1); err != nil || len(out) != 1 || out[0].token != tokenWake {
			t.Fatalf("%v, %v", out, err)
		}
	}
	return p
}

func TestABusyPollerKeepsDeadlines(t *testing.T) {
	for _, d := range []time.Duration{0, time.Millisecond, pulseEvery, 30 * time.Millisecond} {
		p := newBusyPoller(t)
		at := time.Now().Add(d)
		for turns := 0; time.Now().Before(at); turns++ {
			if turns > 100 { // a deadline may be looked at too early, but not again and again
				t.Fatalf("%v: still waiting", d)
			}
			out, err := p.wait(nil, time.Until(at))
			if err != nil || len(out) > 0 {
				t.Fatalf("%v: %v, %v", d, out, err)
			}
		}
		if late := time.Since(at); late > 5*time.Second {
			t.Errorf("%v: %v late", d, late)
		}
	}
}

func TestAQuietPollerIsNotBusy(t *testing.T) {
	p := newBusyPoller(t)
	for range 10 { // a signal may end one
		if out, err := p.wait(nil, 4*pulseEvery); err != nil || len(out) > 0 {
			t.Fatalf("%v, %v", out, err)
		}
	}
	if p.beating {
		t.Error("its pulse goes on without work")
	}
	var left unix.ItimerSpec
	if err := unix.TimerfdGettime(p.pulse.Num(), &left); err != nil || left.Value.Nano() != 0 {
		t.Errorf("its timer runs: %+v, %v", left, err)
	}
	p.wake()
	if out, err := p.wait(nil, -1); err != nil || len(out) != 1 {
		t.Errorf("woken, it says %v, %v", out, err)
	}
}

// While a busy poller waits, the collector can stop the world.
func TestABusyPollerHoldsNobodyUp(t *testing.T) {
	p := newBusyPoller(t)
	stopped := make(chan struct{})
	go func() { // ends before the test does
		defer close(stopped)
		for range 20 {
			runtime.GC()
		}
		p.wake()
	}()
	for woken := false; !woken; {
		out, err := p.wait(nil, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		woken = len(out) > 0
	}
	<-stopped
}
