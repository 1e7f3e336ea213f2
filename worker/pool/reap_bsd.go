//go:build unix && !linux

package pool

// run does nothing here: outside of Linux containers a master is not PID 1.
func (r *reaper) run() { <-r.stopC }
