//go:build unix && !linux

package main

import (
	"errors"
	"os"

	"rrd/handoff"
)

var errNoUpgrade = errors.New("this system cannot replace a running rrd: stop it and start the new one")

func canUpgrade() error { return errNoUpgrade }

func openImage() (handoff.FD, error) { return handoff.FD{}, errNoUpgrade }

func stateFile(*savedMaster) (*os.File, error) { return nil, errNoUpgrade }

func readState(int) (*savedMaster, error) { return nil, errNoUpgrade }

func execImage(string, []string, []string, *os.File, *savedMaster, string) error { return errNoUpgrade }

func execBack(int, int, []string, []string, *savedMaster, error) error { return errNoUpgrade }

func duplicate(handoff.FD, string) (*os.File, error) { return nil, errNoUpgrade }
