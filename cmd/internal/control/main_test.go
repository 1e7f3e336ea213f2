//go:build unix

package control

import (
	"os"
	"testing"

	"rrd/test/leakcheck"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("CONTROL_TEST_LISTEN"); path != "" {
		os.Exit(listenAsAnother(path))
	}
	leakcheck.Main(m)
}
