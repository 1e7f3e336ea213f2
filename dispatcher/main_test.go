package dispatcher

import (
	"os"
	"testing"
	"time"

	"rrd/test/leakcheck"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

// alone is the variable that makes the test binary run one of the parts in
// alone_test files, in a process of its own.
const envAlone = "DISPATCHER_TEST_ALONE"

// parts are what the test binary plays in a process of its own, by name.
var parts = map[string]func() error{}

func TestMain(m *testing.M) {
	if name := os.Getenv(envAlone); name != "" {
		if err := parts[name](); err != nil {
			_, _ = os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Exit(0)
	}
	leakcheck.Main(m)
}
