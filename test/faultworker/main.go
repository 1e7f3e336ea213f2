//go:build unix

// Command faultworker is a worker that misbehaves as told, for the tests. It
// speaks the protocol by itself, through handoff.Port, because the worker library
// would not let it.
//
//	faultworker [-listen NETWORK/ADDRESS] [-slots N,N] [-gate FIFO] MODE
//
// Only the slots named by -slots misbehave, the others are in mode serve; none
// named: all. Where a mode waits for a gate it does so until somebody opens the
// FIFO for writing. It answers like rrd's built-in worker.
package main

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"rrd/handoff"
)

func main() {
	listen := flag.String("listen", "tcp/127.0.0.1:0", "what to ask the master for")
	slots := flag.String("slots", "", "the slots that misbehave")
	gate := flag.String("gate", "", "the FIFO that ends the misbehaviour")
	flag.Parse()
	if err := run(*listen, *slots, *gate, flag.Arg(0)); err != nil {
		fmt.Fprintf(os.Stderr, "faultworker: %v\n", err)
		os.Exit(1)
	}
}

func run(listen, slots, gate, mode string) error {
	slot := os.Getenv(handoff.EnvSlot)
	if slots != "" && !slices.Contains(strings.Split(slots, ","), slot) {
		mode = "serve"
	}
	decide, ok := modes[mode]
	if !ok {
		return fmt.Errorf("mode %q: the modes are %v", mode, slices.Sorted(maps.Keys(modes)))
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
	network, address, _ := strings.Cut(listen, "/")
	w := newWorker(port, slot, decide)
	if gate != "" {
		go w.waitAt(gate) // ends with the gate or the process
	}
	return w.converse(network, address)
}
