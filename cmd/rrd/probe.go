//go:build unix

package main

import (
	"fmt"
	"os"
	"syscall"
)

// probePassing passes one descriptor to this process itself. It fails where the
// kernel lacks SCM_RIGHTS or a sandbox forbids it.
func probePassing() error {
	a, b, err := socketPair(syscall.SOCK_STREAM)
	if err != nil {
		return err
	}
	defer a.Close()
	defer b.Close()
	if err := syscall.Sendmsg(int(a.Fd()), []byte{0}, syscall.UnixRights(int(a.Fd())), nil, 0); err != nil {
		return os.NewSyscallError("sendmsg", err)
	}
	oob := make([]byte, syscall.CmsgSpace(4))
	syscall.ForkLock.RLock() // a process started just now would inherit what arrives
	_, oobn, _, _, err := syscall.Recvmsg(int(b.Fd()), make([]byte, 1), oob, 0)
	arrived := 0
	if err == nil {
		for _, fd := range rights(oob[:oobn]) {
			os.NewFile(uintptr(fd), "passed").Close()
			arrived++
		}
	}
	syscall.ForkLock.RUnlock()
	switch {
	case err != nil:
		return os.NewSyscallError("recvmsg", err)
	case arrived != 1:
		return fmt.Errorf("recvmsg: %d descriptors arrived of 1", arrived)
	}
	return nil
}

// socketPair returns two connected unix sockets, which the caller closes.
func socketPair(kind int) (a, b *os.File, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, kind, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	syscall.CloseOnExec(pair[0])
	syscall.CloseOnExec(pair[1])
	return os.NewFile(uintptr(pair[0]), "pair"), os.NewFile(uintptr(pair[1]), "pair"), nil
}

// rights returns the descriptors in a control message.
func rights(oob []byte) (fds []int) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range messages {
		got, err := syscall.ParseUnixRights(&messages[i])
		if err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}
