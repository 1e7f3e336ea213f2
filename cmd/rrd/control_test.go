//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/rs/zerolog"

	"rrd/cmd/internal/control"
	"rrd/metrics"
	"rrd/worker/pool"
)

// fakeOperator is a master whose pool is a list that the test changes.
type fakeOperator struct {
	mu      sync.Mutex
	snap    pool.Snapshot
	gate    *logGate
	overC   chan struct{}
	done    []string
	actions map[string]func(slot int) error
}

func newOperator(slots ...pool.SlotStatus) *fakeOperator {
	return &fakeOperator{
		snap: pool.Snapshot{Desired: len(slots), Slots: slots}, gate: newLogGate(zerolog.InfoLevel, nil),
		overC: make(chan struct{}), actions: map[string]func(int) error{},
	}
}

// slotIn is a slot with a process, or without one for id 0.
func slotIn(index int, id uint64, state pool.State) pool.SlotStatus {
	s := pool.SlotStatus{State: state, Exits: map[pool.Cause]uint64{}}
	s.Slot, s.ID = index, id
	if id > 0 {
		s.PID, s.Generation = int(1000+id), 1
	}
	return s
}

func (o *fakeOperator) act(name string, slot int) error {
	o.mu.Lock()
	o.done = append(o.done, fmt.Sprintf("%s %d", name, slot))
	f := o.actions[name]
	o.mu.Unlock()
	if f != nil {
		return f(slot)
	}
	return nil
}

// change changes the pool, and lets it be known as the master does.
func (o *fakeOperator) change(f func(s *pool.Snapshot)) {
	o.mu.Lock()
	f(&o.snap)
	o.mu.Unlock()
	o.gate.events.publish([]byte(`{"event":"worker.something"}` + "\n"))
}

func (o *fakeOperator) Snapshot() pool.Snapshot {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := o.snap
	s.Slots = slices.Clone(s.Slots)
	return s
}

func (o *fakeOperator) Status(context.Context) control.Status { return control.Status{PID: 7} }
func (o *fakeOperator) Workers(context.Context) control.Workers {
	return control.Workers{Desired: 2, Workers: []control.WorkerStatus{{Slot: 0}, {Slot: 1}}}
}
func (o *fakeOperator) Events() *eventHub                         { return &o.gate.events }
func (o *fakeOperator) Log() *logGate                             { return o.gate }
func (o *fakeOperator) Note(cmd string, p control.Peer)           { _ = o.act("note "+cmd, p.UID) }
func (o *fakeOperator) Over() <-chan struct{}                     { return o.overC }
func (o *fakeOperator) Resize(n int) error                        { return o.act("resize", n) }
func (o *fakeOperator) Grow() (int, error)                        { return 3, o.act("grow", 0) }
func (o *fakeOperator) Shrink() (int, error)                      { return 1, o.act("shrink", 0) }
func (o *fakeOperator) Kill(id uint64, _ string)                  { _ = o.act("kill", int(id)) }
func (o *fakeOperator) Signal(slot int, sig syscall.Signal) error { return o.act(sig.String(), slot) }
func (o *fakeOperator) Restart(slot int) error                    { return o.act("restart", slot) }
func (o *fakeOperator) DrainSlot(slot int) error                  { return o.act("drain", slot) }
func (o *fakeOperator) UndrainSlot(slot int) error                { return o.act("undrain", slot) }
func (o *fakeOperator) Dump(int) (string, error)                  { return "", errNone }
func (o *fakeOperator) Undrain() error                            { return errNone }
func (o *fakeOperator) Reload(_ context.Context, progress func(any)) error {
	progress(control.SlotEvent{Slot: 0, State: "started"})
	return o.act("reload", 0)
}
func (o *fakeOperator) Upgrade(context.Context, control.Crossing) error { return errNone }
func (o *fakeOperator) Drain() (control.Drained, error)                 { return control.Drained{Open: 2}, nil }
func (o *fakeOperator) DrainAndClose(context.Context) (control.Drained, error) {
	return control.Drained{Open: 1}, nil
}
func (o *fakeOperator) Stop(_ context.Context, now bool) (control.Stopped, error) {
	if err := o.act("stop", 0); err != nil {
		return control.Stopped{}, err
	}
	close(o.overC)
	return control.Stopped{Cut: 4}, nil
}
func (o *fakeOperator) Config() control.Config { return control.Config{Command: []string{"x"}} }
func (o *fakeOperator) CheckConfig(path string) (control.Config, error) {
	return control.Config{}, fmt.Errorf("%s:1: wrong", path)
}

// ask has a request handled, and returns the events, the result and the error as
// they go over the wire.
func ask(ctx context.Context, o *fakeOperator, uid int, cmd, args string) (events []string, result, failed string) {
	var mu sync.Mutex
	r, err := controlHandler{o}.Handle(ctx, control.Peer{UID: uid}, control.Request{V: 1, Cmd: cmd, Args: json.RawMessage(args)}, func(e any) error {
		b, err := json.Marshal(e)
		mu.Lock()
		defer mu.Unlock()
		events = append(events, string(b))
		return err
	})
	b, _ := json.Marshal(r)
	if err != nil {
		code := control.CodeFailed
		var e *control.Error
		if errors.As(err, &e) {
			code = e.Code
		}
		return events, "", string(code) + ": " + err.Error()
	}
	return events, string(b), ""
}

func TestControlArgs(t *testing.T) {
	for _, x := range []struct{ cmd, args, want string }{
		{"bogus", "", `unknown: "bogus" is no command of this rrd`},
		{"status", `{"x":1}`, `usage: args: json: unknown field "x"`},
		{"workers.set", `{}`, "usage: workers: 0 is not from 1 to 1024"},
		{"workers.set", `{"workers":1025}`, "usage: workers: 1025 is not from 1 to 1024"},
		{"workers.kill", `{}`, `usage: args have no "slot"`},
		{"workers.kill", `{"slot":2}`, "usage: there is no slot 2: they are 0 to 1"},
		{"workers.kill", `{"slot":-1}`, "usage: there is no slot -1: they are 0 to 1"},
		{"workers.kill", `{"slot":1}`, "failed: slot 1 has no process"},
		{"workers.signal", `{"signal":"HUP"}`, `usage: args need either "slot" or "all"`},
		{"workers.signal", `{"signal":"HUP","slot":0,"all":true}`, `usage: args need either "slot" or "all"`},
		{"workers.signal", `{"signal":"9","all":true}`, `usage: signal: "9" is not one of ABRT, ALRM, CONT, HUP, INT, KILL, QUIT, STOP, TERM, TTIN, TTOU, USR1, USR2, WINCH`},
		{"workers.dump", `{"slot":0}`, "refused: none here"},
		{"upgrade", "", "refused: none here"},
		{"undrain", "", "refused: none here"},
		{"drain", `{"close":1}`, "usage: args: json: cannot unmarshal number into Go struct field DrainArgs.close of type bool"},
		{"log.level", `{"level":"loud"}`, `usage: level: "loud" is not one of debug, info, warn, error`},
		{"config.check", `{"path":"rrd.toml"}`, `usage: path: "rrd.toml" is not absolute`},
		{"config.check", `{"path":"/rrd.toml"}`, "failed: /rrd.toml:1: wrong"},
		{"debug.trace", `{"seconds":61}`, "usage: seconds: 61 is not from 1 to 60"},
	} {
		o := newOperator(slotIn(0, 1, pool.StateReady), slotIn(1, 0, pool.StateBackoff))
		if _, _, got := ask(t.Context(), o, 0, x.cmd, x.args); got != x.want {
			t.Errorf("%s %s:\n got %s\nwant %s", x.cmd, x.args, got, x.want)
		}
	}
	o := newOperator()
	if _, _, got := ask(t.Context(), o, os.Geteuid()+77, "config.check", `{"path":"/etc/shadow"}`); !strings.HasPrefix(got, "refused: ") {
		t.Errorf("a peer of --control-uid may have files read: %s", got)
	}
}

// Every command of the protocol is one of this rrd, and the other way round; those
// that change something are noted.
func TestControlCommands(t *testing.T) {
	for _, c := range control.Commands() {
		if _, ok := controlCommands[c.Name]; !ok {
			t.Errorf("%s is not handled", c.Name)
		}
	}
	if len(controlCommands) != len(control.Commands()) {
		t.Errorf("%d are handled, %d are in the protocol", len(controlCommands), len(control.Commands()))
	}
	o := newOperator(slotIn(0, 1, pool.StateReady))
	ask(t.Context(), o, 7, "status", "")
	ask(t.Context(), o, 7, "log.level", `{"level":"warn"}`)
	if got := strings.Join(o.done, ","); got != "note log.level 7" {
		t.Error(got)
	}
	if o.gate.get() != zerolog.WarnLevel {
		t.Error(o.gate.get())
	}
}

// The number of workers: it waits until they are ready, and tells slot by slot.
func TestControlResize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOperator(slotIn(0, 1, pool.StateReady), slotIn(1, 2, pool.StateReady))
		o.actions["resize"] = func(n int) error {
			o.change(func(s *pool.Snapshot) {
				s.Desired, s.Slots = n, append(s.Slots, slotIn(2, 0, pool.StateStarting))
			})
			return nil
		}
		var events []string
		var result, failed string
		var asked sync.WaitGroup
		asked.Go(func() { events, result, failed = ask(t.Context(), o, 0, "workers.set", `{"workers":3}`) })
		synctest.Wait()
		o.change(func(s *pool.Snapshot) { s.Slots[2] = slotIn(2, 3, pool.StateStarting) })
		synctest.Wait()
		o.change(func(s *pool.Snapshot) { s.Slots[2] = slotIn(2, 3, pool.StateReady) })
		asked.Wait()
		want := []string{`{"slot":2,"state":"starting"}`, `{"slot":2,"state":"starting","pid":1003,"generation":1}`, `{"slot":2,"state":"ready","pid":1003,"generation":1}`}
		if !slices.Equal(events, want) || result != `{"from":2,"to":3}` || failed != "" {
			t.Errorf("%q %s %s", events, result, failed)
		}
		if len(o.gate.events.followers) != 0 {
			t.Error("it still follows the events")
		}
	})
}

func TestControlResizeFails(t *testing.T) {
	for _, x := range []struct {
		name string
		then func(o *fakeOperator, s *pool.Snapshot)
		want string
	}{
		{"exit", func(_ *fakeOperator, s *pool.Snapshot) {
			s.Slots[2].State, s.Slots[2].LastExit = pool.StateBackoff, &pool.Exit{Code: 7}
			s.Slots[2].Exits[pool.CauseCode] = 1
		}, "failed: slot 2 exited with code 7 after 0s; 2 of 3 workers are ready, and rrd goes on with its restarts"},
		{"spawn", func(o *fakeOperator, s *pool.Snapshot) {
			s.Slots[2].SpawnFailures = 1
			o.gate.events.publish([]byte(`{"event":"worker.spawn_failed","worker":2,"error":"exec: no memory"}` + "\n"))
		}, "failed: slot 2 could not be started: exec: no memory; 2 of 3 workers are ready, and rrd goes on with its restarts"},
		{"other", func(_ *fakeOperator, s *pool.Snapshot) { s.Desired = 9 }, "failed: somebody else has set the number of workers to 9 meanwhile"},
		{"stop", func(_ *fakeOperator, s *pool.Snapshot) { s.Stopping = true }, "failed: rrd is stopping"},
		{"over", func(o *fakeOperator, _ *pool.Snapshot) { close(o.overC) }, "failed: rrd has stopped meanwhile"},
	} {
		t.Run(x.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := newOperator(slotIn(0, 1, pool.StateReady), slotIn(1, 2, pool.StateReady))
				o.actions["grow"] = func(int) error {
					o.change(func(s *pool.Snapshot) { s.Desired, s.Slots = 3, append(s.Slots, slotIn(2, 3, pool.StateStarting)) })
					return nil
				}
				var failed string
				var asked sync.WaitGroup
				asked.Go(func() { _, _, failed = ask(t.Context(), o, 0, "workers.inc", "") })
				synctest.Wait()
				o.mu.Lock() // both at once: the event and the count
				x.then(o, &o.snap)
				o.mu.Unlock()
				asked.Wait()
				if failed != x.want {
					t.Errorf("got %s\nwant %s", failed, x.want)
				}
			})
		})
	}
}

// Slots that were left down, or are held, are not waited for; one that shrinks away
// is, until its process is gone.
func TestControlShrink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		held := slotIn(0, 0, pool.StateDown)
		held.Held = true
		o := newOperator(held, slotIn(1, 0, pool.StateDown), slotIn(2, 3, pool.StateReady))
		o.actions["resize"] = func(n int) error {
			o.change(func(s *pool.Snapshot) { s.Desired, s.Slots[2].State = n, pool.StateDraining })
			return nil
		}
		var events []string
		var failed string
		over := false
		var asked sync.WaitGroup
		asked.Go(func() { events, _, failed = ask(t.Context(), o, 0, "workers.set", `{"workers":2}`); over = true })
		synctest.Wait()
		if over {
			t.Error("it does not wait for the one that drains")
		}
		o.change(func(s *pool.Snapshot) { s.Slots = s.Slots[:2] })
		asked.Wait()
		if want := []string{`{"slot":2,"state":"draining","pid":1003,"generation":1}`, `{"slot":2,"state":"gone","pid":1003}`}; !slices.Equal(events, want) || failed != "" {
			t.Errorf("%q %s", events, failed)
		}
	})
}

// Who goes away is not waited for; what was begun goes on.
func TestControlNobodyWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOperator(slotIn(0, 1, pool.StateReady))
		release := make(chan struct{})
		for _, verb := range []string{"restart", "reload"} {
			o.actions[verb] = func(int) error { <-release; return nil }
		}
		for _, x := range []struct{ cmd, args string }{{"workers.restart", `{"slot":0}`}, {"reload", ""}} {
			ctx, cancel := context.WithCancel(t.Context())
			var failed string
			var asked sync.WaitGroup
			asked.Go(func() { _, _, failed = ask(ctx, o, 0, x.cmd, x.args) })
			synctest.Wait()
			cancel()
			asked.Wait()
			if failed != "failed: nobody waits any more; what was begun goes on" {
				t.Errorf("%s: %s", x.cmd, failed)
			}
		}
		close(release)
	})
}

func TestControlSlotVerbs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOperator(slotIn(0, 1, pool.StateReady), slotIn(1, 2, pool.StateReady))
		run := func(cmd string, then ...func(s *pool.Snapshot)) (events []string, result, failed string) {
			var asked sync.WaitGroup
			asked.Go(func() { events, result, failed = ask(t.Context(), o, 0, cmd, `{"slot":1}`) })
			for _, f := range then {
				synctest.Wait()
				o.change(f)
			}
			asked.Wait()
			return events, result, failed
		}
		const one = `{"policy":"","workers_desired":2,"workers":[{"slot":1,"state":"","handoffs":0,"acks":0,"in_flight":0,"rejections":0,"failures":0,"restarts":0}]}`
		_, result, failed := run("workers.restart")
		if result != one || failed != "" {
			t.Errorf("%s %s", result, failed)
		}
		events, result, failed := run("workers.drain",
			func(s *pool.Snapshot) { s.Slots[1].State = pool.StateDraining },
			func(s *pool.Snapshot) { s.Slots[1] = slotIn(1, 0, pool.StateDown) })
		if len(events) != 2 || result != one || failed != "" {
			t.Errorf("%q %s %s", events, result, failed)
		}
		events, _, failed = run("workers.undrain",
			func(s *pool.Snapshot) { s.Slots[1] = slotIn(1, 5, pool.StateStarting) },
			func(s *pool.Snapshot) { s.Slots[1] = slotIn(1, 5, pool.StateReady) })
		if len(events) != 2 || failed != "" {
			t.Errorf("%q %s", events, failed)
		}
		events, result, failed = run("workers.kill", func(s *pool.Snapshot) {
			s.Slots[1] = slotIn(1, 0, pool.StateBackoff)
			s.Slots[1].LastExit = &pool.Exit{Code: -1, Signal: syscall.SIGKILL}
		})
		if result != `{"slot":1,"pid":1005}` || failed != "" || len(events) != 1 || !strings.Contains(events[0], `"reason":"was ended by signal 9`) {
			t.Errorf("%q %s %s", events, result, failed)
		}
		o.change(func(s *pool.Snapshot) { s.Slots[1] = slotIn(1, 6, pool.StateReady) })
		_, _, failed = run("workers.kill", func(s *pool.Snapshot) { s.Slots[1].State = pool.StateStuck })
		if !strings.Contains(failed, "process 1006 of slot 1 was killed and does not end") {
			t.Error(failed)
		}
	})
}

func TestControlSignalsAll(t *testing.T) {
	o := newOperator(slotIn(0, 1, pool.StateReady), slotIn(1, 0, pool.StateBackoff), slotIn(2, 3, pool.StateReady))
	o.actions["hangup"] = func(slot int) error {
		if slot == 2 {
			return errors.New("gone")
		}
		return nil
	}
	_, result, failed := ask(t.Context(), o, 0, "workers.signal", `{"signal":"sighup","all":true}`)
	if result != `{"signal":"HUP","workers":[{"slot":0,"pid":1001}]}` || failed != "" {
		t.Errorf("%s %s", result, failed)
	}
	if _, _, failed = ask(t.Context(), o, 0, "workers.signal", `{"signal":"HUP","slot":2}`); failed != "failed: gone" {
		t.Error(failed)
	}
}

// A stop is answered although it is the end of what answers.
func TestControlStop(t *testing.T) {
	o := newOperator(slotIn(0, 1, pool.StateReady))
	if _, result, failed := ask(t.Context(), o, 0, "stop", `{"now":true}`); result != `{"exit_code":0,"connections_cut":4,"duration_s":0}` || failed != "" {
		t.Errorf("%s %s", result, failed)
	}
}

// The hub keeps the last records, and a slow follower is told what it has lost.
func TestEventHub(t *testing.T) {
	var h eventHub
	line := func(i int) []byte { return fmt.Appendf(nil, `{"n":%d}`+"\n", i) }
	for i := range keptEvents + 10 {
		h.publish(line(i))
	}
	last := h.last(1000)
	if len(last) != keptEvents || string(last[0]) != `{"n":10}` || string(last[keptEvents-1]) != fmt.Sprintf(`{"n":%d}`, keptEvents+9) {
		t.Errorf("%d: %s to %s", len(last), last[0], last[len(last)-1])
	}
	recent, f := h.follow(2)
	if len(recent) != 2 || string(recent[1]) != string(last[keptEvents-1]) {
		t.Errorf("%s", recent)
	}
	h.publish([]byte("no JSON\n"))
	for i := range followQueue + 5 {
		h.publish(line(i))
	}
	if len(f.events) != followQueue || f.lost.Load() != 5 {
		t.Errorf("%d wait, %d are lost", len(f.events), f.lost.Load())
	}
	f.close()
	h.publish(line(0))
	if f.lost.Load() != 5 || len(h.followers) != 0 {
		t.Error("it goes on after close")
	}
}

func TestControlFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOperator()
		for i := range 3 {
			o.gate.events.publish(fmt.Appendf(nil, `{"n":%d}`+"\n", i))
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var events []string
		var result, failed string
		var asked sync.WaitGroup
		asked.Go(func() { events, result, failed = ask(ctx, o, 0, "events.follow", `{"recent":1}`) })
		synctest.Wait()
		o.gate.events.publish([]byte(`{"n":3}` + "\n"))
		synctest.Wait()
		cancel()
		asked.Wait()
		if !slices.Equal(events, []string{`{"n":2}`, `{"n":3}`}) || result != "null" || failed != "" {
			t.Errorf("%q %s %s", events, result, failed)
		}
		// One that could not keep up.
		_, f := o.gate.events.follow(0)
		defer f.close()
		f.lost.Store(9)
		c := &call{emit: func(e any) error { b, _ := json.Marshal(e); events = append(events, string(b)); return nil }}
		if err := c.emitLost(f); err != nil || events[len(events)-1] != `{"event":"events.lost","lost":9}` {
			t.Errorf("%q %v", events, err)
		}
	})
}

// The level changes while the loggers are in use; who follows sees what is not
// written, but nothing below info; worker output is never followed.
func TestLogGate(t *testing.T) {
	var out bytes.Buffer
	var counter metrics.LogCounter
	gate := newLogGate(zerolog.InfoLevel, &counter)
	log := newGatedLogger(&out, false, nil, &config{LogFormat: "json"}, gate, true)
	output := newGatedLogger(&out, false, nil, &config{LogFormat: "json"}, gate, false)
	derived := log.With().Str("a", "b").Logger()
	say := func() {
		log.Debug().Msg("d")
		derived.Info().Msg("i")
		log.Error().Msg("e")
		output.Info().Msg("o")
	}
	messages := func() (s string) {
		for line := range strings.Lines(out.String()) {
			var m struct{ Message string }
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				t.Error(err)
			}
			s += m.Message
		}
		out.Reset()
		return s
	}
	for _, x := range []struct {
		level zerolog.Level
		want  string
		info  uint64
	}{{zerolog.InfoLevel, "ieo", 2}, {zerolog.ErrorLevel, "e", 2}, {zerolog.DebugLevel, "dieo", 4}} {
		gate.set(x.level)
		say()
		if got := messages(); got != x.want || counter.Count("info") != x.info {
			t.Errorf("%v: %q, counted %d, want %q, %d", x.level, got, counter.Count("info"), x.want, x.info)
		}
	}
	if n := len(gate.events.last(100)); n != 6 {
		t.Errorf("%d were kept", n)
	}
}

func TestDescribedConfig(t *testing.T) {
	c, _, err := testHost(map[string]string{"/r.toml": "workers = 3\nlisten = [':1', ':2']\n[env]\nTOKEN = 'secret'"}).parseConfig(words("--config /r.toml --policy rr -- ./app -x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	d := c.described()
	if !slices.Equal(d.Command, words("./app -x")) {
		t.Errorf("%q", d.Command)
	}
	got := map[string]string{}
	for _, s := range d.Settings {
		got[s.Name] = fmt.Sprint(s.Values, s.Origin, s.Meaning)
	}
	for name, want := range map[string]string{
		"workers": "[3]/r.toml:1", "listen": "[:1 :2]/r.toml:2", "env": "[TOKEN]/r.toml:3", "policy": "[rr]flag", "drain-timeout": "[30s]default",
		"config": "[/r.toml]flag",
	} {
		if got[name] != want {
			t.Errorf("%s: %s, want %s", name, got[name], want)
		}
	}
	if c.settings["env"].values[0] != "TOKEN=secret" {
		t.Error("the configuration itself was changed")
	}
}

func TestWithConfig(t *testing.T) {
	for _, x := range []struct{ args, want string }{
		{"", "--config=/f"},
		{"-w 4", "-w 4 --config=/f"},
		{"--config /e -w 4 -- app -- x", "--config /e -w 4 --config=/f -- app -- x"},
	} {
		if got := strings.Join(withConfig(words(x.args), "/f"), " "); got != x.want {
			t.Errorf("%q: %q", x.args, got)
		}
	}
}

func TestReadPlainFile(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, t.TempDir(), "/dev/zero", "/none"} {
		if _, err := readPlainFile(path); err == nil {
			t.Errorf("%s was read", path)
		}
	}
}

// Nothing of a trace that nobody takes is kept, and there is one at a time.
func TestControlTrace(t *testing.T) {
	o := newOperator()
	c := &call{ctx: t.Context(), op: o, req: control.Request{Args: json.RawMessage(`{"seconds":60}`)}, emit: func(any) error { return io.ErrClosedPipe }}
	if _, err := c.trace(); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("%v", err)
	}
	tracing.Lock()
	defer tracing.Unlock()
	if _, err := c.trace(); err == nil || !strings.Contains(err.Error(), "another trace") {
		t.Errorf("%v", err)
	}
}

// Whoever is turned away again and again is logged once a second.
func TestControlDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		m := &master{log: zerolog.New(&log), ctl: newControls(newLogGate(zerolog.InfoLevel, nil))}
		for range 100 {
			m.controlDenied(control.Peer{UID: 5, PID: 6}, errors.New("no"))
		}
		if got := strings.Count(log.String(), "\n"); got != 1 || !strings.Contains(log.String(), `"uid":5`) {
			t.Errorf("%s", log.String())
		}
		if got := m.ctl.requests(); len(got) != 1 || got[0] != (metrics.ControlRequests{Command: "none", Result: "denied", Count: 100}) {
			t.Errorf("%v", got)
		}
		m.ctl.handled(control.Peer{}, "of/my\nown", errors.New("x"))
		m.ctl.handled(control.Peer{}, "status", nil)
		if got := m.ctl.requests(); len(got) != 3 || strings.Contains(fmt.Sprint(got), "my") {
			t.Errorf("%v", got)
		}
	})
}

// errNone is what the fake operator refuses with.
var errNone = control.Errorf(control.CodeRefused, "none here")
