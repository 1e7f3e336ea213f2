//go:build unix && !linux

package main

import "rrd/cmd/internal/control"

// processFacts are not to be had by reading files here.
func processFacts(int) (cpu *float64, rss *uint64, fds *int) { return nil, nil, nil }

func openDescriptors() ([]control.FD, error) {
	return nil, control.Errorf(control.CodeUnknown, "only on Linux: see fstat(1) or lsof(8)")
}
