package aside

import (
	"testing"

	"rrd/test/leakcheck"
)

// N.B. With Arg as its argument this binary is a helper: see init.
func TestMain(m *testing.M) { leakcheck.Main(m) }
