package dispatcher

import (
	"testing"
	"time"

	"rrd/test/leakcheck"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

func TestMain(m *testing.M) { leakcheck.Main(m) }
