//go:build unix && !linux

package main

import (
	"runtime"
	"syscall"
)

func kernelRelease() string {
	release, err := syscall.Sysctl("kern.osrelease")
	if err != nil {
		return runtime.GOOS
	}
	return runtime.GOOS + " " + release
}

// kernelFeatures are all of Linux.
func kernelFeatures() []feature {
	return []feature{{"pidfd", false}, {"close_range", false}, {"SO_PASSRIGHTS", false}}
}
