package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"rrd/handoff"
	"rrd/worker/pool"
)

// canUpgrade says whether this system can.
func canUpgrade() error { return nil }

// openImage opens the program that runs, also if its file was replaced.
func openImage() (handoff.FD, error) {
	fd, err := unix.Open("/proc/self/exe", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return handoff.FD{}, os.NewSyscallError("open", err)
	}
	return handoff.Own(fd), nil
}

// stateFile puts a state into a file in memory that nobody can change any more.
func stateFile(s *savedMaster) (*os.File, error) {
	text, err := s.encode()
	if err != nil {
		return nil, fmt.Errorf("write state: %w", err)
	}
	fd, err := unix.MemfdCreate("rrd-state", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "rrd-state")
	if _, err := f.Write(text); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("write state: %w", err)
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		_ = f.Close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	return f, nil
}

// readState reads a state file from its begin, wherever its offset is. The
// descriptor stays open.
func readState(fd int) (*savedMaster, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("read state from descriptor %d: %w", fd, err)
	}
	if st.Size > maxState {
		return nil, fmt.Errorf("read state: it has %d bytes", st.Size)
	}
	text := make([]byte, st.Size)
	for have := 0; have < len(text); {
		n, err := unix.Pread(fd, text[have:], int64(have))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, fmt.Errorf("read state: %w", err)
		case n == 0:
			return nil, fmt.Errorf("read state: %w", io.ErrUnexpectedEOF)
		}
		have += max(n, 0)
	}
	s, err := decodeState(text)
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	return s, nil
}

// execImage executes path in place of this program, with the state and every
// descriptor in it. It returns only if that failed, with everything as before.
func execImage(path string, argv, environ []string, state *os.File, s *savedMaster, failed string) error {
	return execWith(path, argv, environ, int(state.Fd()), s.OldImage.Num(), s, failed)
}

// execBack executes the old image again, which is open as oldFD, with the state that
// it has written.
func execBack(stateFD, oldFD int, argv, environ []string, s *savedMaster, why error) error {
	return execWith("/proc/self/fd/"+strconv.Itoa(oldFD), argv, environ, stateFD, oldFD, s, oneLine(why.Error()))
}

func execWith(path string, argv, environ []string, stateFD, oldFD int, s *savedMaster, failed string) error {
	env := append(withoutVariables(environ, envResume, envResumeFailed),
		fmt.Sprintf("%s=%d:%d:%d", envResume, stateFD, oldFD, os.Getpid()))
	if failed != "" {
		env = append(env, envResumeFailed+"="+failed)
	}
	fds := []int{stateFD, oldFD}
	if s != nil {
		for _, d := range s.fds() {
			fds = append(fds, d.Num())
		}
	}
	for i, fd := range fds {
		if err := setCloseOnExec(fd, false); err != nil {
			closeOnExec(fds[:i])
			return fmt.Errorf("descriptor %d: %w", fd, err)
		}
	}
	// A signal that comes before the new image catches it must not end it.
	restore := ignoreSignals()
	raise := lowerNoFile()
	err := syscall.Exec(path, argv, env)
	raise()
	restore()
	closeOnExec(fds)
	return fmt.Errorf("exec %s: %w", path, err)
}

// lowerNoFile sets the soft limit of open files to what this program was started with,
// for that is what the next image takes for its own, and gives to workers. Not by package
// syscall, whose Exec would lower it, too, and not raise it again.
func lowerNoFile() (raise func()) {
	var raised unix.Rlimit
	original := pool.OriginalNoFile()
	if original == 0 || unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &raised) != nil || original >= raised.Cur {
		return func() {}
	}
	_ = unix.Prlimit(0, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: original, Max: raised.Max}, nil)
	return func() { _ = unix.Prlimit(0, unix.RLIMIT_NOFILE, &raised, nil) }
}

func closeOnExec(fds []int) {
	for _, fd := range fds {
		_ = setCloseOnExec(fd, true) // it was open a moment ago
	}
}

func setCloseOnExec(fd int, on bool) error {
	flags := 0
	if on {
		flags = unix.FD_CLOEXEC
	}
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, flags)
	return err
}

// sigaction is struct sigaction of the kernel (asm/signal.h; not that of the C
// library).
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// ignoreSignals has the kernel ignore every signal that is caught, but TERM and QUIT,
// which in that moment end the master without a drain. It bypasses os/signal, whose
// Ignore is for good and would be inherited by workers.
func ignoreSignals() (restore func()) {
	var saved []func()
	for sig := 1; sig < 32; sig++ {
		switch syscall.Signal(sig) {
		case syscall.SIGCHLD: // harmless, and ignored it would take the exit codes of workers away
			continue
		case syscall.SIGKILL, syscall.SIGSTOP, syscall.SIGTERM, syscall.SIGQUIT,
			syscall.SIGSEGV, syscall.SIGBUS, syscall.SIGFPE, syscall.SIGILL, syscall.SIGABRT, syscall.SIGTRAP, syscall.SIGSYS:
			continue
		}
		var old sigaction
		if rtSigaction(sig, nil, &old) != nil || old.handler <= 1 { // SIG_DFL, SIG_IGN
			continue
		}
		ignore := sigaction{handler: 1}
		if rtSigaction(sig, &ignore, nil) == nil {
			saved = append(saved, func() { _ = rtSigaction(sig, &old, nil) })
		}
	}
	return func() {
		for _, undo := range saved {
			undo()
		}
	}
}

func rtSigaction(sig int, to, old *sigaction) error {
	_, _, errno := syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(to)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// duplicate makes a file of a descriptor that stays open.
func duplicate(d handoff.FD, name string) (*os.File, error) {
	dup, err := d.Dup()
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(dup.Release()), name), nil
}
