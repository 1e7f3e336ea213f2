//go:build linux

package test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"rrd/test/harness"
	"rrd/test/leakcheck"
)

// comparison is what is looked at of rrd compare -o json.
type comparison struct {
	Workers int
	Phases  []struct {
		Phase    string
		Policies []struct {
			Policy      string
			Connections int
			Failed      int
			Failure     string
			PerSecond   float64 `json:"connections_per_second"`
			P50         float64 `json:"p50_s"`
			P99         float64 `json:"p99_s"`
			Spread      int
			ByWorker    []int `json:"by_worker"`
		}
	}
	LeftOut []any `json:"left_out"`
}

// startCompare starts rrd compare with a variable of its own in the environment.
func startCompare(t *testing.T, mark string, args ...string) (cmd *exec.Cmd, stdout, stderr *strings.Builder) {
	t.Helper()
	cmd = exec.Command(harness.RRD(t), append([]string{"compare"}, args...)...)
	stdout, stderr = &strings.Builder{}, &strings.Builder{}
	cmd.Stdout, cmd.Stderr = stdout, stderr
	// What would change a master's mind must not reach those that are compared.
	cmd.Env = append(os.Environ(), mark, "RRD_POLICY=none", "RRD_WORKERS=9", "RRD_LISTEN=127.0.0.1:1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, stdout, stderr
}

// How it looks, and what is true on every machine: all were served, and one after
// the other rr gives each worker as many as the next, less one at most.
func TestCompare(t *testing.T) {
	t.Parallel()
	const mark, workers = "E2E_COMPARE=whole", 3
	cmd, stdout, stderr := startCompare(t, mark, "--workers", "3", "--seconds", "4", "--rate", "200", "-o", "json")
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	leakcheck.NoProcess(t, mark)
	var c comparison
	if err := json.Unmarshal([]byte(stdout.String()), &c); err != nil {
		t.Fatalf("%v: %s", err, stdout)
	}
	if stderr.Len() > 0 || c.Workers != workers || len(c.LeftOut) > 0 {
		t.Errorf("stderr %q, workers %d, left out %v", stderr, c.Workers, c.LeftOut)
	}
	var phases []string
	for _, p := range c.Phases {
		phases = append(phases, p.Phase)
		var policies []string
		for _, x := range p.Policies {
			policies = append(policies, x.Policy)
			sum := 0
			for _, n := range x.ByWorker {
				sum += n
			}
			if x.Connections == 0 || x.Failed > 0 || len(x.ByWorker) != workers || sum != x.Connections ||
				x.PerSecond < 0 || x.P50 <= 0 || x.P99 < x.P50 || x.Spread != slices.Max(x.ByWorker)-slices.Min(x.ByWorker) {
				t.Errorf("%s: %+v", p.Phase, x)
			}
			if p.Phase == "sequential" && x.Policy == "rr" && x.Spread > 1 {
				t.Errorf("rr, one after the other: %v", x.ByWorker)
			}
		}
		if !slices.Equal(policies, []string{"none", "reuseport", "rr"}) {
			t.Errorf("%s: policies %v", p.Phase, policies)
		}
	}
	if !slices.Equal(phases, []string{"sequential", "steady", "saturated", "slow_steady", "slow_saturated"}) {
		t.Errorf("phases %v", phases)
	}
}

// However it ends, it leaves no process: also when the workers are its
// grandchildren and one of them may be stopped just then.
func TestCompareCutShort(t *testing.T) {
	t.Parallel()
	for _, x := range []struct {
		name string
		sig  syscall.Signal
		code int
		says string
	}{
		{"INT", syscall.SIGINT, 1, "rrd: compare: interrupted\n"},
		{"TERM", syscall.SIGTERM, 1, "rrd: compare: interrupted\n"},
		{"KILL", syscall.SIGKILL, -1, ""}, // its masters notice
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			mark := "E2E_COMPARE=" + x.name
			cmd, stdout, stderr := startCompare(t, mark, "-w", "2", "--seconds", "600")
			// Where it is from then on when the signal comes does not matter.
			harness.Poll(t, "a worker", func() error { return hasWorkers(cmd.Process.Pid) })
			if err := cmd.Process.Signal(x.sig); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != x.code || stderr.String() != x.says || stdout.Len() > 0 {
				t.Errorf("code %d, stderr %q, stdout %q", code, stderr, stdout)
			}
			leakcheck.NoProcess(t, mark)
		})
	}
}

// hasWorkers returns an error as long as pid has no grandchild.
func hasWorkers(pid int) error {
	for child := range harness.Children(pid) {
		if len(harness.Children(child)) > 0 {
			return nil
		}
	}
	return errors.New("no grandchild")
}
