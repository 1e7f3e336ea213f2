//go:build unix

package main

import (
	"os"

	"golang.org/x/sys/unix"
)

// isTerminal says whether a person sees what is written to f.
func isTerminal(f *os.File) bool {
	columns, rows := windowSize(f)
	return columns > 0 || rows > 0
}

// windowSize is 0 by 0 for what is no terminal.
func windowSize(f *os.File) (columns, rows int) {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	// A serial line that does not know its size (0 by 0) is taken for the usual one.
	if size.Col == 0 || size.Row == 0 {
		return 80, 24
	}
	return int(size.Col), int(size.Row)
}
