//go:build darwin || freebsd

package dispatcher

import "rrd/handoff"

// The kernel does not tell here what was read: nothing is rescued.
func untouched(handoff.FD) bool { return false }

func touched(handoff.FD) bool { return false }

func doNotLinger(handoff.FD) {}

// A socket that does not block does not linger here (soclose).
func lingers(handoff.FD) bool { return false }
