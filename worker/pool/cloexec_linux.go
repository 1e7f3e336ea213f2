package pool

import (
	"math"

	"golang.org/x/sys/unix"
)

const fdDir = "/proc/self/fd"

func closeRangeCloexec() error {
	return unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
}
