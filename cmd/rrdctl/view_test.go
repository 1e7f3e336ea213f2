//go:build unix

package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

	"rrd/cmd/internal/control"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func ptr[T any](v T) *T { return &v }

// sample is a master with n workers, in whose second look each has served more.
func sample(n int, second bool) *control.Status {
	s := &control.Status{
		Version: "1.2.3", PID: 4711, Time: noon, Started: noon.Add(-3*time.Hour - 5*time.Minute), Policy: "rr", Ready: true, LogLevel: "info",
		QueueLimit: 4096, Desired: n,
		Listeners: []control.ListenerStatus{
			{Name: "web", Network: "tcp", Address: "0.0.0.0:8080", Accepted: 1234567, Acked: 1234560, Dropped: map[string]uint64{"poison": 3}, Queued: 4, LawHolds: true, KernelQueue: &control.KernelQueue{Length: 2, Limit: 4096}},
			{Name: "admin", Network: "unix", Address: "/run/app/a-rather-long-name.sock", Accepted: 12, Acked: 12, LawHolds: true},
			{Name: "dns", Network: "udp", Address: "127.0.0.1:53", Shared: true, LawHolds: true},
		},
		Dispatch: control.Histogram{Bounds: []float64{1e-5, 2.5e-4, 0.001, 1}, Counts: []uint64{10, 980, 8, 1, 1}},
	}
	for i := range n {
		w := control.WorkerStatus{
			Slot: i, PID: 1000 + i, Generation: 2, State: "ready", Uptime: float64(11000 + i), Handoffs: uint64(300000 + i*11), Acks: uint64(300000 + i*10), Active: ptr(3 * i),
			InFlight: i % 3, Rejections: uint64(i), Restarts: uint64(i % 2), Heard: ptr(0.25), CPU: ptr(100.5 + float64(i)), RSS: ptr(uint64(12<<20 + i<<18)), FDs: ptr(10 + i),
		}
		switch i {
		case 1:
			w.State, w.PID, w.Backoff, w.LastExit, w.RSS, w.CPU, w.FDs = "backoff", 0, 3.5, "exited with code 7 after 2ms", nil, nil, nil
		case 2:
			w.Others = []control.OtherProcess{{Name: "2.1", PID: 999, State: "stuck", Uptime: 90000}}
		case 3:
			w.State = "stuck"
		case 4:
			w.Late = true
		}
		if second {
			w.Acks += uint64(50 * i)
			if w.CPU != nil {
				*w.CPU += float64(i) / 10
			}
		}
		s.Workers = append(s.Workers, w)
	}
	if second {
		s.Time = noon.Add(2 * time.Second)
		s.Listeners[0].Accepted += 20000
		s.Dispatch.Counts = []uint64{10, 980, 1008, 1, 1}
	}
	return s
}

func fits(t *testing.T, text string, width int) {
	t.Helper()
	for line := range strings.Lines(text) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
			t.Errorf("%d columns: %q", n, line)
		}
	}
}

func TestStatusGolden(t *testing.T) {
	for _, width := range []int{80, 200} {
		a := &app{width: width}
		text := strings.Join(a.statusLines(sample(5, false)), "\n") + "\n"
		fits(t, text, width)
		golden(t, fmt.Sprintf("status-%d.golden", width), text)
	}
	s := sample(2, false)
	s.Policy, s.Ready, s.Reason = "none", false, "no worker is ready\x1b[2J"
	s.Reload = &control.Reload{Error: "/etc/rrd.toml:3: \"worker\" is no setting", LastSuccess: noon.Add(-time.Hour)}
	s.Listeners[0].LawHolds = false
	s.Listeners[0].Paused = true
	for i := range s.Workers {
		s.Workers[i].Handoffs = 0
	}
	a := &app{width: 80, color: true}
	golden(t, "status-trouble.golden", strings.ReplaceAll(strings.Join(a.statusLines(s), "\n"), "\x1b", "ESC")+"\n")
}

func key(s string) tea.KeyPressMsg {
	special := map[string]rune{"up": tea.KeyUp, "down": tea.KeyDown, "pgdown": tea.KeyPgDown, "end": tea.KeyEnd, "home": tea.KeyHome}
	if code, ok := special[s]; ok {
		return tea.KeyPressMsg{Code: code}
	}
	return tea.KeyPressMsg{Code: rune(s[0]), Text: s}
}

// show is a view that has looked twice.
func show(n, width, height int) *topModel {
	m := &topModel{app: &app{}, view: topView{by: "slot"}, interval: time.Second}
	m.Update(tea.WindowSizeMsg{Width: width, Height: height})
	m.Update(seenMsg{status: sample(n, false)})
	m.Update(seenMsg{status: sample(n, true)})
	return m
}

func text(m *topModel) string { return strings.Join(m.screen(), "\n") + "\n" }

func TestTopGolden(t *testing.T) {
	for _, x := range []struct {
		name          string
		n, wide, high int
		keys          []string
	}{
		{"top-4-80x24", 4, 80, 24, nil},
		{"top-64-80x24", 64, 80, 24, nil},
		{"top-64-80x24-end", 64, 80, 24, []string{"end", "k"}},
		{"top-64-200x50-conns", 64, 200, 50, []string{">", "down"}},
	} {
		m := show(x.n, x.wide, x.high)
		for _, k := range x.keys {
			m.Update(key(k))
		}
		got := text(m)
		fits(t, got, x.wide)
		if lines := strings.Count(got, "\n"); lines != x.high {
			t.Errorf("%s: %d lines", x.name, lines)
		}
		golden(t, x.name+".golden", got)
	}
}

// No terminal is too small, and none makes it fall over.
func TestTopAnySize(t *testing.T) {
	for width := 1; width < 120; width += 7 {
		for height := 1; height < 40; height += 5 {
			fits(t, text(show(7, width, height)), max(width, 25)) // what stays of the table is wider, and cut
		}
	}
}

func TestTopMoves(t *testing.T) {
	m := show(64, 80, 24)
	for _, x := range []struct {
		key        string
		slot       int
		contains   string
		doesNotNow string
	}{
		{"down", 1, ">  1", ""},
		{"down", 2, ">  2", ""},
		{"down", 3, ">  3", ""}, // past the second process of slot 2
		{"up", 2, "", ""},
		{"end", 63, "63  1063", "   0  1000"},
		{"home", 0, ">  0", "1063"},
		{"pgdown", 16, "", ""},
		{"<", 63, "sort: uptime", ""},
		{"r", 0, "sort: uptime (r)", ""},
		{"r", 63, "sort: uptime", "(r)"},
		{">", 0, "sort: slot", ""},
	} {
		m.Update(key(x.key))
		got := text(m)
		if m.slot != x.slot || !strings.Contains(got, x.contains) || x.doesNotNow != "" && strings.Contains(got, x.doesNotNow) {
			t.Errorf("%s: slot %d, want %d, and %q:\n%s", x.key, m.slot, x.slot, x.contains, got)
		}
	}
}

// Nothing is drained or killed without a yes.
func TestTopAsks(t *testing.T) {
	f := newMaster(t)
	f.errs[control.CmdWorkersKill] = control.Errorf(control.CodeFailed, "it does not end")
	m := show(4, 80, 24)
	m.app = &app{ctx: t.Context(), path: f.path}
	m.Update(key("k"))
	if !strings.Contains(text(m), "kill slot 0 (pid 1000)? y or n") {
		t.Error(text(m))
	}
	if _, cmd := m.Update(key("n")); cmd != nil || !strings.Contains(text(m), "nothing done") {
		t.Error(text(m))
	}
	for _, x := range []struct{ key, asked, says string }{
		{"d", `workers.drain{"slot":0}`, "drain slot 0 (pid 1000): done"},
		{"u", `workers.undrain{"slot":0}`, "undrain slot 0 (pid 1000): done"},
		{"k", `workers.kill{"slot":0}`, "it does not end"},
	} {
		f.asked = nil
		m.Update(key(x.key))
		_, cmd := m.Update(key("y"))
		if cmd == nil {
			t.Fatal("nothing is done")
		}
		m.Update(cmd())
		if strings.Join(f.asked, " ") != x.asked || !strings.Contains(text(m), x.says) {
			t.Errorf("%s: asked %q\n%s", x.key, f.asked, text(m))
		}
	}
}

// A master that is gone meanwhile is told of, one that never was ends the view.
func TestTopLosesTheMaster(t *testing.T) {
	m := show(4, 80, 24)
	m.Update(seenMsg{err: errors.New("connect: no rrd is there")})
	if !strings.HasPrefix(text(m), "NO ANSWER: connect: no rrd is there") || !strings.Contains(text(m), "1000") {
		t.Error(text(m))
	}
	m.Update(seenMsg{status: sample(4, true)})
	if strings.Contains(text(m), "NO ANSWER") {
		t.Error(text(m))
	}
	m = &topModel{app: &app{}}
	if _, cmd := m.Update(seenMsg{err: errors.New("nobody")}); cmd == nil || m.fatal == nil {
		t.Error("it goes on")
	}
	if _, cmd := m.Update(key("q")); cmd == nil {
		t.Error("q does not quit")
	}
}

func TestTopOnce(t *testing.T) {
	f := newMaster(t)
	f.results[control.CmdStatus] = sample(4, false)
	code, out, errOut := f.ctl(t, "top", "--interval", "100ms")
	if code != 0 || !strings.Contains(out, "\nSLOT") || !strings.Contains(out, "CONNS") {
		t.Errorf("%d %q %q", code, out, errOut)
	}
	code, out, _ = f.ctl(t, "top", "--interval", "100ms", "-o", "json")
	if code != 0 || !strings.HasPrefix(out, "{") {
		t.Errorf("%d %q", code, out)
	}
}

func TestFormats(t *testing.T) {
	for want, got := range map[string]string{
		"0.2s": age(0.25), "59s": age(59.9), "1m05s": age(65), "2h03m": age(7380), "3d04h": age(273600), "-": age(-1),
		"10us": short(1e-5), "2.5ms": short(0.0025), "10s": short(10),
		"999B": size(999), "1.0K": size(1024), "12M": size(12 << 20), "1.5G": size(3 << 29),
		"999999": count(999999), "1.2M": count(1234567), "123M": count(123456789), "5.0G": count(5e9),
		"0": rate(0), "0.5": rate(0.5), "10": rate(9.99), "1235": rate(1234.5),
		"<=1ms": quantile([]float64{.001, .01}, []uint64{99, 1, 0}, .99), ">10ms": quantile([]float64{.001, .01}, []uint64{1, 0, 99}, .5),
		"a?b?c": plain("a\x1bb\u202ec"), "abc~": cut("abcdef", 4), "abcd": cut("abcd", 4),
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := quantile(nil, []uint64{0}, .5); got != "-" {
		t.Error(got)
	}
}

func TestConfigLines(t *testing.T) {
	c := &control.Config{Command: []string{"node", "a b.js"}, Settings: []control.Setting{
		{Name: "listen", Values: []string{":80"}, Origin: "flag"},
		{Name: "workers", Values: []string{"auto"}, Origin: "default", Meaning: "4"},
		{Name: "env", Values: []string{"TOKEN"}, Origin: "/etc/rrd.toml:3"},
	}}
	want := "command = [\"node\", \"a b.js\"]\nlisten = [\":80\"]\nworkers = \"auto\"\n# env: \"TOKEN\""
	if got := strings.Join(configLines(c, false), "\n"); got != want {
		t.Error(got)
	}
	want = "command = [\"node\", \"a b.js\"]\nlisten = [\":80\"] # flag\nworkers = \"auto\" # default; 4\n# env: \"TOKEN\" # /etc/rrd.toml:3"
	if got := strings.Join(configLines(c, true), "\n"); got != want {
		t.Error(got)
	}
}
