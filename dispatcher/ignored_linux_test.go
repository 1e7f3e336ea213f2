package dispatcher

import (
	"testing"
	"time"
)

func TestAListenerThatNobodyAcceptsFromIsTold(t *testing.T) {
	s := newStepped(t, Config{Policy: SchedNone, Configured: true})
	ln := s.listen("web")
	look := func(n int) {
		for range n {
			s.pass(time.Duration(ignoredEvery))
			s.step()
		}
	}
	looks := int(ignoredAfter / ignoredEvery)
	look(3 * looks)
	if s.heard("ignored") {
		t.Fatalf("an empty one: %v", s.told)
	}
	s.client(ln)
	look(looks - 1)
	if s.heard("ignored") {
		t.Fatalf("too soon: %v", s.told)
	}
	look(2)
	s.mustHear("ignored web")
	s.client(ln)
	look(3 * looks)
	if n := s.times("ignored"); n != 1 {
		t.Errorf("told %d times", n)
	}
	for range 2 {
		d, errno := accept(ln.sock.fd.Num())
		if errno != 0 {
			t.Fatal(errno)
		}
		_ = d.Close()
	}
	look(1)
	s.client(ln)
	look(looks + 1)
	if n := s.times("ignored"); n != 2 {
		t.Errorf("told %d times after it had been emptied once", n)
	}
}
