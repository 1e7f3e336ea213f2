//go:build linux

package test

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// Eight calls of curl to four idle workers: twice around, in the same order.
func TestTurns(t *testing.T) {
	t.Parallel()
	m := rr(t, 4)
	var slots []int
	for i := range 8 {
		path := fmt.Sprintf("/hello/%d?x=y", i)
		out, err := exec.Command("curl", "-sS", "-i", "http://"+m.Addr()+path).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		got := regexp.MustCompile(`(?s)Rrd-Worker: (\d+)\r\n.*\{"worker":(\d+),"pid":(\d+),"generation":1,"policy":"rr","connection":(\d+),"remote":"[0-9.]+:\d+","uri":"(.*)"\}`).FindSubmatch(out)
		if got == nil || string(got[1]) != string(got[2]) || string(got[5]) != path {
			t.Fatalf("answer %d: %s", i, out)
		}
		if want := fmt.Sprint(i/4 + 1); string(got[4]) != want {
			t.Errorf("answer %d is its connection %s, want %s", i, got[4], want)
		}
		slots = append(slots, int(got[1][0]-'0'))
	}
	if !slices.Equal(slots[:4], slots[4:]) {
		t.Errorf("slots %v: the second turn differs from the first", slots)
	}
	if first := slices.Clone(slots[:4]); !slices.Equal(slices.Sorted(slices.Values(first)), []int{0, 1, 2, 3}) {
		t.Errorf("slots %v: not everyone had a turn", slots)
	}
}

// One after the other, so that all are idle when the next one comes.
func TestSequentialIsExact(t *testing.T) {
	t.Parallel()
	// No worker loses its turn because it waits for the processor.
	m := rr(t, 4, "--busy-after", "off")
	r := serves(t, m, load.Config{Total: 10_000})
	s := accounts(t, m, r)
	// One that gets no processor for so long that it rejects does: on a busy machine.
	passed := 0
	for _, n := range s.Redispatches {
		passed += n
	}
	for slot, n := range r.BySlot() {
		if n < 2500-passed || n > 2500+passed {
			t.Errorf("slot %d served %d of 10,000, want 2,500; %v were redispatched", slot, n, s.Redispatches)
		}
	}
}

// The window counts only under saturation: workers that owe nothing come first.
func TestSequentialIsExactAtAnyWindow(t *testing.T) {
	t.Parallel()
	for _, window := range []string{"1", "64"} {
		m := rr(t, 3, "--handoff-window", window)
		r := serves(t, m, load.Config{Total: 300})
		for slot, n := range r.BySlot() {
			if n != 100 {
				t.Errorf("window %s: slot %d served %d of 300", window, slot, n)
			}
		}
	}
}

// The spread is judged over all connections, so that a longer run excuses a
// moment when the machine had no time for one of the workers, and no bias.
func TestSpread(t *testing.T) {
	m := rr(t, 4)
	var reports []*load.Report
	by := make(map[int]int)
	total := 0
	for range 4 {
		r := serves(t, m, load.Config{Clients: 64, Duration: harness.Soak(t, 5*time.Second)})
		reports = append(reports, r)
		for slot, n := range r.BySlot() {
			by[slot] += n
			total += n
		}
		mean := float64(total) / 4
		spread := 0.0
		for slot := range 4 {
			spread = max(spread, math.Abs(float64(by[slot])-mean)/mean)
		}
		t.Logf("spread %.1f %% over %d connections: %v", 100*spread, total, by)
		if spread <= 0.05 || t.Failed() {
			accounts(t, m, reports...)
			return
		}
	}
	t.Errorf("the spread stays over 5 %%: %v", by)
}

func TestConcurrent(t *testing.T) {
	for _, name := range []string{"none", "reuseport"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := policy(t, name, 4)
			r := serves(t, m, load.Config{Clients: 64, Duration: harness.Soak(t, 3*time.Second)})
			if r.Count(load.OK) < 1000 {
				t.Errorf("only %d connections", r.Count(load.OK))
			}
			if got := m.Idle().Policy; got != name {
				t.Errorf("policy %q", got)
			}
			if len(r.BySlot()) != 4 {
				t.Errorf("only these slots served: %v", r.BySlot())
			}
		})
	}
}

// An open loop at a rate that the machine can hold.
func TestOpenLoop(t *testing.T) {
	t.Parallel()
	m := rr(t, 4)
	accounts(t, m, serves(t, m, load.Config{Rate: 1000, Total: 2000}))
}

func TestUnknownPolicy(t *testing.T) {
	t.Parallel()
	m := harness.Run(t, harness.Options{Args: []string{"--policy", "fair"}, ExitCode: 2})
	for _, word := range []string{"--policy", `"fair"`, "rr", "none", "reuseport", "auto"} {
		if !strings.Contains(m.Log(), word) {
			t.Errorf("the error does not say %s: %s", word, m.Log())
		}
	}
	if strings.Count(m.Log(), "\n") != 0 {
		t.Errorf("not one line: %s", m.Log())
	}
}

// The log says what auto means here.
func TestPolicyAuto(t *testing.T) {
	t.Parallel()
	m := harness.Start(t, harness.Options{Args: []string{"--workers", "2"}})
	e := m.Wait(harness.Named("start"))
	if e.Str("policy") != "rr" || e.Str("reason") == "" || m.Status().Policy != "rr" {
		t.Errorf("start event %s", e.Line)
	}
	accounts(t, m, serves(t, m, load.Config{Total: 20}))
}

// The flags of a newcomer's first command, and what a terminal shows. go run is the
// first word of README; the port is the default one, which may be in use here.
func TestGoRun(t *testing.T) {
	t.Parallel()
	if readme, err := os.ReadFile("../README.md"); err == nil && !strings.Contains(string(readme), "go run ./cmd/rrd --policy=rr") {
		t.Error("README.md does not begin with go run ./cmd/rrd --policy=rr")
	}
	at := harness.Host() + ":0"
	cmd := exec.Command("go", "run", "./cmd/rrd", "--policy=rr", "--listen", at, "--metrics", "off", "--control", "off", "--log-format", "json")
	cmd.Dir = ".."
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait() //nolint:errcheck // go run has its own exit code for an interrupt
	address := regexp.MustCompile(`"event":"listener.open".*"address":"([^"]*)"`)
	pid := regexp.MustCompile(`"event":"start","pid":(\d+)`)
	var text []byte
	harness.Poll(t, "go run to be ready", func() error {
		text, err = os.ReadFile(log.Name())
		if !strings.Contains(string(text), `"event":"ready"`) {
			return fmt.Errorf("%v, log %s", err, text)
		}
		return nil
	})
	r := load.Run(t.Context(), load.Config{Address: string(address.FindSubmatch(text)[1]), Total: 20})
	if r.Count(load.OK) != 20 {
		t.Error(r)
	}
	var master int
	_, _ = fmt.Sscan(string(pid.FindSubmatch(text)[1]), &master)
	if err := syscall.Kill(master, syscall.SIGTERM); err != nil {
		t.Error(err)
	}
}
