package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"rrd/test/leakcheck"
)

// RaceEnv, if set to 1, builds rrd and its workers with the race detector.
const RaceEnv = "E2E_RACE"

// binaries holds what was built, for all tests of the process.
var binaries struct {
	mu    sync.Mutex
	dir   string
	built map[string]built
}

type built struct {
	path string
	err  error
}

// Main is for TestMain: it runs the tests, checks that this process is left with
// no descriptor, goroutine or child, and removes what was built.
func Main(m *testing.M) {
	leakcheck.Main(m, cleanBinaries)
}

func cleanBinaries() {
	binaries.mu.Lock()
	defer binaries.mu.Unlock()
	if binaries.dir != "" {
		_ = os.RemoveAll(binaries.dir)
	}
}

// RRD returns the path of the built master.
func RRD(t testing.TB) string { t.Helper(); return Build(t, "", "rrd/cmd/rrd") }

// Build builds a main package, once in a process, and returns the program's path.
// dir is the folder of the package's module, empty for rrd's own.
func Build(t testing.TB, dir, pkg string) string {
	t.Helper()
	binaries.mu.Lock()
	defer binaries.mu.Unlock()
	key := dir + "|" + pkg
	b, ok := binaries.built[key]
	if !ok {
		b = build(dir, pkg)
		if binaries.built == nil {
			binaries.built = make(map[string]built)
		}
		binaries.built[key] = b
	}
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.path
}

func build(dir, pkg string) built {
	if binaries.dir == "" {
		d, err := os.MkdirTemp("", "rrd-e2e-")
		if err != nil {
			return built{err: err}
		}
		// Workers with another identity execute what is in it.
		if err := os.Chmod(d, 0o755); err != nil { //nolint:gosec // programs, no secrets
			return built{err: err}
		}
		binaries.dir = d
	}
	out := filepath.Join(binaries.dir, strconv.Itoa(len(binaries.built))+"-"+filepath.Base(pkg))
	args := []string{"build", "-o", out}
	if os.Getenv(RaceEnv) == "1" {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, pkg)...)
	cmd.Dir = dir
	if text, err := cmd.CombinedOutput(); err != nil {
		return built{err: fmt.Errorf("build %s: %w\n%s", pkg, err, text)}
	}
	return built{path: out}
}

// Soak is how long the long form of a test runs: what SOAK says, or short.
func Soak(t testing.TB, short time.Duration) time.Duration {
	t.Helper()
	v := strings.TrimSpace(os.Getenv("SOAK"))
	if v == "" {
		return short
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		t.Fatalf("SOAK=%s: %v", v, err)
	}
	return d
}
