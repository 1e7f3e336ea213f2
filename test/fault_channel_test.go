//go:build linux

package test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/test/harness"
	"rrd/test/load"
)

// Rows F12 to F18 and F55 of the fault matrix, what happens on the channel, and
// rescue.

func TestF12ChannelFull(t *testing.T)       { t.Parallel(); channelFull(t, form{}) }
func TestF13TooManyReferences(t *testing.T) { t.Parallel(); tooManyReferences(t, form{}) }
func TestF14HostileFrames(t *testing.T)     { t.Parallel(); hostileFrames(t, form{}) }
func TestF15DescriptorBomb(t *testing.T)    { t.Parallel(); descriptorBomb(t, form{}) }
func TestF16FrameFlood(t *testing.T)        { t.Parallel(); frameFlood(t, form{}) }
func TestF17ChannelLeft(t *testing.T)       { t.Parallel(); channelLeft(t, form{}) }
func TestF18DescriptorAudit(t *testing.T)   { t.Parallel(); descriptorAudit(t, form{}) }
func TestF55BeyondRights(t *testing.T)      { t.Parallel(); beyondRights(t, form{}) }

// Nobody reads, and more is sent than a channel holds: what does not fit waits, and
// the master goes on.
func channelFull(t *testing.T, f form) {
	b := newBook(t)
	m := b.workers(2, []string{"--handoff-window", "1024", "--busy-after", "off", "--hang-timeout", "off", "--queue-limit", "3000"}, "lib")
	n := f.of(900, 3000)
	pids := []int{m.PID(0), m.PID(1)}
	for _, pid := range pids {
		m.Kill(pid, syscall.SIGSTOP)
	}
	finish := waiting(t, m, load.Config{Rate: 600, Total: n, Timeout: 2 * time.Minute})
	s := m.WaitStatus("all to be accepted", func(s *harness.Status) bool { return s.Accepted() == n })
	if s.Open() != n || s.Listeners[0].Queued == 0 || s.Listeners[0].InFlight == 0 {
		t.Errorf("the channels are not full: %+v", s.Listeners[0])
	}
	// The loop answers between two turns: had one of them blocked, it would not.
	var worst time.Duration
	used := cpuDuring(t, m, func() {
		perform(20, 25*time.Millisecond, func(int) {
			start := time.Now()
			m.Status()
			worst = max(worst, time.Since(start))
		})
	})
	f.note(t, "%d in flight and %d queued; /status.json took %v at most, %.1f %% of a core", s.Listeners[0].InFlight, s.Listeners[0].Queued, worst, 100*used)
	if worst > soon/2 || used > 0.5 {
		t.Errorf("the master answers after %v and uses %.1f %% of a core", worst, 100*used)
	}
	for _, pid := range pids {
		m.Kill(pid, syscall.SIGCONT)
	}
	b.spared(m, finish())
}

// The user has more descriptors in flight than the kernel lets one without
// privileges have: what cannot be sent stays queued.
func tooManyReferences(t *testing.T, f form) {
	needsRoot(t)
	needsTool(t, "setpriv", "prlimit")
	const uid = "61313" // nobody else's, as the kernel counts by user
	b, g := newBook(t), newGate(t)
	if err := os.Chmod(filepath.Dir(filepath.Dir(g.path)), 0o755); err != nil { //nolint:gosec // for that user
		t.Fatal(err)
	}
	if err := os.Chmod(g.path, 0o666); err != nil { //nolint:gosec // likewise
		t.Fatal(err)
	}
	b.arm()
	at := harness.Host() + ":0"
	command := append([]string{harness.Build(t, "", "rrd/test/faultworker"), "-listen", "tcp/" + at},
		b.args("-gate", g.path, "-slots", "0", "in-flight")...)
	m := harness.Start(t, harness.Options{
		Args:   append([]string{"--policy", "rr", "--workers", "3", "--queue-limit", "300", "--rescue-limit", "32"}, quick...),
		Listen: []string{at}, Command: command,
		Wrap: []string{"prlimit", "--nofile=700:700", "setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "--"},
	})
	finish := waiting(t, m, load.Config{Rate: float64(f.of(300, 1000)), Total: f.of(900, 20_000), Timeout: time.Minute})
	s := m.WaitStatus("connections to wait", func(s *harness.Status) bool {
		return b.noted("in flight") > 0 && s.Listeners[0].Queued > 50
	})
	used := cpuDuring(t, m, func() { perform(1, time.Duration(f.of(500, 3000))*time.Millisecond, func(int) {}) })
	failures := 0
	for _, w := range m.Status().Workers {
		failures += w.Failures["too_many_refs"]
	}
	f.note(t, "%d descriptors in flight elsewhere; %d waited, %d sends were refused, %.1f %% of a core", b.noted("in flight"), s.Listeners[0].Queued, failures, 100*used)
	if failures == 0 {
		t.Errorf("no send failed for too many references: %+v", s.Workers)
	}
	g.open()
	b.spared(m, finish())
}

// What no worker may say, from some that serve as well, behind much that they may
// say and that makes no sense: each ends, and no other worker's client notices.
// Frames count when the master has read them, as its answer to the LISTEN behind
// them shows; those of the violations come on top.
func hostileFrames(t *testing.T, f form) {
	b := newBook(t)
	m := b.workers(4, []string{"--hang-timeout", "5s"}, "-slots", f.text("1", "1,2"), "-others", "lib", "hostile")
	want, least := f.of(5000, 1_000_000), f.of(60, 1000)
	start := time.Now()
	r := during(t, m, f.of(400, 600), func() {
		b.arm()
		for n := 0; n < want || deaths(m) < least; n = b.noted("frames") {
			perform(1, time.Duration(f.of(200, 1000))*time.Millisecond, func(int) {})
			if t.Failed() || t.Context().Err() != nil {
				break
			}
		}
		b.disarm()
	})
	took := time.Since(start)
	m.AllReady()
	b.spared(m, r)
	reasons := make(map[string]int)
	for _, e := range m.Events(harness.Named("worker.broke")) {
		reasons[e.Str("reason")]++
	}
	f.note(t, "%d frames read by the master in %.0f s, %d deaths for %d different reasons; %d connections, 0 lost is wanted",
		b.noted("frames"), took.Seconds(), deaths(m), len(reasons), len(r.Results))
	if len(reasons) < 8 {
		t.Errorf("violations of few kinds: %v", reasons)
	}
	if broke := len(m.Events(harness.Named("worker.broke"))); broke != deaths(m) {
		t.Errorf("%d violations were seen, %d processes died", broke, deaths(m))
	}
}

// text is of for texts.
func (f form) text(short, long string) string {
	if f.long {
		return long
	}
	return short
}

// Each violation that there is, once, and an ACK before READY: exactly that worker
// ends.
func TestF14EachViolation(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{
		"short", "cut", "long", "17 frames", "empty", "no magic", "version 0", "unknown", "master's", "foreign", "foreign no",
		"ready again", "drained", "pong", "closed", "replay", "ack after reject", "payload", "random",
	} {
		t.Run(kind, func(t *testing.T) {
			b := newBook(t)
			m := b.workers(2, nil, "-slots", "1", "violate:"+kind)
			b.arm()
			pid := m.PID(1)
			r := during(t, m, 100, func() {
				t.Log(m.Wait(harness.Named("worker.broke")).Str("reason"))
				m.Wait(func(e harness.Event) bool {
					return e.Name == "worker.exit" && e.Int("worker_pid") == pid && !e.Bool("requested")
				})
				b.disarm()
				m.AllReady()
			})
			b.spared(m, r)
		})
	}
	b := newBook(t)
	m := b.workers(2, nil, "-slots", "1", "serve:early")
	b.arm()
	m.Kill(m.PID(1), syscall.SIGKILL)
	m.Wait(harness.OfSlot("worker.broke", 1))
	b.disarm()
	m.AllReady()
}

// Messages with as many descriptors as fit: the master takes none.
func descriptorBomb(t *testing.T, f form) {
	b := newBook(t)
	b.arm()
	m := b.workers(3, nil, "-slots", "1", "-others", "lib", "bomb")
	bombs := f.of(2000, 100_000)
	used := 0.0
	r := during(t, m, f.of(200, 1000), func() {
		used = cpuDuring(t, m, func() {
			for b.noted("bombs") < bombs {
				perform(1, 50*time.Millisecond, func(int) {})
			}
		})
	})
	b.spared(m, r)
	_, notes := b.read()
	f.note(t, "%d messages of %d descriptors, the kernel took %d; %d deaths; %.0f %% of a core with %d connections",
		notes["bombs"], 253, notes["bombs taken"], deaths(m), 100*used, len(r.Results))
	// Without SO_PASSRIGHTS (Linux before 6.16) the first one is taken, and is the
	// worker's end. The end check of the harness counts the master's descriptors.
	if notes["bombs taken"] > 0 && deaths(m) == 0 {
		t.Error("descriptors were taken from a worker that lives on")
	}
}

// A worker that says what is legal as fast as it can: it is heard in turn.
func frameFlood(t *testing.T, f form) {
	b := newBook(t)
	m := b.workers(4, nil, "-slots", "1", "-others", "lib", "flood")
	span := time.Duration(f.of(2, 60)) * time.Second
	rate := f.of(300, 1500)
	before := during(t, m, rate, func() { perform(1, span, func(int) {}) })
	b.arm()
	r := during(t, m, rate, func() { perform(1, span, func(int) {}) })
	b.disarm()
	var others []time.Duration
	for i := range r.Results {
		if res := &r.Results[i]; res.Outcome == load.OK && res.Slot != 1 {
			others = append(others, res.Latency())
		}
	}
	slices.Sort(others)
	for _, failed := range slices.Concat(before.Failed(), r.Failed()) {
		t.Errorf("%v: %v", failed.Outcome, failed.Err)
	}
	f.note(t, "%d frames in %v, %d deaths; the others' p99 %v, before %v", b.noted("frames"), span, deaths(m), percentile(others, 0.99), before.Percentile(0.99))
	if p := percentile(others, 0.99); p > soon/2 || deaths(m) > 0 {
		t.Errorf("the others' p99 is %v, %d deaths", p, deaths(m))
	}
}

// A worker that closes its channel and lives is found by its silence. One that
// dies and leaves the channel to a process of its own is dead.
func channelLeft(t *testing.T, f form) {
	t.Run("closed", func(t *testing.T) {
		b := newBook(t)
		b.arm()
		m := b.workers(3, []string{"--hang-timeout", "400ms"}, "-slots", "1", "-others", "lib", "leave")
		r := during(t, m, 200, func() { m.WaitFrom(0, f.of(2, 30), harness.OfSlot("worker.exit", 1)) })
		b.disarm()
		m.AllReady()
		b.spared(m, r)
		f.note(t, "closed and alive: %d deaths, %d connections, none lost, the last after %v", deaths(m), len(r.Results), r.Percentile(1))
	})
	t.Run("grandchild", func(t *testing.T) {
		b, g := newBook(t), newGate(t)
		b.arm()
		m := b.workers(4, nil, "-slots", "1,2", "-others", "lib", "-gate", g.path, "orphan")
		want := f.of(20, 1000)
		r := during(t, m, 300, func() {
			for deaths(m) < want {
				perform(1, 100*time.Millisecond, func(int) {})
			}
		})
		b.disarm()
		m.AllReady()
		b.spared(m, r)
		all := respawns(m)
		f.note(t, "channel held by a grandchild: %d deaths, %d connections, none lost; slots were back after p50 %v, at most %v",
			deaths(m), len(r.Results), percentile(all, 0.5), percentile(all, 1))
		if percentile(all, 1) > soon {
			t.Errorf("a slot was empty for %v", percentile(all, 1))
		}
		g.open()
	})
}

// The master closes no descriptor twice: strace sees every close that fails.
func descriptorAudit(t *testing.T, f form) {
	needsTool(t, "strace")
	b, chance := newBook(t), chances(t)
	m := b.workers(4, nil, "lib")
	var out bytes.Buffer
	trace := exec.Command("strace", "-f", "-Z", "-e", "trace=close,close_range", "-e", "signal=none", "-p", strconv.Itoa(m.MasterPID()))
	said, err := trace.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := trace.Start(); err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 256)
	n, _ := said.Read(first)
	if !strings.Contains(string(first[:n]), "attached") {
		_ = trace.Wait()
		lacks(t, "ptrace", string(first[:n]))
	}
	copied := make(chan error, 1)
	go func() { // ends with strace, waited for below
		_, err := io.Copy(&out, said)
		copied <- err
	}()
	total := f.of(2000, 100_000)
	r := load.Run(t.Context(), load.Config{Address: m.Addr(), Clients: 16, Total: total})
	for range f.of(3, 30) { // deaths close much
		m.Kill(somebody(m, chance), syscall.SIGKILL)
		m.AllReady()
	}
	m.Idle()
	_ = trace.Process.Signal(syscall.SIGINT)
	if err := <-copied; err != nil && !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	_ = trace.Wait()
	b.spared(m, r)
	own := 0
	bad := 0
	for line := range strings.Lines(out.String()) {
		own++
		if strings.Contains(line, "EBADF") && strings.Contains(line, "close(") && !childs(m, line) {
			bad++
			t.Errorf("strace: %s", line)
		}
	}
	f.note(t, "%d handoffs: %d failed closes of the master (%d lines of strace)", len(r.Results), bad, own)
}

// childs: a line of strace that is about a process that the master has started,
// not about a thread of its own.
func childs(m *harness.Master, line string) bool {
	_, rest, ok := strings.Cut(line, "[pid ")
	if !ok {
		return false
	}
	number, _, _ := strings.Cut(strings.TrimSpace(rest), "]")
	_, err := os.Stat(fmt.Sprintf("/proc/%d/task/%s", m.MasterPID(), strings.TrimSpace(number)))
	return err != nil
}

// A worker without rights asks a master that has all for what it could not make
// itself: a low port, a socket where it may not write, the place of another user's
// socket.
func beyondRights(t *testing.T, f form) {
	needsRoot(t)
	theirs, sticky := t.TempDir(), t.TempDir()
	for d, mode := range map[string]os.FileMode{
		filepath.Dir(theirs): 0o755, theirs: 0o755, sticky: 0o777 | os.ModeSticky,
	} {
		if err := os.Chmod(d, mode); err != nil {
			t.Fatal(err)
		}
	}
	// A stale socket of root's, and a live one.
	stale, alive := filepath.Join(sticky, "stale"), filepath.Join(sticky, "alive")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	_ = ln.Close()
	if ln, err = net.ListenUnix("unix", &net.UnixAddr{Name: alive, Net: "unix"}); err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	inodes := inode(t, stale) + inode(t, alive)
	for _, what := range []string{"tcp/" + harness.Host() + ":80", "unix/" + filepath.Join(theirs, "s"), "unix/" + stale, "unix/" + alive} {
		m := harness.Run(t, harness.Options{
			Args: []string{"--policy", "rr", "--workers", "1", "--user", "nobody"}, Listen: []string{}, ExitCode: 3,
			Command: []string{harness.Build(t, "", "rrd/test/faultworker"), "-listen", what, "lib"},
		})
		refused := m.Events(harness.Named("listener.refused"))
		if len(refused) != 1 {
			t.Errorf("%s: %s", what, m.Log())
			continue
		}
		f.note(t, "%s: %s", strings.Split(what, "/")[0]+" "+filepath.Base(what), refused[0].Str("error"))
	}
	if got := inode(t, stale) + inode(t, alive); got != inodes {
		t.Errorf("another user's socket was replaced: %s, before %s", got, inodes)
	}
}

func inode(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d ", st.Ino)
}

// Acked, and dead before the first byte: another worker serves the client.
func TestRescueServesWhatWasNotBegun(t *testing.T) {
	t.Parallel()
	b := newBook(t)
	b.arm()
	m := b.workers(4, nil, "-slots", "0,1", "-others", "lib", "die-acked")
	r := run(t, m, load.Config{Clients: 8, Total: 600})
	b.disarm()
	m.AllReady()
	b.spared(m, r)
	s := m.Idle()
	rescued := s.Total(func(l *harness.Listener) int { return l.Rescued })
	if rescued == 0 || s.Redispatches["rescued"] != rescued {
		t.Errorf("%d rescued: %+v", rescued, *s)
	}
}

// What was read, or said to be touched, is never given to another: the client sees
// the end of its connection.
func TestRescueReplaysNothing(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"die-touched", "die-read"} {
		b := newBook(t)
		m := b.workers(3, []string{"--handoff-window", "1"}, "-slots", "1", "-others", "lib", mode)
		b.arm()
		r := run(t, m, load.Config{Rate: 100, Total: 100})
		b.disarm()
		m.AllReady()
		begun := b.judge(m, r)
		s := m.Idle()
		if rescued := s.Total(func(l *harness.Listener) int { return l.Rescued }); rescued != 0 || begun == 0 || begun != deaths(m) {
			t.Errorf("%s: %d deaths, %d clients failed, %d rescued", mode, deaths(m), begun, rescued)
		}
	}
}

// A client that has sent its request and its FIN is rescued like any other.
func TestRescueOfHalfClosedClients(t *testing.T) {
	t.Parallel()
	const n = 5
	b, g := newBook(t), newGate(t)
	m := b.workers(1, nil, "-gate", g.path, "hold")
	var clients []*net.TCPConn
	for range n {
		c, err := net.Dial("tcp", m.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET /half HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		tc := c.(*net.TCPConn)
		if err := tc.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, tc)
	}
	m.WaitStatus("all to be acked", func(s *harness.Status) bool { return s.Acked() == n })
	g.open() // it dies, and its successor serves
	for i, c := range clients {
		if err := c.SetReadDeadline(time.Now().Add(harness.Patience)); err != nil {
			t.Fatal(err)
		}
		answer, err := io.ReadAll(c)
		if err != nil || !bytes.HasPrefix(answer, []byte("HTTP/1.1 "+strconv.Itoa(http.StatusOK))) || bytes.Count(answer, []byte("HTTP/1.1")) != 1 {
			t.Errorf("client %d: %v, %q", i, err, answer)
		}
	}
	s := m.Idle()
	if rescued := s.Total(func(l *harness.Listener) int { return l.Rescued }); rescued < n || s.Accepted() != n || s.Dropped() != 0 {
		t.Errorf("%d rescued: %+v", rescued, *s)
	}
}

// At most --rescue-limit copies are kept, the newest.
func TestRescueLimit(t *testing.T) {
	t.Parallel()
	const n, limit = 6, 2
	b, g := newBook(t), newGate(t)
	m := b.workers(1, []string{"--rescue-limit", strconv.Itoa(limit)}, "-gate", g.path, "hold")
	finish := waiting(t, m, load.Config{Rate: 50, Total: n})
	m.WaitStatus("all to be acked", func(s *harness.Status) bool { return s.Acked() == n })
	g.open()
	r := finish()
	m.AllReady()
	s := m.Idle()
	if rescued := s.Total(func(l *harness.Listener) int { return l.Rescued }); r.Count(load.OK) != limit || rescued < limit || s.Dropped() != 0 {
		t.Errorf("%d rescued, limit %d: %v", rescued, limit, r)
	}
	for _, f := range r.Failed() {
		if f.Seq >= n-limit {
			t.Errorf("connection %d is one of the newest: %v", f.Seq, f.Err)
		}
	}
}

// Without rescue a connection that was acked dies with its worker.
func TestNoRescue(t *testing.T) {
	t.Parallel()
	b, g := newBook(t), newGate(t)
	m := b.workers(1, []string{"--rescue-limit", "0"}, "-gate", g.path, "hold")
	finish := waiting(t, m, load.Config{Clients: 3, Total: 3})
	m.WaitStatus("all to be acked", func(s *harness.Status) bool { return s.Acked() == 3 })
	g.open()
	r := finish()
	m.AllReady()
	if s := m.Idle(); r.Count(load.OK) != 0 || s.Total(func(l *harness.Listener) int { return l.Rescued }) != 0 {
		t.Errorf("%v", r)
	}
}
