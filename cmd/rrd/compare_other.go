//go:build unix && !linux

package main

import (
	"os"
	"syscall"
	"time"
)

// comparedAttr puts a master into a process group of its own.
func comparedAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// columnsOf is the width of a terminal, 0 if that is unknown.
func columnsOf(*os.File) int { return 0 }

func sleepExactly(d time.Duration) { time.Sleep(d) }
