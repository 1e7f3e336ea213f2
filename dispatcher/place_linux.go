package dispatcher

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// The rights of a worker do not hold for the magic links of /proc. What /proc/PID/cwd,
// root and fd/N lead to is allowed to the process itself, so a worker could have the
// master bind where it has no access. So a directory is opened without them, and the
// socket is bound through that descriptor, so no link can take its place later.

// openat2 is a variable for tests of kernels that have no such call.
var openat2 = unix.Openat2

// errMagicLink is ELOOP, as openat2(2) has it.
var errMagicLink = fmt.Errorf("a link of /proc is on the way, or too many links are: %w", unix.ELOOP)

const openPath = unix.O_PATH | unix.O_CLOEXEC

// openFolder opens a directory; no magic link may be on the way.
func openFolder(folder string) (handoff.FD, error) {
	n, err := openat2(unix.AT_FDCWD, folder, &unix.OpenHow{Flags: openPath | unix.O_DIRECTORY, Resolve: unix.RESOLVE_NO_MAGICLINKS})
	switch {
	case err == nil:
		return handoff.Own(n), nil
	case errors.Is(err, unix.ELOOP):
		return handoff.FD{}, errMagicLink
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM): // before Linux 5.6, and where seccomp does not know it
		return walkTo(folder)
	}
	return handoff.FD{}, err
}

// maxLinks is how many links the kernel follows (path_resolution(7)).
const maxLinks = 40

// walkTo is openFolder without openat2(2): step by step, and nothing of /proc may be on
// the way.
func walkTo(folder string) (handoff.FD, error) {
	start := "."
	if strings.HasPrefix(folder, "/") {
		start = "/"
	}
	dir, err := openStep(unix.AT_FDCWD, start)
	if err != nil {
		return handoff.FD{}, err
	}
	rest := strings.Split(folder, "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		if name == "" || name == "." {
			continue
		}
		next, target, err := step(dir.Num(), name)
		if err == nil && target != "" {
			if links++; links > maxLinks {
				err = errMagicLink
			}
			rest = append(strings.Split(target, "/"), rest...)
			if err == nil && strings.HasPrefix(target, "/") {
				next, err = openStep(unix.AT_FDCWD, "/")
			}
		}
		if err != nil {
			_ = dir.Close()
			return handoff.FD{}, err
		}
		if next.Valid() {
			_ = dir.Close()
			dir = next
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(dir.Num(), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		_ = dir.Close()
		return handoff.FD{}, errors.Join(err, unix.ENOTDIR)
	}
	return dir, nil
}

func openStep(dir int, name string) (handoff.FD, error) {
	n, err := unix.Openat(dir, name, openPath|unix.O_NOFOLLOW, 0)
	if err != nil {
		return handoff.FD{}, err
	}
	return handoff.Own(n), nil
}

// step opens name in dir, or returns the target if it is a link. Nothing of /proc is taken.
func step(dir int, name string) (next handoff.FD, target string, err error) {
	next, err = openStep(dir, name)
	if err != nil {
		return handoff.FD{}, "", err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(next.Num(), &fs); err != nil || fs.Type == unix.PROC_SUPER_MAGIC {
		_ = next.Close()
		return handoff.FD{}, "", errMagicLink
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(next.Num(), "", buf)
	if err != nil {
		return next, "", nil // not a link
	}
	_ = next.Close()
	return handoff.FD{}, string(buf[:n]), nil
}

// bindIn binds to a name in a directory. A name that leaves no room for the directory's
// short path is bound from within it: this thread ends with its rights (withRights), so
// its working directory is no other's.
func bindIn(fd, dir int, name string) error {
	short := "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
	if len(short) < len(unix.RawSockaddrUnix{}.Path) {
		return unix.Bind(fd, &unix.SockaddrUnix{Name: short})
	}
	if len(name) >= len(unix.RawSockaddrUnix{}.Path) {
		return unix.ENAMETOOLONG
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return unix.ENAMETOOLONG
	}
	if err := unix.Fchdir(dir); err != nil {
		return err
	}
	return unix.Bind(fd, &unix.SockaddrUnix{Name: name})
}
