//go:build unix

package handoff

import (
	"time"

	"golang.org/x/sys/unix"
)

// Monotonic returns CLOCK_MONOTONIC. That clock goes on across exec(2), so a program can
// tell by it how long ago the one before it wrote a state. It is 0 if it cannot be read.
func Monotonic() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0
	}
	return time.Duration(now.Nano())
}

// SinceSaved returns how long ago Monotonic was at, from 0 to a day. A state without a time
// counts as written now.
func SinceSaved(at time.Duration) time.Duration {
	now := Monotonic()
	if at <= 0 || now <= at {
		return 0
	}
	return min(now-at, 24*time.Hour)
}
