package main

import (
	"os"
	"strings"
	"syscall"
)

// Numbers that package syscall is too old for, as of amd64, arm64, 386 and all
// that share asm-generic (include/uapi/asm-generic/socket.h and unistd.h). Where
// they mean something else, for mips, the feature is only reported as missing.
const (
	sysCloseRange     = 436
	soPassRights      = 83
	closeRangeCloexec = 4
	beyondDescriptors = ^uint32(0)
)

func kernelRelease() string {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "Linux"
	}
	return "Linux " + strings.TrimSpace(string(b))
}

// kernelFeatures tries each feature once, since distributions backport them and
// sandboxes forbid them whatever the release says.
func kernelFeatures() []feature {
	return []feature{{"pidfd", hasPidfd()}, {"close_range", hasCloseRange()}, {"SO_PASSRIGHTS", hasPassRights()}}
}

// hasPidfd asks the way that matters: whether os.Process has a handle.
func hasPidfd() bool {
	p, err := os.FindProcess(os.Getpid())
	if err != nil {
		return false
	}
	err = p.WithHandle(func(uintptr) {})
	return err == nil && p.Release() == nil
}

// hasCloseRange marks the descriptors from the highest possible number up,
// which is none.
func hasCloseRange() bool {
	_, _, errno := syscall.RawSyscall(sysCloseRange, uintptr(beyondDescriptors), uintptr(beyondDescriptors), closeRangeCloexec)
	return errno == 0
}

func hasPassRights() bool {
	a, b, err := socketPair(syscall.SOCK_SEQPACKET)
	if err != nil {
		return false
	}
	defer a.Close()
	defer b.Close()
	return syscall.SetsockoptInt(int(a.Fd()), syscall.SOL_SOCKET, soPassRights, 0) == nil
}
