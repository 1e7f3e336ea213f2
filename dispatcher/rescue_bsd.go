//go:build darwin || freebsd

package dispatcher

import "rrd/handoff"

// A socket that does not block does not linger here (soclose).
func lingers(handoff.FD) bool { return false }
