//go:build unix

package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"

	"rrd/metrics"
)

// version is set by the release build: -ldflags "-X main.version=1.2.3".
var version string

// buildInfo says what this program was built from, as far as the build said.
func buildInfo() metrics.Build {
	b := metrics.Build{Version: version}
	info, ok := debug.ReadBuildInfo()
	if ok {
		for _, s := range info.Settings {
			switch {
			case s.Key == "vcs.revision":
				b.Revision = s.Value
			case s.Key == "vcs.modified" && s.Value == "true":
				b.Revision += "-modified"
			case s.Key == "-tags":
				b.Tags = s.Value
			}
		}
		if b.Version == "" && info.Main.Version != "(devel)" {
			b.Version = info.Main.Version
		}
	}
	if b.Version == "" {
		b.Version = "devel"
	}
	return b
}

// feature is something that rrd does better where the kernel has it.
type feature struct {
	name  string
	found bool
}

// writeVersion is --version.
func writeVersion(w io.Writer) error {
	b := buildInfo()
	commit := b.Revision
	if commit == "" {
		commit = "unknown"
	}
	var found []string
	for _, f := range kernelFeatures() {
		yes := "no"
		if f.found {
			yes = "yes"
		}
		found = append(found, f.name+" "+yes)
	}
	_, err := fmt.Fprintf(w, "rrd %s\ncommit: %s\ngo: %s %s/%s\nkernel: %s\nfeatures: %s\n",
		b.Version, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH, kernelRelease(), strings.Join(found, ", "))
	return err
}
