//go:build unix && !linux

package main

import (
	"errors"

	"rrd/handoff"
)

var attacks = map[string]func(*worker) error{}

var errOnlyLinux = errors.New("this mode is for Linux")

func (w *worker) lockConnection(*handoff.Frame, handoff.FD) error { return errOnlyLinux }

func holdConnection() error { return errOnlyLinux }

func clearNonblock() error { return errOnlyLinux }
