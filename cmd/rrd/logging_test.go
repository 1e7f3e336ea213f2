//go:build unix

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/rs/zerolog"

	"rrd/metrics"
)

func TestLogJSON(t *testing.T) {
	var out bytes.Buffer
	var counter metrics.LogCounter
	log := newLogger(&out, false, nil, &config{LogFormat: "auto", LogLevel: zerolog.InfoLevel}, &counter)
	log.Debug().Msg("not shown")
	log.Warn().Str("event", "worker.exit").Int("worker", 2).Msg("worker exited")
	var got map[string]any
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v: %q", err, out.String())
	}
	if got["level"] != "warn" || got["message"] != "worker exited" || got["event"] != "worker.exit" {
		t.Errorf("%v", got)
	}
	if at, _ := got["time"].(string); !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$`).MatchString(at) {
		t.Errorf("time is %q", at)
	}
	if counter.Count("warn") != 1 || counter.Count("debug") != 0 || counter.Count("info") != 0 {
		t.Errorf("counted %d warnings, %d debug", counter.Count("warn"), counter.Count("debug"))
	}
}

// What comes from outside can forge neither a line nor a colour in any format.
func TestLogHostileText(t *testing.T) {
	const evil = "a\nlevel=fatal \x1b[31mred\r\u009b31m\x7f\u2028\u202eb\xff"
	for _, format := range []string{"json", "console"} {
		var out bytes.Buffer
		log := newLogger(&out, true, []string{"NO_COLOR=1"}, &config{LogFormat: format}, nil)
		log.Error().Str("line", evil).Bytes("raw", []byte(evil)).Strs("list", []string{evil}).AnErr("error", errors.New(evil)).Msg(evil)
		s := out.String()
		if strings.Count(s, "\n") != 1 || plain(strings.TrimSuffix(s, "\n")) != strings.TrimSuffix(s, "\n") || !utf8.ValidString(s) {
			t.Errorf("%s: %q", format, s)
		}
		var got map[string]any
		if want := strings.ToValidUTF8(evil, "\ufffd"); format == "json" && (json.Unmarshal(out.Bytes(), &got) != nil || got["line"] != want) {
			t.Errorf("the line reads %q, want %q", got["line"], want)
		}
	}
}

// The last words of a worker are not in the log, and cannot look as if they were.
func TestLastWords(t *testing.T) {
	var out bytes.Buffer
	printLastWords(&out, "one\n{\"event\":\"stop\"}\r\n\x1b[31m\u2028\n")
	if want := "rrd: the last words of that worker:\nrrd: | one\nrrd: | {\"event\":\"stop\"}\nrrd: | ?[31m?\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

func TestLogConsole(t *testing.T) {
	line := func(terminal bool, environ []string, format string) string {
		var out bytes.Buffer
		log := newLogger(&out, terminal, environ, &config{LogFormat: format}, nil)
		log.Info().Str("event", "ready").Msg("all workers are ready")
		return out.String()
	}
	const plain = `^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z INF all workers are ready event=ready\n$`
	for _, x := range []struct {
		terminal bool
		environ  []string
		format   string
		want     string
	}{
		{true, []string{"NO_COLOR=1"}, "auto", plain},
		{true, []string{"TERM=dumb"}, "auto", plain},
		{false, nil, "console", plain},
		{true, []string{"NO_COLOR="}, "auto", "\x1b\\["},
		{true, []string{"TERM=xterm"}, "auto", "\x1b\\["},
		{true, nil, "json", `^{`},
		{false, nil, "auto", `^{`},
	} {
		if got := line(x.terminal, x.environ, x.format); !regexp.MustCompile(x.want).MatchString(got) {
			t.Errorf("%+v: %q", x, got)
		}
	}
}

func TestLogWarnings(t *testing.T) {
	var out bytes.Buffer
	logWarnings(zerolog.New(&out), &config{Warnings: []string{"one", "two"}})
	if s := out.String(); strings.Count(s, `"event":"config.warning"`) != 2 || !strings.Contains(s, `"two"`) {
		t.Errorf("%s", s)
	}
}

func TestIsTerminal(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for _, f := range []*os.File{null, w} {
		if isTerminal(f) {
			t.Errorf("%s is no terminal", f.Name())
		}
	}
}
