//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"rrd/cmd/internal/control"
	"rrd/test/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

var update = flag.Bool("update", false, "write the golden files")

// golden compares text with a file of testdata.
func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, text, want)
	}
}

// fakeMaster answers each command as it is told.
type fakeMaster struct {
	path    string
	mu      sync.Mutex
	asked   []string
	events  map[string][]any
	results map[string]any
	errs    map[string]error
}

func (f *fakeMaster) Handle(ctx context.Context, _ control.Peer, r control.Request, emit func(any) error) (any, error) {
	f.mu.Lock()
	f.asked = append(f.asked, r.Cmd+string(r.Args))
	events, result, err := f.events[r.Cmd], f.results[r.Cmd], f.errs[r.Cmd]
	f.mu.Unlock()
	for _, e := range events {
		if err := emit(e); err != nil {
			return nil, err
		}
	}
	return result, err
}

func newMaster(t *testing.T) *fakeMaster {
	t.Helper()
	dir, err := os.MkdirTemp("", "ctl")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeMaster{path: filepath.Join(dir, control.SocketName), events: map[string][]any{}, results: map[string]any{}, errs: map[string]error{}}
	l, err := control.Listen(f.path, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- control.NewServer(control.ServerConfig{Handler: f}).Serve(ctx, l) }() // waited for in the cleanup
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_ = os.RemoveAll(dir)
	})
	return f
}

// ctl runs rrdctl and returns its outputs.
func (f *fakeMaster) ctl(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	return ctl(t, map[string]string{"RRDCTL_CONTROL": f.path}, args...)
}

func ctl(t *testing.T, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{ctx: t.Context(), getenv: func(name string) string { return env[name] }, out: &out, err: &errs}
	code = a.run(args)
	return code, out.String(), errs.String()
}

func TestVerbs(t *testing.T) {
	f := newMaster(t)
	slot := func(n int, state string, pid int, reason string) control.SlotEvent {
		return control.SlotEvent{Slot: n, State: state, PID: pid, Reason: reason}
	}
	f.events[control.CmdWorkersSet] = []any{slot(2, "starting", 0, ""), slot(2, "ready", 77, "")}
	f.results[control.CmdWorkersSet] = control.Resized{From: 2, To: 3}
	f.results[control.CmdWorkersInc] = control.Resized{From: 3, To: 4}
	f.errs[control.CmdWorkersDec] = control.Errorf(control.CodeFailed, "slot 3 does not\nend")
	f.events[control.CmdWorkersKill] = []any{slot(1, "backoff", 0, "was ended by signal 9\x1b[31m")}
	f.results[control.CmdWorkersKill] = control.Killed{Slot: 1, PID: 5}
	f.results[control.CmdWorkersSignal] = control.Signalled{Signal: "HUP", Workers: []control.Killed{{Slot: 0, PID: 4}, {Slot: 1, PID: 5}}}
	f.errs[control.CmdWorkersDump] = control.Errorf(control.CodeUnknown, "not in this version")
	f.errs[control.CmdWorkersRestart] = control.Errorf(control.CodeUsage, "there is no slot 9: they are 0 to 1")
	f.events[control.CmdReload] = []any{slot(0, "started", 0, ""), slot(0, "failed", 0, "exited with code 1")}
	f.errs[control.CmdReload] = control.Errorf(control.CodeFailed, "slot 0: exited with code 1")
	f.errs[control.CmdUpgrade] = control.Errorf(control.CodeFailed, "the new program said no")
	f.results[control.CmdDrain] = control.Drained{Open: 3, Seconds: 30}
	f.results[control.CmdStop] = control.Stopped{ExitCode: 0, Cut: 2, Seconds: 90}
	f.results[control.CmdLogLevel] = control.Level{From: "info", To: "debug"}
	f.results[control.CmdConfigCheck] = control.Config{Warnings: []string{"odd"}}
	f.results[control.CmdFDs] = control.FDs{FDs: []control.FD{{FD: 3, Kind: "tcp listener", Target: "127.0.0.1:80"}, {FD: 12, Kind: "file", Target: "/x\n"}}}
	f.events[control.CmdGoroutines] = []any{control.Text{Text: "goroutine 1 [running]:\n"}, control.Text{Text: "main.main()\n"}}
	f.results[control.CmdGoroutines] = control.Goroutines{Goroutines: 1}
	f.events[control.CmdEventsFollow] = []any{
		json.RawMessage(`{"level":"info","event":"worker.ready","worker":3,"reason":"a b","time":"T","message":"x"}`),
		control.Lost{Event: control.EventsLost, Lost: 7},
	}
	f.results[control.CmdEventsRecent] = control.Events{Events: []json.RawMessage{json.RawMessage(`{"level":"error","event":"worker.exit","time":"T"}`)}}
	for _, x := range []struct {
		args        string
		code        int
		asked       string
		out, errOut string
	}{
		{"workers set 3", 0, `workers.set{"workers":3}`, "slot 2: starting\nslot 2: ready (pid 77)\n3 workers, 2 before\n", ""},
		{"workers inc", 0, "workers.inc", "4 workers, 3 before\n", ""},
		{"workers dec", 1, "workers.dec", "", "rrdctl: slot 3 does not end\n"},
		{"-o json workers dec", 1, "workers.dec", "{\n  \"ok\": false,\n  \"error\": \"slot 3 does not end\",\n  \"code\": \"failed\"\n}\n", ""},
		{"workers kill 1", 0, `workers.kill{"slot":1}`, "slot 1: backoff: was ended by signal 9?[31m\nslot 1: killed\n", ""},
		{"workers kill 1 -o json", 0, `workers.kill{"slot":1}`, "{\n  \"slot\": 1,\n  \"pid\": 5\n}\n", ""},
		{"workers signal HUP all", 0, `workers.signal{"signal":"HUP","all":true}`, "slot 0: HUP sent (pid 4)\nslot 1: HUP sent (pid 5)\n", ""},
		{"workers dump 0", 1, `workers.dump{"slot":0}`, "", "rrdctl: not in this version\n"},
		{"workers restart 9", 2, `workers.restart{"slot":9}`, "", "rrdctl: there is no slot 9: they are 0 to 1\n"},
		{"workers drain 1", 0, `workers.drain{"slot":1}`, "slot 1: drained\n", ""},
		{"workers undrain 1", 0, `workers.undrain{"slot":1}`, "slot 1: serves again\n", ""},
		{"reload", 1, `reload{"wait":true}`, "slot 0: started\nslot 0: failed: exited with code 1\n", "rrdctl: slot 0: exited with code 1\n"},
		{"upgrade", 1, "upgrade", "", "rrdctl: the new program said no\n"},
		{"drain", 0, "drain{}", "out of rotation: not ready, and new connections are still served, until undrain or stop\n", ""},
		{"drain --close", 1, `drain{"close":true}`, "drained for 30s, and 3 connections are still open: rrd waits for stop\n",
			"rrdctl: drain --close closes the listeners: only a restart opens them again\n"},
		{"undrain", 0, "undrain", "in rotation again\n", ""},
		{"stop --now", 0, `stop{"now":true}`, "stopped after 1m30s with exit code 0, 2 connections cut\n", ""},
		{"log-level debug", 0, `log.level{"level":"debug"}`, "log level debug, info before\n", ""},
		{"log-level", 0, `log.level{}`, "debug\n", ""},
		{"config check /etc/rrd.toml", 0, `config.check{"path":"/etc/rrd.toml"}`, "warning: odd\n/etc/rrd.toml is good\n", ""},
		{"debug fds", 0, "debug.fds", "FD  KIND          WHAT\n 3  tcp listener  127.0.0.1:80\n12  file          /x?\n", ""},
		{"debug goroutines", 0, "debug.goroutines", "goroutine 1 [running]:\nmain.main()\n", ""},
		{"events -f -n 1", 0, `events.follow{"recent":1}`, "T info  worker.ready worker=3 reason=\"a b\"\nevents.lost lost=7\n", ""},
		{"events", 0, "events.recent", "T error worker.exit\n", ""},
		{"events -o json", 0, "events.recent", `{"level":"error","event":"worker.exit","time":"T"}` + "\n", ""},

		{"workers set four", 2, "", "", "rrdctl: \"four\" is no number of workers: usage\n"},
		{"workers kill -1", 2, "", "", "rrdctl: unknown shorthand flag: '1' in -1\n"},
		{"workers kill x", 2, "", "", "rrdctl: \"x\" is no slot: usage\n"},
		{"workers kill", 2, "", "", "rrdctl: accepts 1 arg(s), received 0\n"},
		{"bogus", 2, "", "", "rrdctl: unknown command \"bogus\" for \"rrdctl\"\n"},
		{"status --bogus", 2, "", "", "rrdctl: unknown flag: --bogus\n"},
		{"status -o yaml", 2, "", "", "rrdctl: --output: \"yaml\" is not one of text, json\n"},
		{"top --sort pid", 2, "", "", "rrdctl: --sort: \"pid\" is not one of slot, conns, active, cpu, rss, restarts, uptime: usage\n"},
		{"top --interval 1ms", 2, "", "", "rrdctl: --interval: 1ms is not from 100ms to 1m: usage\n"},
	} {
		f.asked = nil
		code, out, errOut := f.ctl(t, strings.Fields(x.args)...)
		if code != x.code || out != x.out || errOut != x.errOut || strings.Join(f.asked, "|") != x.asked {
			t.Errorf("%s:\n got %d %q %q, asked %q\nwant %d %q %q, asked %q", x.args, code, out, errOut, f.asked, x.code, x.out, x.errOut, x.asked)
		}
	}
}

func TestTrace(t *testing.T) {
	f := newMaster(t)
	f.events[control.CmdTrace] = []any{control.Data{Data: []byte("abc")}, control.Data{Data: []byte{0, 255}}}
	f.results[control.CmdTrace] = control.Traced{Bytes: 5, Seconds: 2}
	file := filepath.Join(t.TempDir(), "t")
	code, out, _ := f.ctl(t, "debug", "trace", "--seconds", "2", "-f", file)
	if text, err := os.ReadFile(file); code != 0 || err != nil || string(text) != "abc\x00\xff" || out != file+": 5B of 2.0s, to be seen with go tool trace\n" {
		t.Errorf("%d %q %q %v", code, out, text, err)
	}
	if code, out, _ := f.ctl(t, "debug", "trace", "-f", "-"); code != 0 || out != "abc\x00\xff" {
		t.Errorf("%d %q", code, out)
	}
	if code, _, _ := ctl(t, map[string]string{"RRDCTL_CONTROL": t.TempDir() + "/none"}, "debug", "trace", "-f", file); code != 3 {
		t.Errorf("%d", code)
	}
	if text, err := os.ReadFile(file); err != nil || len(text) == 0 {
		t.Errorf("a trace that cannot be had has emptied the last one: %v", err)
	}
}

func TestNobodyThere(t *testing.T) {
	dir := t.TempDir()
	code, out, errOut := ctl(t, map[string]string{"RRDCTL_CONTROL": dir + "/none"}, "status")
	if code != 3 || out != "" || errOut != "rrdctl: connect to "+dir+"/none: no rrd is there\n" {
		t.Errorf("%d %q %q", code, out, errOut)
	}
	code, out, _ = ctl(t, map[string]string{"RRDCTL_CONTROL": dir + "/none"}, "status", "-o", "json")
	if code != 3 || !strings.Contains(out, `"ok": false`) {
		t.Errorf("%d %q", code, out)
	}
}

// Which master, when nobody says.
func TestFindsTheMaster(t *testing.T) {
	base, err := os.MkdirTemp("", "ctl")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	env := map[string]string{"RUNTIME_DIRECTORY": base, "XDG_RUNTIME_DIR": base}
	if live, _ := control.Find(t.Context(), func(name string) string { return "" }); len(live) > 0 {
		t.Skipf("somebody serves %v", live)
	}
	if code, _, errOut := ctl(t, env, "status"); code != 3 || !strings.Contains(errOut, base) {
		t.Errorf("%d %q", code, errOut)
	}
	f := &fakeMaster{results: map[string]any{control.CmdLogLevel: control.Level{To: "info"}}}
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	for i := range 2 {
		l, err := control.ListenAuto(func(name string) string { return env[name] }, nil)
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() { _ = control.NewServer(control.ServerConfig{Handler: f}).Serve(ctx, l) })
		code, out, errOut := ctl(t, env, "log-level")
		if i == 0 && (code != 0 || out != "info\n") {
			t.Errorf("%d %q %q", code, out, errOut)
		}
		if want := fmt.Sprintf("several masters, choose one with --control: %s/control-%d.sock, %[1]s/control.sock", base, os.Getpid()); i == 1 && (code != 2 || !strings.Contains(errOut, want)) {
			t.Errorf("%d %q, want %s", code, errOut, want)
		}
	}
}

// Interrupted while it waits, it says that the master goes on.
func TestInterrupted(t *testing.T) {
	f := newMaster(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var errs bytes.Buffer
	a := &app{ctx: ctx, getenv: func(string) string { return f.path }, out: &errs, err: &errs}
	if code := a.run([]string{"drain"}); code != 1 {
		t.Errorf("%d", code)
	}
}

// At a terminal drain --close does nothing before it has a yes.
func TestDrainCloseAsks(t *testing.T) {
	f := newMaster(t)
	f.results[control.CmdDrain] = control.Drained{}
	for _, x := range []struct {
		answer string
		code   int
		asked  int
	}{
		{"y\n", 0, 1}, {" YES \n", 0, 1}, {"y", 0, 1},
		{"n\n", 1, 0}, {"\n", 1, 0}, {"", 1, 0}, {"yesterday\n", 1, 0},
	} {
		f.asked = nil
		var out, errs bytes.Buffer
		a := &app{ctx: t.Context(), getenv: func(string) string { return f.path }, in: strings.NewReader(x.answer), out: &out, err: &errs, asks: true}
		code := a.run([]string{"drain", "--close"})
		if code != x.code || len(f.asked) != x.asked || !strings.Contains(errs.String(), "only a restart opens them again. Close them?") {
			t.Errorf("%q: %d, asked %q, %q", x.answer, code, f.asked, errs.String())
		}
		if says := "nothing was changed"; strings.Contains(errs.String(), says) != (x.asked == 0) {
			t.Errorf("%q: %q", x.answer, errs.String())
		}
	}
}

// Ctrl-C at the question is a no.
func TestDrainCloseInterrupted(t *testing.T) {
	f := newMaster(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, w := io.Pipe() // a terminal at which no person types
	defer w.Close()
	var errs bytes.Buffer
	a := &app{ctx: ctx, getenv: func(string) string { return f.path }, in: r, out: &errs, err: &errs, asks: true}
	if code := a.run([]string{"drain", "--close"}); code != 1 || len(f.asked) != 0 || !strings.Contains(errs.String(), "nothing was changed") {
		t.Errorf("%d, asked %q, %q", code, f.asked, errs.String())
	}
}

// Every command of the protocol can be given, and each has its line of help.
func TestEveryCommandHasAVerb(t *testing.T) {
	source := ""
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		source += string(text)
	}
	protocol, err := os.ReadFile("../internal/control/commands.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range control.Commands() {
		_, name, _ := strings.Cut(strings.Split(string(protocol), fmt.Sprintf("%q", c.Name))[0], "const (")
		lines := strings.Split(strings.TrimSpace(name), "\n")
		constant := strings.Fields(lines[len(lines)-1])[0]
		if !strings.Contains(source, "control."+constant) {
			t.Errorf("no verb asks %s (%s)", c.Name, constant)
		}
	}
}
