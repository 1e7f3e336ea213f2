package pool

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// CloseOnExecAll marks every descriptor from 3 on, whatever the master was started
// with, so that none reaches a worker unless it is given. It is called first thing in
// main; nothing is closed, so inherited listeners can still be used.
func CloseOnExecAll() error {
	err := closeRange()
	if err == nil {
		return nil
	}
	// ENOSYS before Linux 5.9, EINVAL before 5.11, EPERM in some sandboxes.
	if err := closeOnExecWalk(fdDir); err != nil {
		return fmt.Errorf("mark descriptors close-on-exec: %w", err)
	}
	return nil
}

// closeRange is replaced in a test.
var closeRange = closeRangeCloexec

// closeOnExecWalk goes through the directory of this process's descriptors.
func closeOnExecWalk(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var found bool
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		found = true
		if fd > 2 {
			syscall.CloseOnExec(fd) // that of the directory itself is gone by now
		}
	}
	if !found {
		return errors.New(dir + ": no descriptors there")
	}
	return nil
}
