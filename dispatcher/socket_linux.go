package dispatcher

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// backlogOr returns the asked backlog, or the most that the kernel keeps.
func backlogOr(asked int) int {
	if asked > 0 {
		return asked
	}
	return Somaxconn()
}

// Somaxconn is the kernel's cap on every backlog (listen(2)).
func Somaxconn() int {
	b, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	if err != nil {
		return unix.SOMAXCONN
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || n <= 0 {
		return unix.SOMAXCONN
	}
	return n
}

// bindThroughDirectory names the path's directory by a descriptor, which
// proc_pid_fd(5) makes a short path of.
func bindThroughDirectory(fd int, path string) error {
	n, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := handoff.Own(n)
	defer dir.Close() //nolint:errcheck // only a handle
	short := "/proc/self/fd/" + strconv.Itoa(n) + "/" + filepath.Base(path)
	if len(short) >= len(unix.RawSockaddrUnix{}.Path) {
		return unix.ENAMETOOLONG
	}
	return unix.Bind(fd, &unix.SockaddrUnix{Name: short})
}

// adopt gives the file that bind made its exact mode, which the umask may have
// cut, and its owner. It goes through a descriptor of the file itself: whoever
// may write in the directory could put a link in its place.
func (f *socketFile) adopt(at *filePlace, o bindOptions) error {
	if o.mode == nil && o.uid < 0 && o.gid < 0 {
		return nil
	}
	fd, err := unix.Openat(at.at(), at.name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("openat", err)
	}
	file := os.NewFile(uintptr(fd), f.path)
	defer file.Close() //nolint:errcheck // only a handle
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Dev != f.dev || st.Ino != f.ino {
		return &os.PathError{Op: "adopt", Path: f.path, Err: unix.ESTALE}
	}
	if o.uid >= 0 || o.gid >= 0 {
		if err := unix.Fchownat(fd, "", o.uid, o.gid, unix.AT_EMPTY_PATH); err != nil {
			return &os.PathError{Op: "chown", Path: f.path, Err: err}
		}
	}
	if o.mode != nil {
		if err := unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), uint32(o.mode.Perm())); err != nil {
			return &os.PathError{Op: "chmod", Path: f.path, Err: err}
		}
	}
	return nil
}

// mayHaveFilters reports whether the process that has opened a socket has attached a filter,
// or may attach a program to its reuseport group. SO_GET_FILTER without room returns the
// length of the filter. It waits for the lock of the socket, so it is not for the loop.
func mayHaveFilters(fd int) bool {
	const getFilter = unix.SO_ATTACH_FILTER // linux/asm-generic/socket.h
	var n uint32
	_, _, errno := syscall.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, getFilter, 0, uintptr(unsafe.Pointer(&n)), 0)
	group, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT)
	return errno == 0 && n > 0 || err == nil && group != 0
}
