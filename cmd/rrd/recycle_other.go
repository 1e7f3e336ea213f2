//go:build unix && !linux

package main

// residentMemory is told on Linux only; --max-rss is refused elsewhere.
func residentMemory(int) (uint64, bool) { return 0, false }
