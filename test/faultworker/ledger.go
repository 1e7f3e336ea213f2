//go:build unix

package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"time"
)

// ledger is a file that all workers of a master append to, a line in one write, so
// that a line is there or not, however its writer ends.
type ledger struct{ f *os.File }

func openLedger(path string) (*ledger, error) {
	if path == "" {
		return &ledger{}, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o666)
	return &ledger{f}, err
}

// begin comes before the first byte of c is read, and before the master hears that
// it is.
func (l *ledger) begin(c net.Conn) {
	if l.f != nil {
		_, _ = fmt.Fprintf(l.f, "%s %d %d\n", c.RemoteAddr(), os.Getpid(), time.Now().UnixNano())
	}
}

// note tells the test something else, as a line that begins with #.
func (l *ledger) note(what string, n int) {
	if l.f != nil {
		_, _ = fmt.Fprintf(l.f, "# %s %d\n", what, n)
	}
}

// keys tells the test the keys that came.
func (l *ledger) keys(b []byte) {
	if l.f != nil {
		_, _ = fmt.Fprintf(l.f, "# keys %x\n", b)
	}
}

// chanceOf depends on the seed, the slot, and how many processes the slot has had,
// which the length of a file beside the ledger tells.
func chanceOf(o options, slot string) (*rand.Rand, error) {
	n, _ := strconv.ParseUint(slot, 10, 32)
	var starts uint64
	if o.ledger != "" {
		f, err := os.OpenFile(o.ledger+"."+slot, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o666)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if _, err := f.Write([]byte{'.'}); err != nil {
			return nil, err
		}
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		starts = uint64(info.Size())
	}
	return rand.New(rand.NewPCG(o.seed, n<<32|starts)), nil
}
