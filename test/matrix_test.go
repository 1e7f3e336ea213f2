//go:build linux

package test

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// The fault matrix: each row of docs/reliability.md has a test here that bears its
// number, in a short form under go test and, by TestSoakMatrix, in a long one.

// form is how long a row runs.
type form struct {
	long  bool
	table *table
	id    string
}

// of returns a number of the short or of the long form.
func (f form) of(short, long int) int {
	if f.long {
		return long
	}
	return short
}

// note puts a result into the test's log and the table of the long run.
func (f form) note(t *testing.T, format string, args ...any) {
	t.Helper()
	text := fmt.Sprintf(format, args...)
	t.Log(text)
	if f.table != nil {
		f.table.add(f.id, text)
	}
}

var matrix = []struct {
	id  string
	run func(*testing.T, form)
}{
	{"F01", randomKill},
	{"F02", deathBeforeTheAck},
	{"F03", stopAndContinue},
	{"F04", frozen},
	{"F05", crashLoop},
	{"F06", allDie},
	{"F07", outOfMemory},
	{"F08", spawnFails},
	{"F09", neverReady},
	{"F10", workerFDLimit},
	{"F11", allBusy},
	{"F12", channelFull},
	{"F13", tooManyReferences},
	{"F14", hostileFrames},
	{"F15", descriptorBomb},
	{"F16", frameFlood},
	{"F17", channelLeft},
	{"F18", descriptorAudit},
	{"F27", reloads},
	{"F28", badReloads},
	{"F29", upgradesUnderLoad},
	{"F30", upgradeStorm},
	{"F55", beyondRights},
}

// The long forms, one after the other, with a table at the end. A single one:
// SOAK=1 go test -v -timeout 0 -run TestSoakMatrix/F01 ./test
func TestSoakMatrix(t *testing.T) {
	if os.Getenv("SOAK") == "" {
		t.Skip("the long forms are for make soak")
	}
	all := &table{}
	defer all.print(t)
	for _, row := range matrix {
		f := form{long: true, table: all, id: row.id}
		start := time.Now()
		verdict := "" // not asked for
		passed := t.Run(row.id, func(t *testing.T) {
			verdict = "skipped"
			row.run(t, f)
			verdict = "passed"
		})
		if !passed {
			verdict = "FAILED"
		}
		if verdict != "" {
			all.add(row.id, fmt.Sprintf("%s in %.0f s", verdict, time.Since(start).Seconds()))
		}
	}
}

// table is what the long run prints at its end.
type table struct {
	mu   sync.Mutex
	rows []string
}

func (a *table) add(id, text string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rows = append(a.rows, id+"  "+text)
}

func (a *table) print(t *testing.T) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	t.Logf("SOAK_SEED=%d, %s\n%s", seed(), time.Now().UTC().Format(time.DateOnly), strings.Join(a.rows, "\n"))
}

var seedOnce = sync.OnceValue(func() uint64 {
	if s, err := strconv.ParseUint(os.Getenv("SOAK_SEED"), 10, 64); err == nil {
		return s
	}
	return uint64(time.Now().UnixNano())
})

// seed is what all chance in these tests comes from; SOAK_SEED sets it.
func seed() uint64 { return seedOnce() }

// chances returns chance for one test, and says what gives it again.
func chances(t *testing.T) *rand.Rand {
	t.Helper()
	t.Logf("SOAK_SEED=%d", seed())
	return rand.New(rand.NewPCG(seed(), 1))
}

// book is what the fault workers of a master write down, and what makes them
// misbehave.
type book struct {
	t     *testing.T
	path  string
	armed string

	size  int64 // of the file when begun and notes were taken from it
	begun map[string][]begin
	notes map[string]int
}

func newBook(t *testing.T) *book {
	t.Helper()
	dir := t.TempDir()
	// Workers with another identity write in it.
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o777); err != nil { //nolint:gosec // a test's own
			t.Fatal(err)
		}
	}
	return &book{t: t, path: filepath.Join(dir, "ledger"), armed: filepath.Join(dir, "armed")}
}

// workers starts n fault workers that write in the book.
func (b *book) workers(n int, flags []string, args ...string) *harness.Master {
	b.t.Helper()
	return faulty(b.t, n, append(slices.Clone(quick), flags...), b.args(args...)...)
}

func (b *book) args(args ...string) []string {
	return append([]string{"-ledger", b.path, "-armed", b.armed, "-seed", strconv.FormatUint(seed(), 10)}, args...)
}

// arm lets them misbehave, disarm ends it for those that start from now on.
func (b *book) arm() {
	b.t.Helper()
	if err := os.WriteFile(b.armed, nil, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *book) disarm() {
	b.t.Helper()
	if err := os.Remove(b.armed); err != nil {
		b.t.Fatal(err)
	}
}

// begin is one line: a process is about to read from a client.
type begin struct {
	pid int
	at  time.Time
}

// read returns what was begun, by the client's address, and the sums of what the
// workers have noted.
func (b *book) read() (begun map[string][]begin, notes map[string]int) {
	b.t.Helper()
	begun, notes = make(map[string][]begin), make(map[string]int)
	f, err := os.Open(b.path)
	if os.IsNotExist(err) {
		return begun, notes
	} else if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() == b.size && b.size > 0 {
		return b.begun, b.notes
	} else if err == nil {
		b.size, b.begun, b.notes = info.Size(), begun, notes
	}
	for in := bufio.NewScanner(f); in.Scan(); {
		if what, ok := strings.CutPrefix(in.Text(), "# "); ok {
			i := strings.LastIndexByte(what, ' ')
			n, _ := strconv.Atoi(what[i+1:])
			notes[what[:i]] += n
			continue
		}
		var client string
		var pid int
		var ns int64
		if _, err := fmt.Sscan(in.Text(), &client, &pid, &ns); err != nil {
			b.t.Fatalf("ledger: %v in %q", err, in.Text())
		}
		begun[client] = append(begun[client], begin{pid, time.Unix(0, ns)})
	}
	return begun, notes
}

func (b *book) noted(what string) int {
	b.t.Helper()
	_, notes := b.read()
	return notes[what]
}

// lost are the failures of clients that no process which then died had begun to
// read. Those that one had are that process's loss.
func (b *book) lost(m *harness.Master, r *load.Report) (lost []load.Result, begun int) {
	b.t.Helper()
	lines, _ := b.read()
	dead := make(map[int]bool)
	for _, e := range m.Events(harness.Named("worker.exit")) {
		if died(e) {
			dead[e.Int("worker_pid")] = true
		}
	}
	const slack = 5 * time.Millisecond // between two processes' clocks
	for _, f := range r.Failed() {
		from, to := r.Began.Add(f.Started-slack), r.Began.Add(f.Ended+slack)
		excused := (f.Outcome == load.Empty || f.Outcome == load.Reset) && slices.ContainsFunc(lines[f.Local], func(l begin) bool {
			return dead[l.pid] && l.at.After(from) && l.at.Before(to)
		})
		if excused {
			begun++
		} else {
			lost = append(lost, f)
		}
	}
	return lost, begun
}

// died says whether a worker ended otherwise than it was asked to: by itself, also
// while it drained, or by KILL.
func died(e harness.Event) bool {
	asked := e.Bool("requested") && (e.Int("signal_number") == int(syscall.SIGTERM) || e.Int("signal_number") == 0 && e.Int("exit_code") == 0)
	return !asked
}

// story is what the ledger and the log know of a client that was lost.
func (b *book) story(m *harness.Master, f load.Result) string {
	lines, _ := b.read()
	var told []string
	for _, l := range lines[f.Local] {
		told = append(told, fmt.Sprintf("begun by %d at %s", l.pid, l.at.UTC().Format(time.RFC3339Nano)))
		for _, e := range m.Events(func(e harness.Event) bool { return e.Int("worker_pid") == l.pid }) {
			told = append(told, e.Line)
		}
	}
	if told == nil {
		return "nobody has begun it"
	}
	return strings.Join(told, "\n")
}

// judge says who was lost, and checks that the books of master, clients and
// workers agree. It returns how many clients failed that a process had begun with.
func (b *book) judge(m *harness.Master, r *load.Report) (begun int) {
	b.t.Helper()
	s := m.Idle()
	lost, begun := b.lost(m, r)
	for i, f := range lost {
		if i == 5 {
			break
		}
		b.t.Errorf("lost: connection %d from %s, %v to %v: %v: %v\n%s", f.Seq, f.Local, f.Started, f.Ended, f.Outcome, f.Err, b.story(m, f))
	}
	if len(lost) > 0 {
		b.t.Errorf("%d of %d connections lost", len(lost), len(r.Results))
	}
	if s.Accepted() != len(r.Results) || s.Dropped() != 0 {
		b.t.Errorf("accepted %d of %d, dropped %d", s.Accepted(), len(r.Results), s.Dropped())
	}
	rescued := s.Total(func(l *harness.Listener) int { return l.Rescued })
	if s.Acked()-rescued != r.Count(load.OK)+begun {
		b.t.Errorf("acked %d, rescued %d; %d clients were answered and %d failed that were begun", s.Acked(), rescued, r.Count(load.OK), begun)
	}
	return begun
}

// spared is judge for tests that cut nobody who was begun with.
func (b *book) spared(m *harness.Master, r *load.Report) {
	b.t.Helper()
	if n := b.judge(m, r); n > 0 {
		b.t.Errorf("%d connections were cut that a process had begun with: %v", n, r)
	}
}

// deaths counts the ends of processes that nobody had asked for.
func deaths(m *harness.Master) int {
	return len(m.Events(func(e harness.Event) bool { return e.Name == "worker.exit" && !e.Bool("requested") }))
}

// during loads the master with an open loop until f returns, watching the law.
func during(t *testing.T, m *harness.Master, rate int, f func()) *load.Report {
	t.Helper()
	stop := m.WatchLaw()
	ctx, cancel := context.WithCancel(t.Context())
	finish := waitingContext(ctx, m, load.Config{Rate: float64(rate), Duration: 24 * time.Hour, Timeout: time.Minute})
	f()
	cancel()
	r := finish()
	stop()
	t.Log(r)
	return r
}

// perform calls step n times, one every pause.
func perform(n int, pause time.Duration, step func(i int)) {
	tick := time.NewTicker(max(pause, 1))
	defer tick.Stop()
	for i := range n {
		step(i)
		<-tick.C
	}
}

// respawns returns how long each slot was without a ready process after a death,
// less what the new process took to become ready, sorted.
func respawns(m *harness.Master) []time.Duration {
	var all []time.Duration
	died := make(map[int]time.Time)
	for _, e := range m.Events(nil) {
		at, err := time.Parse(time.RFC3339Nano, e.Str("time"))
		if err != nil {
			continue
		}
		switch slot := e.Int("worker"); e.Name {
		case "worker.exit":
			if _, ok := died[slot]; !ok && !e.Bool("requested") {
				died[slot] = at
			}
		case "worker.ready":
			if since, ok := died[slot]; ok {
				all = append(all, at.Sub(since)-time.Duration(e.Num("duration_s")*float64(time.Second)))
				delete(died, slot)
			}
		}
	}
	slices.Sort(all)
	return all
}

// percentile of sorted values; the zero value if there are none.
func percentile[T cmp.Ordered](sorted []T, q float64) (v T) {
	if len(sorted) > 0 {
		v = sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
	}
	return v
}
