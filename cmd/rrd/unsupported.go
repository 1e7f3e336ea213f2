//go:build !unix

package main

// Descriptors of live connections cannot be passed to another process here, so
// there is nothing to build. Every other file of this folder is constrained to
// unix, which leaves this name as the one error of the compiler.
func main() { rrd_runs_on_linux_darwin_and_freebsd_only() }
