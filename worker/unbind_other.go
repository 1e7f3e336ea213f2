//go:build unix && !linux

package worker

import (
	"os"
	"syscall"
)

func replaceFD(from, to int) error {
	if err := syscall.Dup2(from, to); err != nil {
		return os.NewSyscallError("dup2", err)
	}
	syscall.CloseOnExec(to)
	return nil
}
