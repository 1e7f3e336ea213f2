//go:build unix

package main

import (
	"context"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"rrd/handoff"
	program "rrd/worker"
)

// library is a program as a user would write it. In mode health its own check
// fails while the file of -armed has its pid as a name behind it.
func library(o options, book *ledger) error {
	var a answer
	a.slot, _ = strconv.Atoi(os.Getenv(handoff.EnvSlot))
	a.generation, _ = strconv.Atoi(os.Getenv(handoff.EnvGeneration))
	network, address, _ := strings.Cut(o.listen, "/")
	if o.mode == "health" {
		sick := o.armed + "." + strconv.Itoa(os.Getpid())
		err := program.SetHealth(func(context.Context) error {
			if exists(sick) {
				return errors.New("told to be unwell")
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	ln, err := program.Listen(network, address)
	if err != nil {
		return err
	}
	for n := uint64(1); ; n++ {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go serveOne(&a, book, c, n) // ends with its client, or with the process
	}
}

func serveOne(a *answer, book *ledger, c net.Conn, n uint64) {
	book.begin(c)
	a.serve(c, n)
}

// linger holds the channel, which it was started with, until the gate opens. It
// reads nothing.
func linger(gate string) error {
	f, err := os.Open(gate)
	if err != nil {
		return err
	}
	return f.Close()
}

// forever waits for the end of this process.
func forever() {
	for {
		time.Sleep(time.Hour)
	}
}
