//go:build linux

// Command badimage takes the place of rrd's program in tests of the upgrade in place.
// What it does is in the file beside it, its name with ".mode" behind:
//
//	exit      ends at once
//	nonsense  says something else than rrd in the check run
//	hang      does not end
package main

import (
	"fmt"
	"os"
	"strings"
	"time"
)

func main() {
	self, err := os.Executable()
	if err != nil {
		fatal(err)
	}
	mode, err := os.ReadFile(self + ".mode")
	if err != nil {
		fatal(err)
	}
	switch strings.TrimSpace(string(mode)) {
	case "exit":
		os.Exit(7)
	case "nonsense":
		fmt.Println("hello")
		return
	case "hang":
		time.Sleep(time.Hour)
	}
	fatal(fmt.Errorf("no mode %q", mode))
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "badimage:", err)
	os.Exit(1)
}
