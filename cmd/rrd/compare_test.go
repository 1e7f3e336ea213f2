//go:build unix

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spf13/pflag"
)

func TestCompareFlags(t *testing.T) {
	for _, x := range []struct {
		args string
		want compareConfig
	}{
		{"", compareConfig{workers: 4, rate: 1000, duration: 10 * time.Second}},
		{"-w 2 --seconds 4 --rate 1 -o json", compareConfig{workers: 2, rate: 1, duration: 4 * time.Second, json: true}},
		{"--workers=64 --seconds=4.5 --rate=100000 --output=text", compareConfig{workers: 64, rate: 100_000, duration: 4500 * time.Millisecond}},
		{"--seconds 1m", compareConfig{workers: 4, rate: 1000, duration: time.Minute}},
		{"--seconds 600", compareConfig{workers: 4, rate: 1000, duration: 10 * time.Minute}},
		{"--workers none --help", compareConfig{help: true}},
	} {
		c, err := parseCompareFlags(words(x.args))
		if err != nil || *c != x.want {
			t.Errorf("%s: %+v %v, want %+v", x.args, c, err, x.want)
		}
	}
}

func TestCompareMistakes(t *testing.T) {
	for args, want := range map[string]string{
		"again":           `"again" is no flag: see rrd compare --help`,
		"-- app":          `compare measures with the built-in worker: leave -- and what follows it away`,
		"--":              `compare measures with the built-in worker: leave -- and what follows it away`,
		"--wrkers 3":      `--wrkers: there is no such flag (did you mean --workers?): see rrd compare --help`,
		"--policy rr":     `--policy: there is no such flag: see rrd compare --help`,
		"-x":              `-x: there is no such flag (in "-x"): see rrd compare --help`,
		"--rate":          `--rate: there is no value: write --rate=VALUE`,
		"-w 1":            `--workers: "1" is not a number from 2 to 64 (from flag)`,
		"-w auto":         `--workers: "auto" is not a number from 2 to 64 (from flag)`,
		"--rate 0":        `--rate: "0" is not a number from 1 to 100000 (from flag)`,
		"-o xml":          `--output: "xml" is not one of text, json (from flag)`,
		"--seconds 3":     `--seconds: "3" is not a number of seconds from 4 to 600 (from flag)`,
		"--seconds 601":   `--seconds: "601" is not a number of seconds from 4 to 600 (from flag)`,
		"--seconds 1e300": `--seconds: "1e300" is not a number of seconds from 4 to 600 (from flag)`,
		"--seconds NaN":   `--seconds: "NaN" is not a number of seconds from 4 to 600 (from flag)`,
		"--seconds -4":    `--seconds: "-4" is not a number of seconds from 4 to 600 (from flag)`,
		"--seconds soon":  `--seconds: "soon" is not a number of seconds from 4 to 600 (from flag)`,
	} {
		if _, err := parseCompareFlags(words(args)); err == nil || err.Error() != want {
			t.Errorf("%s:\n got %v\nwant %s", args, err, want)
		}
	}
}

func TestCompareHelp(t *testing.T) {
	lines := strings.Split(compareHelp, "\n")
	if len(lines) > 50 {
		t.Errorf("%d lines", len(lines))
	}
	for _, l := range lines {
		if utf8.RuneCountInString(l) > 80 || strings.Contains(l, "\t") {
			t.Errorf("too wide: %s", l)
		}
	}
	newCompareFlagSet().VisitAll(func(f *pflag.Flag) {
		if !strings.Contains(compareHelp, "--"+f.Name+" ") {
			t.Errorf("--%s is not in the help text", f.Name)
		}
		if f.DefValue != "false" && !regexp.MustCompile(`--`+f.Name+` [^-]*\(`+f.DefValue+`\)`).MatchString(compareHelp) {
			t.Errorf("the default %q of --%s is not in the help text", f.DefValue, f.Name)
		}
		if !strings.Contains(compareSection(t), "`--"+f.Name) && f.Name != "help" {
			t.Errorf("--%s is not in docs/operation.md, rrd compare", f.Name)
		}
	})
}

// compareSection is what docs/operation.md says about it.
func compareSection(t *testing.T) string {
	t.Helper()
	_, section, ok := strings.Cut(document(t, "docs/operation.md"), "\n## rrd compare\n")
	if !ok {
		t.Fatal("docs/operation.md has no section rrd compare")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	return section
}

// The word is one only in the first place, and its mistakes have the exit code of
// all others.
func TestCompareIsTheFirstWord(t *testing.T) {
	run := func(args ...string) (code int, stdout, stderr string) {
		t.Helper()
		var text [2]string
		var files [2]*os.File
		for i := range files {
			f, err := os.Create(filepath.Join(t.TempDir(), "output"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			files[i] = f
		}
		code = start(args, nil, files[0], files[1])
		for i := range files {
			b, err := os.ReadFile(files[i].Name())
			if err != nil {
				t.Fatal(err)
			}
			text[i] = string(b)
		}
		return code, text[0], text[1]
	}
	if code, out, _ := run("compare", "--help"); code != exitOK || out != compareHelp {
		t.Errorf("help: %d %s", code, out)
	}
	for _, args := range []string{"compare again", "compare --rate x", "-w 2 compare", "compares"} {
		if code, out, problem := run(words(args)...); code != exitUsage || out != "" || !strings.HasPrefix(problem, "rrd: ") || strings.Count(problem, "\n") != 1 {
			t.Errorf("%s: %d %q %q", args, code, out, problem)
		}
	}
}

func TestPlainEnviron(t *testing.T) {
	got := plainEnviron([]string{"A=1", "RRD_POLICY=none", "RRD_SLOT=1", "LISTEN_FDS=1", "LISTEN_PID=1", "LISTEN_FDNAMES=x",
		"NOTIFY_SOCKET=/x", "WATCHDOG_USEC=1", "WATCHDOG_PID=1", "NODE_CLUSTER_SCHED_POLICY=none", "B=2"})
	if strings.Join(got, " ") != "A=1 B=2" {
		t.Errorf("%q", got)
	}
}

// What is wanted of a master's log.
func TestComparedMasterNotes(t *testing.T) {
	m := &comparedMaster{pids: map[int]int{}, ready: make(chan struct{})}
	for _, line := range []string{
		`{"event":"listener.open","address":"127.0.0.1:1"}`,
		`{"event":"listener.open","address":"127.0.0.1:2"}`,
		`{"event":"worker.ready","worker":0,"worker_pid":10}`,
		`{"event":"worker.ready","worker":1,"worker_pid":11}`,
		`{"event":"ready","workers":2}`,
		`{"event":"worker.exit","worker":1}`,
		"rrd: --listen: no such luck\n",
		"rrd: | not its own words\n",
		"a worker's own words\n",
		"",
	} {
		m.note([]byte(line))
	}
	select {
	case <-m.ready:
	default:
		t.Error("not ready")
	}
	if m.address != "127.0.0.1:1" || m.working != 2 || m.pid(0) != 10 || m.pid(1) != 0 {
		t.Errorf("%+v", m)
	}
	if err := m.failure(); err == nil || err.Error() != "--listen: no such luck" {
		t.Errorf("%v", err)
	}
}
