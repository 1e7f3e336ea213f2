package main

import (
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"rrd/test/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// measured runs the program and returns the rows of its tables that have so many cells.
func measured(t *testing.T, cells int, args ...string) (rows [][]string, out string) {
	t.Helper()
	var s strings.Builder
	if err := run(t.Context(), args, &s, io.Discard); err != nil {
		t.Fatal(err)
	}
	t.Log(s.String())
	for line := range strings.Lines(s.String()) {
		row := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(row) == cells && strings.ContainsAny(row[cells-1], "0123456789") {
			for i := range row {
				row[i] = strings.TrimSpace(row[i])
			}
			rows = append(rows, row)
		}
	}
	return rows, s.String()
}

func noneFailed(t *testing.T, rows [][]string) {
	t.Helper()
	for _, row := range rows {
		if row[len(row)-1] != "0" {
			t.Errorf("connections failed: %s", row)
		}
	}
}

// The short rounds here keep the programs in C compiling, the peers starting and
// every connection answered. Their figures mean nothing.

func TestMasters(t *testing.T) {
	rows, out := measured(t, 9, "-master", "-rounds=1", "-seconds=0.1", "-at=2x1,2x4", "-queue=256")
	noneFailed(t, rows)
	if len(rows) != 6 || !strings.Contains(out, "256 connections queued") {
		t.Errorf("%d rows of 6 in\n%s", len(rows), out)
	}
}

func TestScale(t *testing.T) {
	svg := filepath.Join(t.TempDir(), "scale.svg")
	rows, out := measured(t, 6, "-scale", "-rounds=1", "-seconds=0.1", "-at=2x1,8x1", "-queue=0,100", "-svg="+svg)
	noneFailed(t, rows)
	if len(rows) < 4 || !strings.Contains(out, "100 connections queued") || !strings.Contains(out, "8 workers to 2") {
		t.Errorf("%d rows in\n%s", len(rows), out)
	}
	isPicture(t, svg, "100/s")
}

func TestComparison(t *testing.T) {
	if testing.Short() {
		t.Skip("twenty seconds")
	}
	here := peersHere(t)
	svg := filepath.Join(t.TempDir(), "bench.svg")
	rows, out := measured(t, 12, "-rounds=1", "-seconds=0.1", "-bytes=1000000", "-sequential=40", "-at=2x4", "-svg="+svg, "-only="+strings.Join(here, ","))
	noneFailed(t, rows)
	want := 0
	for _, name := range here {
		want += map[string]int{"rr": 6 + 1, "haproxy": 6 + 1, "nginx": 6 + 1, "node": 2 * 2}[name] // with workers in C the peak only
		if name == "none" || name == "reuseport" {
			want += 6
		}
	}
	if len(rows) != want {
		t.Errorf("%d rows of %d in\n%s", len(rows), want, out)
	}
	for _, row := range rows {
		if strings.Contains(row[0], "one by one") && (row[2] == "rr" || row[2] == "HAProxy" || row[2] == "nginx") && row[9] != "0.00" {
			t.Errorf("%s did not give its workers as many: %s", row[2], row)
		}
	}
	isPicture(t, svg, "reuseport")
}

// peersHere leaves out what this machine lacks. In CI that is a failure, unless it is
// named in E2E_WITHOUT, as for the tests end to end.
func peersHere(t *testing.T) (here []string) {
	t.Helper()
	known := strings.Split(os.Getenv("E2E_WITHOUT"), ",")
	for _, name := range contestantNames {
		var err error
		switch name {
		case "haproxy", "node":
			_, err = tool(name)
		case "nginx":
			var path string
			if path, err = tool(name); err == nil {
				_, err = streamModule(path)
			}
		}
		if err == nil {
			here = append(here, name)
			continue
		}
		if os.Getenv("CI") == "true" && !slices.Contains(known, name) {
			t.Errorf("CI is without %s: %v; install it, or name it in E2E_WITHOUT", name, err)
		}
		t.Logf("left out: %v", err)
	}
	return here
}

func isPicture(t *testing.T, file, word string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), word) {
		t.Errorf("%q is not in the picture:\n%s", word, text)
	}
	wellFormed(t, string(text))
}

func wellFormed(t *testing.T, text string) {
	t.Helper()
	for d := xml.NewDecoder(strings.NewReader(text)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("%v in\n%s", err, text)
		}
	}
}

func TestPicture(t *testing.T) {
	p := picture{title: "a < b & c", about: "of \"today\"", panels: []panel{
		{"one", []bar{{"rr", true, spread{5, 4, 10}}, {"<none>", false, spread{2, 2, 2}}}},
		{"two", nil},
		{"three", []bar{{"nothing", false, spread{}}}},
	}}
	text := p.svg()
	wellFormed(t, text)
	for _, want := range []string{"<title id=\"title\">a &lt; b &amp; c</title>", "rr 5.00, &lt;none&gt; 2.00", "prefers-color-scheme", `class="ours"`, `class="theirs"`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "NaN") {
		t.Errorf("a figure is not a number in\n%s", text)
	}
}

func TestParse(t *testing.T) {
	p, err := parse([]string{"-only=nginx,rr", "-phases=long,peak"})
	if err != nil || !slices.Equal(p.only, []string{"rr", "nginx"}) || !slices.Equal(p.phases, []string{"peak", "long"}) || p.rounds != 16 {
		t.Errorf("%+v, %v", p, err)
	}
	p, err = parse([]string{"-scale", "-at=none", "-queue=1,2", "-rounds=3"})
	if err != nil || p.mode != scale || len(p.at) != 0 || !slices.Equal(p.queue, []int{1, 2}) || p.rounds != 3 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, line := range []string{
		"-at=4", "-at=0x1", "-at=4x2000", "-at=4x1,4x4", "-at=none", "-rounds=0", "-rounds=-1", "-seconds=0", "-clients=0", "-clients=9999",
		"-bytes=0", "-sequential=0", "-nope", "-only=apache", "-phases=slow,fast", "-phases=30", "word",
		"-queue=-1 -master", "-queue=40000 -scale", "-queue=5", "-also=x -scale", "-only=rr -node", "-svg=x -master", "-scale -master",
	} {
		args := strings.Fields(line)
		if p, err := parse(args); err == nil || !strings.Contains(err.Error(), strings.SplitN(args[0], "=", 2)[0]) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %+v, %v", line, p, err)
		}
	}
}

func TestSpread(t *testing.T) {
	if s := spreadOf([]float64{3, 1, 2, 10}); s.text(1) != "2.5 (1.0–10.0)" || s.significant() != "2.50 (1.00–10.0)" {
		t.Error(s.text(1), s.significant())
	}
	if s := ratios([]float64{2, 9}, []float64{1, 3}); s != "2.50 (2.00–3.00)" {
		t.Error(s)
	}
	// From tables of the interval of a median.
	for n, want := range map[int]int{1: 0, 5: 0, 6: 0, 8: 0, 9: 1, 16: 3, 32: 9, 100: 39} {
		if k := outside(n); k != want {
			t.Errorf("%d of %d rounds are outside, want %d", k, n, want)
		}
	}
	for v, want := range map[float64]string{0: "0.00", 9.999: "10.00", 12.34: "12.3", 123.4: "123", 1234567: "1,234,567"} {
		if s := significant(v); s != want {
			t.Errorf("%v: %s, want %s", v, s, want)
		}
	}
}

// cIndex is client.c's bucket, written anew.
func cIndex(us int) int {
	shift := 0
	for us>>shift >= 2<<precision {
		shift++
	}
	return shift<<precision + us>>shift
}

func TestBucketsAreNarrow(t *testing.T) {
	for us := 1; us < 1<<30; us += us/50 + 1 {
		if mid := microseconds(cIndex(us)); math.Abs(mid-float64(us)) > 0.005*float64(us) {
			t.Fatalf("%d us is taken for %v", us, mid)
		}
	}
}

func TestPercentiles(t *testing.T) {
	a, b := make(histogram), make(histogram)
	for us := 1; us <= 1000; us++ {
		if us%2 == 0 {
			a[cIndex(us)]++
		} else {
			b[cIndex(us)]++
		}
	}
	a.merge(b)
	for p, want := range map[float64]float64{0.5: 0.5, 0.99: 0.99, 0.999: 0.999, 1: 1} {
		if got := a.percentile(p); math.Abs(got-want) > 0.005*want {
			t.Errorf("%v: %v, want %v", p, got, want)
		}
	}
	if got := make(histogram).percentile(0.5); !math.IsNaN(got) {
		t.Errorf("of nothing: %v", got)
	}
}

func TestParseResult(t *testing.T) {
	r, err := parseResult("us 2000000\nanswered 3\nin_time 2\nbytes 9\nrefused 0\nreset 1\nempty 0\nwrong 0\ntimeout 2\nserved 7 2\nserved 8 1\nbucket 100 3\n")
	if err != nil || r.answered != 3 || r.failed != 3 || r.failures["timeout"] != 2 || r.served[7] != 2 || r.times[100] != 3 || r.p99 != 0.1 {
		t.Errorf("%+v, %v", r, err)
	}
	if open, closed := (load{rate: 1, duration: 1e9}).rateOf(r), (load{}).rateOf(r); open != 2 || closed != 1.5 {
		t.Errorf("%v, %v", open, closed)
	}
	for _, bad := range []string{"", "us x", "us 1 2 3", "gone 5\nus 1"} {
		if _, err := parseResult(bad); err == nil {
			t.Errorf("%q is a result", bad)
		}
	}
}

func TestUneven(t *testing.T) {
	for _, c := range []struct {
		served  map[int]int
		workers []int
		want    float64
	}{
		{map[int]int{1: 5, 2: 5}, []int{1, 2}, 0},
		{map[int]int{1: 5}, []int{1, 2}, 200},
		{map[int]int{1: 6, 2: 4}, []int{2, 1}, 40},
		{nil, []int{1}, 0},
	} {
		if got, err := uneven(c.served, c.workers); got != c.want || err != nil {
			t.Errorf("%v: %v, %v", c, got, err)
		}
	}
	if _, err := uneven(map[int]int{9: 1}, []int{1}); err == nil {
		t.Error("a stranger may answer")
	}
}

func TestProxyConfigurations(t *testing.T) {
	workers := []string{"127.0.0.1:1", "127.0.0.1:2"}
	for name, c := range map[string]struct {
		text string
		want []string
	}{
		"haproxy":                {haproxyConfig("127.0.0.1:9", workers), []string{"nbthread 1\n", "mode tcp\n", "bind 127.0.0.1:9 ", "balance roundrobin\n", "server worker1 127.0.0.1:2\n"}},
		"nginx":                  {nginxConfig("/d", "/m.so", "127.0.0.1:9", workers), []string{"load_module /m.so;\n", "worker_processes 1;\n", "pid /d/nginx.pid;\n", "listen 127.0.0.1:9 ", "server 127.0.0.1:2 "}},
		"nginx, stream built in": {nginxConfig("/d", "", "127.0.0.1:9", workers), []string{"daemon off;\n"}},
	} {
		for _, want := range c.want {
			if !strings.Contains(c.text, want) {
				t.Errorf("%s: no %q in\n%s", name, want, c.text)
			}
		}
		if name == "nginx, stream built in" && strings.Contains(c.text, "load_module") {
			t.Errorf("%s:\n%s", name, c.text)
		}
	}
}

func TestStreamModule(t *testing.T) {
	for version, want := range map[string]string{
		"configure arguments: --with-stream --with-x":                             "",
		"configure arguments: --with-x --with-stream\n":                           "",
		"configure arguments: --modules-path=/usr/lib/m --with-stream=dynamic -x": "/usr/lib/m/ngx_stream_module.so",
		"configure arguments: --with-stream_ssl_module":                           "modules/ngx_stream_module.so",
	} {
		if built, path := streamIn(version); path != want || built != (want == "") {
			t.Errorf("%s: %v, %q", version, built, path)
		}
	}
}

func TestVersion(t *testing.T) {
	for said, want := range map[string]string{
		"HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/\n": "x 2.6.12", "nginx version: nginx/1.22.1": "x 1.22.1", "v20.20.2": "x 20.20.2",
	} {
		if v := version("x", said); v != want {
			t.Errorf("%q: %q", said, v)
		}
	}
}

// tableOf is the printed comparison of made-up rounds.
func tableOf(t *testing.T) string {
	t.Helper()
	g := newGroup(inGo, setting{4, 4}, kind{name: "rr"}, kind{name: "none"})
	turn := func(perSecond, us float64) result {
		return result{rate: perSecond, cpu: us, workerCPU: 50, p50: 1, p99: 2, times: histogram{1000: 600}, failures: map[string]int{}}
	}
	g.contestants[0].turns["peak"] = []result{turn(800, 10), turn(900, 12)}
	g.contestants[1].turns["peak"] = []result{turn(1000, 0.01), turn(1000, 0.02)}
	g.contestants[1].turns["peak"][0].failed = 2
	g.contestants[1].turns["peak"][0].failures["reset"] = 2
	p, err := parse([]string{"-phases=peak", "-only=rr,none"})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := (&bench{plan: p, groups: []*group{g}}).printComparison(&out, "here"); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestTable(t *testing.T) {
	out := tableOf(t)
	for _, want := range []string{
		"| closed, 64 clients | net/http | rr | 850 (800–900) | 1.00 | 2.00 | 14.9 | 11.0 (10.0–12.0) | 50.0 | – | 0.0 | 0 |\n",
		"| net/http | none | 1,000 | 1.00 | 2.00 | 14.9 | 0.01 (0.01–0.02) | 50.0 | – | 0.0 | 2, 2 reset |\n",
		"| rr to none, net/http | 0.85 (0.80–0.90) | – | 1.22 (1.20–1.24) |",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}
