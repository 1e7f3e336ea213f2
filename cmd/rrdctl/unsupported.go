//go:build !unix

package main

// See cmd/rrd: where rrd does not run there is nothing to control.
func main() { rrdctl_runs_on_linux_darwin_and_freebsd_only() }
