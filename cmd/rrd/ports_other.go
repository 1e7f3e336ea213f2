//go:build unix && !linux

package main

import "rrd/dispatcher"

// keptPorts needs /proc.
func keptPorts([]dispatcher.Port) error { return nil }
