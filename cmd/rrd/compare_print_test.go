//go:build unix

package main

import (
	"encoding/json"
	"errors"
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var updateCompare = flag.Bool("update", false, "write the golden files")

// sampleReport is a report of round figures.
func sampleReport(workers int) *compareReport {
	r := newCompareReport(&compareConfig{workers: workers, rate: 1000, duration: 10 * time.Second},
		[]leftOut{{"reuseport", "--listen: it has no such option"}})
	r.Version, r.Kernel, r.CPUs, r.Rounds = "1.2.3", "Linux 6.1.0", 8, 2
	r.Began = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	masters := []*comparedMaster{{policy: "none"}, {policy: "rr"}}
	for i, p := range comparePhases {
		uneven, even := newTally(workers), newTally(workers)
		for _, t := range []*tally{uneven, even} {
			t.seconds = 0.5
			for n := range 600 * (i + 1) {
				t.add(n%workers, time.Duration(n+1)*10*time.Microsecond, n%3 > 0, nil)
			}
		}
		for n := range 400 * i {
			uneven.add(n*n%7%workers, 150*time.Millisecond, true, nil)
		}
		if i == 2 {
			even.add(0, 0, true, errors.New("dial tcp4 127.0.0.1:1: connect: connection refused"))
		}
		r.add(p, masters, []*tally{uneven, even})
	}
	return r
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/compare/" + name
	if *updateCompare {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (-update writes it anew):\n%s", name, got)
	}
}

func TestCompareText(t *testing.T) {
	for _, x := range []struct {
		name    string
		workers int
		screen  screen
	}{
		{"plain.txt", 4, plainScreen},
		{"blocks_100.txt", 4, screen{columns: 100, blocks: true}},
		{"narrow_40.txt", 4, screen{columns: 40, blocks: true}},
		{"many_workers.txt", 40, plainScreen},
	} {
		var b strings.Builder
		if err := sampleReport(x.workers).writeText(&b, x.screen); err != nil {
			t.Fatal(err)
		}
		golden(t, x.name, b.String())
		for line := range strings.Lines(b.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > max(x.screen.columns, 80) {
				t.Errorf("%s: %d columns: %s", x.name, n, line)
			}
		}
		bars, _, _ := strings.Cut(b.String(), "connections  ")
		for line := range strings.Lines(bars) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > x.screen.columns && regexp.MustCompile(`^ +\d+ `).MatchString(line) {
				t.Errorf("%s: %d columns: %s", x.name, n, line)
			}
		}
	}
}

func TestCompareJSON(t *testing.T) {
	var b strings.Builder
	if err := sampleReport(2).writeJSON(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.json", b.String())
	for _, name := range regexp.MustCompile(`"([a-z0-9_]+)":`).FindAllStringSubmatch(b.String(), -1) {
		if !strings.Contains(compareSection(t), "`"+name[1]+"`") {
			t.Errorf("the field %q is not in docs/operation.md", name[1])
		}
	}
	r := newCompareReport(&compareConfig{}, nil)
	text, err := json.Marshal(r)
	if err != nil || !strings.Contains(string(text), `"left_out":[]`) {
		t.Errorf("%s %v", text, err)
	}
}

// A rate that is no modest one is spoken of, with one that is.
func TestCompareSpeaksOfTheRate(t *testing.T) {
	r := sampleReport(2)
	for rate, want := range map[int]string{100: "", r.Rate: "", 1_000_000: "Try --rate 240."} {
		r.Rate = rate
		notes := strings.Join(r.notes(), "\n")
		if got := strings.Contains(notes, "Try --rate"); got != (want != "") || !strings.Contains(notes, want) {
			t.Errorf("%d: %s", rate, notes)
		}
	}
}

func TestBar(t *testing.T) {
	blocks, plain := screen{blocks: true}, screen{}
	for _, x := range []struct {
		s                screen
		n, most, columns int
		want             string
	}{
		{plain, 0, 10, 10, ""}, {plain, 1, 1000, 10, "#"}, {plain, 5, 10, 10, "#####"}, {plain, 10, 10, 10, "##########"},
		{plain, 5, 10, 0, ""}, {plain, 5, 0, 10, ""},
		{blocks, 0, 10, 10, ""}, {blocks, 1, 1000, 10, "▏"}, {blocks, 5, 10, 3, "█▌"}, {blocks, 10, 10, 3, "███"}, {blocks, 7, 8, 1, "▉"},
	} {
		if got := x.s.bar(x.n, x.most, x.columns); got != x.want {
			t.Errorf("%d of %d in %d: %q, want %q", x.n, x.most, x.columns, got, x.want)
		}
	}
}

func TestMilliseconds(t *testing.T) {
	for seconds, want := range map[float64]string{0: "0.00", 0.000123: "0.12", 0.00999: "9.99", 0.009999: "10.0", 0.0456: "45.6", 0.09999: "100", 1.2345: "1234"} {
		if got := milliseconds(seconds); got != want {
			t.Errorf("%v: %s, want %s", seconds, got, want)
		}
	}
}

func TestWantsUTF8(t *testing.T) {
	for environ, want := range map[string]bool{
		"": false, "LANG=C": false, "LANG=de_DE.UTF-8": true, "LANG=C.utf8": true,
		"LANG=C.UTF-8 LC_ALL=C": false, "LANG=C LC_CTYPE=C.UTF-8": true, "LC_ALL= LANG=C.UTF-8": true,
	} {
		if got := wantsUTF8(strings.Fields(environ)); got != want {
			t.Errorf("%s: %v", environ, got)
		}
	}
}

func TestWriteWrapped(t *testing.T) {
	var b strings.Builder
	writeWrapped(&b, "one two three four", 9)
	if want := "one two\n  three\n  four\n"; b.String() != want {
		t.Errorf("%q", b.String())
	}
}

// A file is no terminal, whatever the locale.
func TestScreenOfAFile(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/output")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := screenOf(f, []string{"LANG=C.UTF-8"}); got != plainScreen {
		t.Errorf("%+v", got)
	}
}
