//go:build linux

package test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/test/harness"
	"rrd/test/load"
)

// Row F54: faults of the rows F01 to F26, in an order that a seed gives, while an
// open loop of clients goes on.

func TestF54Chaos(t *testing.T) {
	t.Parallel()
	span := time.Minute
	if testing.Short() {
		span = 20 * time.Second
	}
	c := newChaos(t, form{})
	c.run(span, 300)
}

func TestSoakF54Chaos(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("the long form is for make soak")
	}
	c := newChaos(t, form{long: true})
	c.run(harness.Soak(t, 0), 600)
}

// chaos is one run. Steps come from one goroutine, those that take a while end in
// goroutines that run waits for.
type chaos struct {
	t      *testing.T
	f      form
	b      *book
	m      *harness.Master
	chance *rand.Rand
	done   map[string]int
	under  sync.WaitGroup

	freezer string // a cgroup, empty if there is none to be had
	desired int

	mu      sync.Mutex
	reports []*load.Report
	strays  int // clients that nobody judges
}

// The workers of a run: honest ones and, from slot honest on, others.
const (
	chaosWorkers = 6
	chaosHonest  = 3
)

func newChaos(t *testing.T, f form) *chaos {
	t.Helper()
	c := &chaos{t: t, f: f, b: newBook(t), chance: chances(t), done: make(map[string]int), desired: chaosWorkers}
	if dir, err := os.MkdirTemp("/sys/fs/cgroup/freezer", "rrd-test-"); err == nil {
		c.freezer = dir
		t.Cleanup(func() {
			harness.Poll(t, "the cgroup to be empty", func() error { return os.Remove(dir) })
		})
	}
	c.b.arm()
	bad := make([]string, 0, chaosWorkers)
	for slot := chaosHonest; slot < chaosWorkers; slot++ {
		bad = append(bad, strconv.Itoa(slot))
	}
	c.m = c.b.workers(chaosWorkers, []string{"--hang-timeout", "1s", "--unhealthy-after", "1500ms", "--queue-limit", "4000"},
		"-slots", strings.Join(bad, ","), "-others", "health", "chaos")
	if c.freezer != "" {
		t.Cleanup(func() { put(t, c.freezer, "freezer.state", "THAWED") })
	}
	return c
}

// step is drawn before it is done, so that the order does not depend on what the
// processes do meanwhile.
type step struct {
	what, slot int
	span       time.Duration
	pause      time.Duration
}

func (c *chaos) draw() step {
	return step{
		what: c.chance.IntN(1000), slot: c.chance.IntN(chaosWorkers),
		span: time.Duration(50+c.chance.IntN(400)) * time.Millisecond, pause: time.Duration(c.chance.IntN(250)) * time.Millisecond,
	}
}

// steps are what may happen, with their parts of a thousand.
var steps = []struct {
	part int
	name string
	do   func(*chaos, step)
}{
	{250, "kill", func(c *chaos, s step) { c.signal(s.slot, syscall.SIGKILL) }},
	{20, "kill all", func(c *chaos, _ step) {
		for slot := range chaosWorkers {
			c.signal(slot, syscall.SIGKILL)
		}
	}},
	{200, "stop and continue", func(c *chaos, s step) {
		if pid := c.signal(s.slot, syscall.SIGSTOP); pid > 0 {
			c.later(s.span, func() { c.kill(pid, syscall.SIGCONT) })
		}
	}},
	{40, "stop until killed", func(c *chaos, s step) { c.signal(s.slot, syscall.SIGSTOP) }},
	{60, "worker at its fd limit", (*chaos).limitWorker},
	{60, "resize", (*chaos).resize},
	{20, "HUP", func(c *chaos, _ step) { c.m.Signal(syscall.SIGHUP) }},
	{10, "USR1", func(c *chaos, _ step) { c.m.Signal(syscall.SIGUSR1) }},
	{40, "master stopped", func(c *chaos, s step) {
		c.m.Signal(syscall.SIGSTOP)
		perform(1, s.span, func(int) {})
		c.m.Signal(syscall.SIGCONT)
	}},
	{30, "master at its fd limit", (*chaos).limitMaster},
	{80, "connect and close", (*chaos).scan},
	{40, "idle clients", (*chaos).idle},
	{60, "burst", (*chaos).burst},
	{40, "unwell", (*chaos).unwell},
	{20, "frozen", (*chaos).freeze},
}

func (c *chaos) do(s step) {
	at := s.what
	for _, one := range steps {
		if at -= one.part; at < 0 {
			c.done[one.name]++
			one.do(c, s)
			return
		}
	}
	c.done["pause"]++
}

func (c *chaos) run(span time.Duration, rate int) {
	t, m := c.t, c.m
	before := rss(t, m.MasterPID())
	steps := 0
	r := during(t, m, rate, func() {
		for end := time.Now().Add(span); time.Now().Before(end) && !t.Failed(); steps++ {
			s := c.draw()
			c.do(s)
			perform(1, s.pause+time.Millisecond, func(int) {})
		}
		c.b.disarm()
		c.under.Wait()
		for c.desired < chaosWorkers {
			c.grow(syscall.SIGTTIN, 1)
		}
		for c.desired > chaosWorkers {
			c.grow(syscall.SIGTTOU, -1)
		}
		c.settle()
	})
	c.reports = append(c.reports, r)
	c.settle()
	c.judge(steps, span, rss(t, m.MasterPID())-before)
}

// settle gets rid of those that still have a fault, and waits for all slots.
func (c *chaos) settle() {
	c.t.Helper()
	c.m.WaitStatus("all workers to be there", func(s *harness.Status) bool {
		for _, w := range s.Workers {
			if w.PID > 0 && harness.State(w.PID) == "T" { // stopped by the last steps
				c.kill(w.PID, syscall.SIGKILL)
				return false
			}
		}
		return s.Desired == chaosWorkers && live(s) == chaosWorkers
	})
	c.m.AllReady()
}

func (c *chaos) judge(steps int, span time.Duration, grown int) {
	t := c.t
	t.Helper()
	s := c.m.Idle()
	total, answered, begun, double := 0, 0, 0, 0
	var lost []load.Result
	for _, r := range c.reports {
		total += len(r.Results)
		answered += r.Count(load.OK)
		double += r.Count(load.Duplicate)
		l, n := c.b.lost(c.m, r)
		lost = append(lost, l...)
		begun += n
	}
	dropped := make(map[string]int)
	for _, l := range s.Listeners {
		for why, n := range l.Dropped {
			if n > 0 {
				dropped[why] += n
			}
		}
	}
	names := slices.Sorted(maps.Keys(c.done))
	for i, name := range names {
		names[i] = fmt.Sprintf("%s %d", name, c.done[name])
	}
	rescued := s.Total(func(l *harness.Listener) int { return l.Rescued })
	c.f.note(t, "seed %d, %v: %d steps (%s)", seed(), span, steps, strings.Join(names, ", "))
	c.f.note(t, "%d connections, %d answered, %d begun by processes that died, %d lost, %d served twice; %d more clients that came and went",
		total, answered, begun, len(lost), double, c.strays)
	c.f.note(t, "%d deaths, %d for violations; rescued %d, redispatched %v, dropped %v; the master has grown by %d KiB",
		deaths(c.m), len(c.m.Events(harness.Named("worker.broke"))), rescued, s.Redispatches, dropped, grown>>10)
	// A connection may by chance be in the hands of three that die of themselves.
	if len(lost) > dropped["poison"] || double > 0 {
		for _, f := range lost[:min(len(lost), 10)] {
			t.Errorf("lost: connection %d from %s, %v to %v: %v: %v\n%s", f.Seq, f.Local, f.Started, f.Ended, f.Outcome, f.Err, c.b.story(c.m, f))
		}
		t.Errorf("%d of %d connections lost, %d served twice: SOAK_SEED=%d", len(lost), total, double, seed())
	}
	if s.Accepted() < total || s.Accepted() > total+c.strays {
		t.Errorf("accepted %d; %d clients were there, and %d that came and went", s.Accepted(), total, c.strays)
	}
	if n := s.Dropped() - dropped["poison"] - dropped["client_gone"]; n > 0 {
		t.Errorf("dropped %v", dropped)
	}
	if grown > 24<<20 {
		t.Errorf("the master has grown by %d KiB", grown>>10)
	}
}

// later calls f after a while, before the run ends.
func (c *chaos) later(after time.Duration, f func()) {
	c.under.Go(func() {
		perform(1, after, func(int) {})
		f()
	})
}

// pid of a slot that has a ready worker; 0 if it has none or nobody says.
func (c *chaos) pid(slot int) int {
	s, err := c.m.TryStatus()
	if err != nil {
		return 0
	}
	for _, w := range s.Workers {
		if w.Slot == slot && w.State == "ready" {
			return w.PID
		}
	}
	return 0
}

func (c *chaos) signal(slot int, sig syscall.Signal) int {
	pid := c.pid(slot)
	if pid > 0 {
		c.kill(pid, sig)
	}
	return pid
}

// kill signals a process if it is still one of this master's.
func (c *chaos) kill(pid int, sig syscall.Signal) {
	if env, err := harness.Environ(pid); err == nil && env["RRD_SLOT"] != "" && slices.Contains(c.m.Environ(), "E2E_MARK="+env["E2E_MARK"]) {
		_ = syscall.Kill(pid, sig)
	}
}

func (c *chaos) grow(sig syscall.Signal, by int) {
	c.desired += by
	c.m.Signal(sig)
	c.m.WaitStatus("the number of workers to be as asked", func(s *harness.Status) bool { return s.Desired == c.desired })
}

func (c *chaos) resize(s step) {
	if s.slot%2 == 0 && c.desired < chaosWorkers+2 || c.desired <= chaosHonest {
		c.grow(syscall.SIGTTIN, 1)
	} else {
		c.grow(syscall.SIGTTOU, -1)
	}
}

// limit lowers a process's limit of open files to what it has and more, for a while.
func (c *chaos) limit(pid, more int, span time.Duration) {
	fds, err := harness.FDs(pid)
	var before unix.Rlimit
	if err != nil || unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &before) != nil || before.Cur < 256 {
		return // gone, or limited already
	}
	now := unix.Rlimit{Cur: uint64(slices.Max(append(slices.Collect(maps.Keys(fds)), 0)) + 1 + more), Max: before.Max}
	if unix.Prlimit(pid, unix.RLIMIT_NOFILE, &now, nil) == nil {
		c.later(span, func() { _ = unix.Prlimit(pid, unix.RLIMIT_NOFILE, &before, nil) })
	}
}

func (c *chaos) limitWorker(s step) {
	if pid := c.pid(s.slot); pid > 0 {
		c.limit(pid, s.slot, s.span)
	}
}

func (c *chaos) limitMaster(s step) {
	c.limit(c.m.MasterPID(), 0, s.span)
	perform(1, s.span+50*time.Millisecond, func(int) {}) // who asks it now would only wait
}

// scan is clients that close or reset at once.
func (c *chaos) scan(s step) {
	address := c.m.Addr()
	c.later(0, func() {
		for i := range 40 {
			c.stray(address, 0, i%2 == s.slot%2)
		}
	})
}

// idle is clients that say nothing for a while.
func (c *chaos) idle(s step) {
	address := c.m.Addr()
	for range 15 {
		c.later(0, func() { c.stray(address, 2*s.span, s.slot%2 == 0) })
	}
}

func (c *chaos) stray(address string, stay time.Duration, reset bool) {
	conn, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		return
	}
	defer conn.Close()
	c.mu.Lock()
	c.strays++
	c.mu.Unlock()
	if stay > 0 {
		perform(1, stay, func(int) {})
	}
	if reset {
		_ = conn.(*net.TCPConn).SetLinger(0)
	}
}

// burst is more clients than can be served at once; each counts.
func (c *chaos) burst(step) {
	address := c.m.Addr()
	c.later(0, func() {
		r := load.Run(context.Background(), load.Config{Address: address, Clients: 100, Total: 200, Timeout: time.Minute})
		c.mu.Lock()
		defer c.mu.Unlock()
		c.reports = append(c.reports, r)
	})
}

// unwell makes an honest worker's own check fail, for a time that may be enough to
// have it replaced.
func (c *chaos) unwell(s step) {
	pid := c.pid(s.slot % chaosHonest)
	if pid == 0 {
		return
	}
	sick := fmt.Sprintf("%s.%d", c.b.armed, pid)
	if os.WriteFile(sick, nil, 0o600) == nil {
		c.later(8*s.span, func() { _ = os.Remove(sick) })
	}
}

// freeze makes a worker deaf even to KILL for a while.
func (c *chaos) freeze(s step) {
	pid := c.pid(s.slot)
	if c.freezer == "" || pid == 0 {
		return
	}
	procs, err := os.ReadFile(filepath.Join(c.freezer, "cgroup.procs"))
	if err != nil || len(procs) > 0 {
		return // one at a time
	}
	if os.WriteFile(filepath.Join(c.freezer, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0) != nil {
		return
	}
	state := filepath.Join(c.freezer, "freezer.state")
	_ = os.WriteFile(state, []byte("FROZEN"), 0)
	c.later(8*s.span, func() {
		_ = os.WriteFile(state, []byte("THAWED"), 0)
		c.kill(pid, syscall.SIGKILL) // out of the group
	})
}
