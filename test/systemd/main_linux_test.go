package systemd

import (
	"testing"

	"rrd/test/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }
