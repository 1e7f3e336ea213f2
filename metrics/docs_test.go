package metrics

import (
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// family is what docs/metrics.md and the registry both say of a family.
type family struct{ Type, Labels string }

// documentedFamilies reads the rows of docs/metrics.md that begin with a family.
func documentedFamilies(t *testing.T) (found map[string]family, text string) {
	t.Helper()
	b, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	found, text = map[string]family{}, string(b)
	row := regexp.MustCompile("(?m)^\\| `(rrd_[a-z_]+)` \\| ([a-z]+) \\|([^|]*)\\|([^|]*)\\|$")
	for _, m := range row.FindAllStringSubmatch(text, -1) {
		if _, twice := found[m[1]]; twice {
			t.Errorf("%s has two rows", m[1])
		}
		labels := strings.Fields(strings.ReplaceAll(m[3], ",", " "))
		slices.Sort(labels)
		found[m[1]] = family{m[2], strings.Join(labels, " ")}
	}
	return found, text
}

// The document and a scrape with everything in it agree on name, type and labels.
func TestDocumentedFamilies(t *testing.T) {
	documented, _ := documentedFamilies(t)
	e := New(Config{Source: fixed(fullSnapshot()), Logs: &LogCounter{}})
	families, err := e.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	gathered := map[string]family{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "rrd_") {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		gathered[f.GetName()] = family{strings.ToLower(f.GetType().String()), strings.Join(labels, " ")}
	}
	// Histograms of which the snapshot has no observations are not in a scrape.
	for _, d := range descs {
		name := regexp.MustCompile(`fqName: "([^"]*)"`).FindStringSubmatch(d.String())[1]
		if _, ok := gathered[name]; !ok {
			gathered[name] = family{"histogram", ""}
		}
	}
	if runtime.GOOS != "linux" { // other systems tell less of a process
		for name := range documented {
			if _, ok := gathered[name]; !ok && strings.HasPrefix(name, "rrd_worker_process_") {
				delete(documented, name)
			}
		}
	}
	if diff := cmp.Diff(gathered, documented); diff != "" {
		t.Errorf("docs/metrics.md (+) against the registry (-):\n%s", diff)
	}
}

// Every reason, cause and state that is exposed from the start is named.
func TestDocumentedReasons(t *testing.T) {
	_, text := documentedFamilies(t)
	for _, names := range [][]string{
		DropReasons, AcceptErrorReasons, PauseReasons, RejectReasons, RedispatchReasons,
		StartReasons, ExitCauses, WorkerStates, LogLevels,
	} {
		for _, name := range names {
			if !strings.Contains(text, "`"+name+"`") {
				t.Errorf("%q is not in docs/metrics.md", name)
			}
		}
	}
}

// What the questions ask for exists.
func TestDocumentedQueries(t *testing.T) {
	documented, text := documentedFamilies(t)
	_, queries, ok := strings.Cut(text, "\n## Questions to ask\n")
	if !ok {
		t.Fatal("no questions")
	}
	for _, name := range regexp.MustCompile(`\brrd_[a-z_]+`).FindAllString(queries, -1) {
		if _, ok := documented[strings.TrimSuffix(name, "_bucket")]; !ok {
			t.Errorf("%s is asked for and no family", name)
		}
	}
}
