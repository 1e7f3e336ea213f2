//go:build unix

// Command faultworker is a worker that misbehaves as told, for the tests. It
// speaks the protocol by itself, through handoff.Port, because the worker library
// would not let it; in modes lib and tls it is an honest program of that library. In mode
// serve:keys it asks for the keys of TLS session tickets and tells them in the ledger.
//
//	faultworker [-listen NETWORK/ADDRESS] [-slots N,N] [-others MODE] [-gate FIFO]
//	            [-armed FILE] [-ledger FILE] [-seed N] MODE
//
// Only the slots named by -slots misbehave, the others are in mode -others; none
// named: all. With -armed they do so only while that file is there. Where a mode
// waits for a gate it does so until somebody opens the FIFO for writing. It answers
// like rrd's built-in worker.
//
// In the file of -ledger it writes a line before it reads the first byte of a
// connection: the client's address, its own pid, and the time in ns. So it is known
// afterwards what a process that was killed had begun.
package main

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"rrd/handoff"
)

type options struct {
	listen, slots, others, gate, armed, ledger string
	seed                                       uint64
	mode                                       string
}

func main() {
	var o options
	flag.StringVar(&o.listen, "listen", "tcp/127.0.0.1:0", "what to ask the master for")
	flag.StringVar(&o.slots, "slots", "", "the slots that misbehave")
	flag.StringVar(&o.others, "others", "serve", "the mode of the other slots")
	flag.StringVar(&o.gate, "gate", "", "the FIFO that ends the misbehaviour")
	flag.StringVar(&o.armed, "armed", "", "the file without which nobody misbehaves")
	flag.StringVar(&o.ledger, "ledger", "", "the file that tells what was begun")
	flag.Uint64Var(&o.seed, "seed", 1, "what mode chaos depends on")
	flag.Parse()
	o.mode = flag.Arg(0)
	if err := run(o); err != nil {
		fmt.Fprintf(os.Stderr, "faultworker: %v\n", err)
		os.Exit(1)
	}
}

func run(o options) error {
	slot := os.Getenv(handoff.EnvSlot)
	if o.slots != "" && !slices.Contains(strings.Split(o.slots, ","), slot) {
		o.mode = o.others
	}
	book, err := openLedger(o.ledger)
	if err != nil {
		return err
	}
	switch o.mode {
	case "lib", "health":
		return library(o, book)
	case "tls":
		return serveTLS(o)
	case "linger":
		return linger(o.gate)
	case "hold-connection":
		return holdConnection()
	case "clear-nonblock":
		return clearNonblock()
	case "crash":
		if exists(o.armed) {
			return errors.New("told to crash")
		}
		o.mode = "serve"
	case "mute":
		if exists(o.armed) {
			forever()
		}
		o.mode = "serve"
	}
	name, kind, _ := strings.Cut(o.mode, ":")
	decide, ok := modes[name]
	if !ok {
		return fmt.Errorf("mode %q: the modes are %v", o.mode, slices.Sorted(maps.Keys(modes)))
	}
	fd, err := strconv.Atoi(os.Getenv(handoff.EnvChannelFD))
	if err != nil {
		return fmt.Errorf("%s: %w", handoff.EnvChannelFD, err)
	}
	port, err := handoff.OpenPort(fd)
	if err != nil {
		return err
	}
	defer port.Close()
	network, address, _ := strings.Cut(o.listen, "/")
	w := newWorker(port, slot, decide)
	w.book, w.armedFile, w.kind, w.channel, w.gate = book, o.armed, kind, fd, o.gate
	if w.chance, err = chanceOf(o, slot); err != nil {
		return err
	}
	if o.gate != "" {
		if w.gateOpen, err = isOpen(o.gate); err != nil {
			return err
		}
		go w.waitAt(o.gate) // ends with the gate or the process
	}
	w.attack = attacks[name]
	if name == "hog" {
		go hog() // ends with the process
	}
	return w.converse(network, address)
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}
