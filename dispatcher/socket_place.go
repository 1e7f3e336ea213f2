package dispatcher

import (
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// filePlace is where the file of a unix socket is: a path, or a name in a directory that is
// open. A path that a worker of another user asked for is always taken to a directory
// first: only what the worker could reach by itself may be on the way (place_linux.go).
type filePlace struct {
	dir  handoff.FD // invalid: name is a path
	name string
}

// placeOf finds the place of a path. If guarded is set, it runs within withRights, and the
// caller closes the place.
func placeOf(path string, guarded bool) (filePlace, error) {
	if !guarded || isAbstract(path) {
		return filePlace{name: path}, nil
	}
	at := strings.LastIndexByte(path, '/') + 1
	folder, name := path[:at], path[at:]
	if name == "" {
		return filePlace{}, unix.ENOENT // as the kernel does for a name that ends in a slash
	}
	if folder == "" {
		folder = "."
	}
	dir, err := openFolder(folder)
	if err != nil {
		return filePlace{}, &os.PathError{Op: "open the directory", Path: folder, Err: err}
	}
	return filePlace{dir, name}, nil
}

func isAbstract(path string) bool { return strings.HasPrefix(path, "@") }

func (p *filePlace) close() { _ = p.dir.Close() }

func (p *filePlace) at() int {
	if p.dir.Valid() {
		return p.dir.Num()
	}
	return unix.AT_FDCWD
}

// bind binds a socket to the place.
func (p *filePlace) bind(fd int) error {
	if p.dir.Valid() {
		return bindIn(fd, p.dir.Num(), p.name)
	}
	if len(p.name) < len(unix.RawSockaddrUnix{}.Path) || isAbstract(p.name) {
		return unix.Bind(fd, &unix.SockaddrUnix{Name: p.name})
	}
	return bindThroughDirectory(fd, p.name)
}

func (p *filePlace) stat() (st unix.Stat_t, err error) {
	err = os.NewSyscallError("fstatat", unix.Fstatat(p.at(), p.name, &st, unix.AT_SYMLINK_NOFOLLOW))
	return st, err
}

func (p *filePlace) unlink() error { return unix.Unlinkat(p.at(), p.name, 0) }
