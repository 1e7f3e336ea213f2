package worker

import (
	"fmt"
	"os"
	"testing"

	"rrd/test/leakcheck"
)

// roles are the parts that a re-executed test binary plays, by name.
var roles = map[string]func() error{}

const roleEnv = "WORKER_TEST_ROLE"

func TestMain(m *testing.M) {
	if role, ok := roles[os.Getenv(roleEnv)]; ok {
		if err := role(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	leakcheck.Main(m)
}
