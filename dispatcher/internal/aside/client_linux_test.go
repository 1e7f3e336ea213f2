package aside

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/handoff"
	"rrd/test/leakcheck"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

const limit = 5 * time.Second

// world is a Client whose time the test moves, and the ends of its helpers.
type world struct {
	testing.TB
	c      *Client
	now    int64
	wanted int
	killed []int
	ends   []handoff.FD // by pid, from 1
	served sync.WaitGroup
}

func newWorld(t testing.TB) *world {
	leakcheck.Check(t)
	w := &world{TB: t, now: int64(time.Hour)}
	w.c = NewClient(Config{Limit: func() time.Duration { return limit },
		Want: func() { w.wanted++ }, Kill: func(pid int) { w.killed = append(w.killed, pid) },
		Watch: func(int, uint64) error { return nil }, Unwatch: func(int) {}})
	t.Cleanup(func() {
		w.c.Close()
		w.served.Wait()
		closeAll(w.ends)
	})
	return w
}

// add gives the client a helper that the test plays, and returns its pid and token.
func (w *world) add() int {
	w.Helper()
	master, child, err := Pair()
	if err != nil {
		w.Fatal(err)
	}
	rc, err := child.SyscallConn()
	if err != nil {
		w.Fatal(err)
	}
	var end handoff.FD
	_ = rc.Control(func(fd uintptr) { end, err = handoff.Own(int(fd)).Dup() })
	if err != nil {
		w.Fatal(err)
	}
	_ = child.Close()
	w.ends = append(w.ends, end)
	pid := len(w.ends)
	if err := w.c.Add(w.now, pid, master, uint64(pid)); err != nil {
		w.Fatal(err)
	}
	w.c.Flush(w.now)
	return pid
}

// serve has a goroutine be the helper.
func (w *world) serve() {
	w.Helper()
	pid := w.add()
	end := w.ends[pid-1]
	w.served.Go(func() { Serve(end) })
}

func (w *world) pass(d time.Duration) {
	w.now += int64(d)
	w.c.Flush(w.now)
}

// asked asks about d and returns where the answer will be.
func (w *world) asked(r Request) *[]Answer {
	w.Helper()
	var got []Answer
	r.Done = func(a *Answer) { got = append(got, *a) }
	w.c.Ask(w.now, r)
	w.c.Flush(w.now)
	return &got
}

// request reads what the helper of pid was sent, and closes the descriptors. It reports
// false if there is nothing.
func (w *world) request(pid int) (header, bool) {
	w.Helper()
	b, oob := make([]byte, 100), make([]byte, unix.CmsgSpace(maxDiscard*4))
	n, oobn, _, _, err := unix.Recvmsg(w.ends[pid-1].Num(), b, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err == unix.EAGAIN {
		return header{}, false
	}
	if err != nil {
		w.Fatal(err)
	}
	fds := takeRights(oob[:oobn])
	h, err := decodeRequest(b[:n], len(fds))
	closeAll(fds)
	if err != nil {
		w.Fatal(err)
	}
	return h, true
}

// say sends a message as the helper of pid, and has the client read it.
func (w *world) say(pid int, b []byte) {
	w.Helper()
	if err := unix.Sendmsg(w.ends[pid-1].Num(), b, nil, nil, unix.MSG_NOSIGNAL); err != nil {
		w.Fatal(err)
	}
	w.c.Receive(uint64(pid))
	w.c.Flush(w.now)
}

// answer answers the request of pid's helper.
func (w *world) answer(pid int) {
	w.Helper()
	h, ok := w.request(pid)
	if !ok {
		w.Fatalf("helper %d has no request", pid)
	}
	w.say(pid, header{call: h.call, id: h.id}.append(nil))
}

// file is a descriptor to ask about.
func (w *world) file() handoff.FD {
	w.Helper()
	n, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		w.Fatal(err)
	}
	d := handoff.Own(n)
	w.Cleanup(func() { _ = d.Close() })
	return d
}

func known(got *[]Answer) bool   { return len(*got) == 1 && (*got)[0].Known }
func unknown(got *[]Answer) bool { return len(*got) == 1 && !(*got)[0].Known }

func TestTheFirstRequestWantsAHelper(t *testing.T) {
	w := newWorld(t)
	w.c.Flush(w.now)
	if w.wanted != 0 || w.c.Next() != 0 || !w.c.Quiet() {
		t.Fatal("one is wanted for nothing")
	}
	got := w.asked(Request{Call: Listen, FD: w.file(), Key: 1})
	w.pass(time.Second)
	if w.wanted != 1 {
		t.Fatalf("wanted %d", w.wanted)
	}
	w.c.Failed(w.now)
	w.pass(0)
	if w.wanted != 1 || w.c.Next() != w.now+retryIn {
		t.Errorf("wanted at once again, next in %v", time.Duration(w.c.Next()-w.now))
	}
	w.pass(time.Duration(retryIn))
	if w.wanted != 2 {
		t.Errorf("not wanted again")
	}
	w.answer(w.add())
	if !known(got) || !w.c.Quiet() {
		t.Errorf("%+v", *got)
	}
}

// A helper that hangs holds up its own request, and those of the same key.
func TestAHelperThatHangs(t *testing.T) {
	w := newWorld(t)
	first := w.add()
	hangs := w.asked(Request{Call: Recall, FD: w.file(), Key: 1})
	same := w.asked(Request{Call: Listen, FD: w.file(), Key: 1})
	w.pass(time.Duration(slow))
	if w.wanted != 0 {
		t.Error("one is wanted for a request that has to wait anyway")
	}
	other := w.asked(Request{Call: Listen, FD: w.file(), Key: 2})
	if w.wanted != 1 {
		t.Fatal("no other helper is wanted")
	}
	second := w.add()
	w.answer(second)
	if !known(other) || len(*same) > 0 || len(*hangs) > 0 {
		t.Fatalf("%v %v %v", *other, *same, *hangs)
	}
	// It answers after all. Then one helper is enough.
	w.answer(first)
	w.answer(first)
	if !known(hangs) || !known(same) {
		t.Errorf("%v %v", *hangs, *same)
	}
	if got := w.c.Processes(w.now); len(got) != 1 || len(w.killed) > 0 {
		t.Errorf("%v, killed %v", got, w.killed)
	}
	if n, err := unix.Read(w.ends[second-1].Num(), make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("the surplus one is not told to end: %d, %v", n, err)
	}
}

func TestAHelperThatHangsForTooLongIsGivenUp(t *testing.T) {
	w := newWorld(t)
	w.add()
	hangs := w.asked(Request{Call: Recall, FD: w.file(), Key: 1})
	waits := w.asked(Request{Call: Listen, FD: w.file(), Key: 1})
	w.pass(limit - 1)
	if len(*hangs)+len(*waits) > 0 || w.c.Next() != w.now+1 {
		t.Fatalf("too early: %v %v", *hangs, *waits)
	}
	w.pass(1)
	if !unknown(hangs) || !unknown(waits) || !slices.Equal(w.killed, []int{1}) || len(w.c.Processes(w.now)) > 0 {
		t.Errorf("%v %v, killed %v", *hangs, *waits, w.killed)
	}
	w.c.Receive(1) // an event that is still to come
	again := w.asked(Request{Call: Listen, FD: w.file(), Key: 1})
	if w.wanted != 1 {
		t.Fatal("no helper is wanted in its place")
	}
	w.answer(w.add())
	if !known(again) {
		t.Errorf("%v", *again)
	}
}

// A stall of the master is not the helpers'.
func TestPostponedDeadlines(t *testing.T) {
	w := newWorld(t)
	w.add()
	hangs := w.asked(Request{Call: Recall, FD: w.file(), Key: 1})
	waits := w.asked(Request{Call: Listen, FD: w.file(), Key: 1})
	w.c.Postpone(int64(time.Minute))
	w.pass(time.Minute + limit - 1)
	if len(*hangs)+len(*waits) > 0 {
		t.Fatal("given up")
	}
	w.pass(1)
	if !unknown(hangs) || !unknown(waits) {
		t.Error("not given up")
	}
}

func TestHangingHelpersAreBounded(t *testing.T) {
	w := newWorld(t)
	var got []*[]Answer
	for key := range uint64(2 * MaxHelpers) {
		got = append(got, w.asked(Request{Call: Listen, FD: w.file(), Key: key + 1}))
	}
	for w.wanted > len(w.ends) {
		w.add()
		w.pass(time.Duration(slow))
	}
	if len(w.ends) != MaxHelpers {
		t.Fatalf("%d helpers", len(w.ends))
	}
	w.pass(limit)
	for i, a := range got {
		if !unknown(a) {
			t.Errorf("request %d: %v", i, *a)
		}
	}
	if len(w.killed) != MaxHelpers {
		t.Errorf("killed %v", w.killed)
	}
}

func TestAHelperThatDies(t *testing.T) {
	w := newWorld(t)
	got := w.asked(Request{Call: Listen, FD: w.file(), Key: 1})
	for n := 1; n <= maxTries; n++ {
		if w.wanted != n || len(*got) > 0 {
			t.Fatalf("try %d: wanted %d, %v", n, w.wanted, *got)
		}
		pid := w.add()
		_ = w.ends[pid-1].Close()
		w.c.Receive(uint64(pid))
		w.c.Flush(w.now)
	}
	if !unknown(got) {
		t.Errorf("%v", *got)
	}
	// One that dies idle is noticed when it is needed, too.
	pid := w.add()
	_ = w.ends[pid-1].Close()
	got = w.asked(Request{Call: Listen, FD: w.file(), Key: 1})
	w.answer(w.add())
	if !known(got) {
		t.Errorf("%v", *got)
	}
}

func TestAHelperThatTalksNonsense(t *testing.T) {
	for name, b := range map[string]func(h header) []byte{
		"garbage":            func(header) []byte { return []byte("nonsense") },
		"another id":         func(h header) []byte { return header{call: h.call, id: h.id + 1}.append(nil) },
		"another call":       func(h header) []byte { return header{call: Accept, id: h.id}.append(nil) },
		"a descriptor short": func(h header) []byte { return header{call: h.call, id: h.id, arg: 1}.append(nil) },
		"too much":           func(h header) []byte { return make([]byte, headerSize+handoff.MaxMessage+1) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			bad := w.add()
			got := w.asked(Request{Call: Listen, FD: w.file(), Key: 1})
			h, _ := w.request(bad)
			w.say(bad, b(h))
			if !slices.Equal(w.killed, []int{bad}) || len(*got) > 0 {
				t.Fatalf("killed %v, %v", w.killed, *got)
			}
			w.answer(w.add()) // asked again
			if !known(got) {
				t.Errorf("%v", *got)
			}
		})
	}
	w := newWorld(t)
	unasked := w.add()
	w.say(unasked, header{call: Listen, id: 1}.append(nil))
	if !slices.Equal(w.killed, []int{unasked}) {
		t.Errorf("an answer to no request: killed %v", w.killed)
	}
}

func TestForgottenRequests(t *testing.T) {
	w := newWorld(t)
	a, b := w.file(), w.file()
	gone := w.asked(Request{Call: Listen, FD: a, Key: 1})
	stays := w.asked(Request{Call: Listen, FD: b, Key: 2})
	w.c.Forget(a)
	_ = a.Close()
	w.answer(w.add())
	if len(*gone) > 0 || !known(stays) || !w.c.Quiet() {
		t.Errorf("%v %v", *gone, *stays)
	}
}

// What was given is closed by the client: when it is sent, and when it is given up.
func TestGivenDescriptors(t *testing.T) {
	w := newWorld(t)
	pid := w.add()
	r, wr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	give := func() handoff.FD {
		d, err := handoff.Own(int(wr.Fd())).Dup()
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	w.asked(Request{Call: Listen, FD: give(), Key: 1, Given: true})
	waits := w.asked(Request{Call: Listen, FD: give(), Key: 1, Given: true})
	_ = wr.Close()
	w.request(pid)
	w.pass(limit)
	if !unknown(waits) {
		t.Fatal("not given up")
	}
	_ = r.SetReadDeadline(time.Now().Add(patience))
	if _, err := r.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("a descriptor is still open: %v", err)
	}
}

// helperProcess starts this test binary as a helper.
func helperProcess(t *testing.T) (master handoff.FD, p *os.Process) {
	t.Helper()
	master, child, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer child.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	p, err = os.StartProcess("/proc/self/exe", []string{"helper", Arg}, &os.ProcAttr{
		Env: []string{}, Files: []*os.File{null, null, null, child}, Sys: &syscall.SysProcAttr{Setsid: true}})
	if err != nil {
		t.Fatal(err)
	}
	return master, p
}

// The helper ends with its socket, also while a call hangs, and with no signal of a
// terminal.
func TestAHelperProcessEndsWithItsSocket(t *testing.T) {
	for _, hangs := range []bool{false, true} {
		w := newWorld(t)
		socket, p := helperProcess(t)
		if err := w.c.Add(w.now, p.Pid, socket, 1); err != nil {
			t.Fatal(err)
		}
		ln, _ := w.listening(0)
		_ = w.await(w.asked(Request{Call: Listen, FD: ln, Arg: 7, Key: 1}))
		for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
			if err := p.Signal(sig); err != nil {
				t.Fatal(err)
			}
		}
		if hangs {
			hang(t, w, ln, p.Pid)
		} else {
			_ = w.await(w.asked(Request{Call: Listen, FD: ln, Arg: 7, Key: 1}))
		}
		w.c.Close()
		st, err := p.Wait()
		if err != nil || !st.Success() {
			t.Errorf("hanging %v: %v, %v", hangs, st, err)
		}
	}
}

// hang has the helper wait in accept4, as a worker can that clears O_NONBLOCK.
func hang(t *testing.T, w *world, ln handoff.FD, pid int) {
	t.Helper()
	var stop atomic.Bool
	var clearing sync.WaitGroup
	defer clearing.Wait()
	defer stop.Store(true)
	for range 2 {
		clearing.Go(func() {
			for !stop.Load() {
				_, _ = unix.FcntlInt(uintptr(ln.Num()), unix.F_SETFL, unix.O_RDWR)
			}
		})
	}
	deadline := time.Now().Add(3 * patience) // it is a matter of chance
	for {
		got := w.asked(Request{Call: Accept, FD: ln, Arg: 1, Key: 1})
		for time.Now().Before(deadline) && len(*got) == 0 {
			w.c.Receive(1)
			if inAccept(pid) {
				return
			}
		}
		if len(*got) == 0 {
			t.Fatal("it never waits in accept4")
		}
	}
}

func inAccept(pid int) bool {
	tasks, _ := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/task")
	for _, task := range tasks {
		b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/task/" + task.Name() + "/wchan")
		if strings.Contains(string(b), "accept") {
			return true
		}
	}
	return false
}
