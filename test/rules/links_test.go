package rules

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// mostModules is how many modules besides its own rrd may link. Each one is code
// that runs with the master's rights, an upstream to follow and a licence to
// ship; raising the number is a decision, not a fix.
const mostModules = 20

// systems are where what a package links may differ.
var systems = []string{"linux", "darwin", "freebsd"}

func TestRrdLinksFewModules(t *testing.T) {
	for _, goos := range systems {
		modules := deps(t, goos, "{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}", "rrd/cmd/rrd")
		if len(modules) > mostModules {
			t.Errorf("on %s rrd links %d modules, at most %d are wanted:\n%s",
				goos, len(modules), mostModules, strings.Join(modules, "\n"))
		}
		t.Logf("%s: %d modules", goos, len(modules))
	}
}

// A program that becomes a worker imports rrd/worker, and gets no more than it
// needs for that.
func TestWorkerLinksLittle(t *testing.T) {
	unwanted := map[string]string{
		"rrd/worker/pool":       "a worker starts no workers",
		"rrd/dispatcher":        "a worker dispatches nothing",
		"rrd/metrics":           "how a worker is measured is its program's business",
		"github.com/prometheus": "how a worker is measured is its program's business",
		"github.com/rs/zerolog": "how a worker logs is its program's business",
		"github.com/spf13":      "a worker's flags are its program's business",
		"os/exec":               "a worker starts no processes",
	}
	for _, goos := range systems {
		for _, pkg := range deps(t, goos, "{{.ImportPath}}", "rrd/worker") {
			for prefix, why := range unwanted {
				if pkg == prefix || strings.HasPrefix(pkg, prefix+"/") {
					t.Errorf("on %s rrd/worker links %s: %s", goos, pkg, why)
				}
			}
		}
	}
}

// deps returns what go list prints for pkg and all it imports, each line once.
func deps(t *testing.T, goos, format, pkg string) []string {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-f", format, pkg)
	cmd.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list %s for %s: %v\n%s", pkg, goos, err, stderr.String())
	}
	lines := strings.Fields(string(out))
	slices.Sort(lines)
	return slices.Compact(lines)
}
