//go:build unix

package control

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// ErrInUse is returned (wrapped) for a path where somebody answers.
var ErrInUse = errors.New("somebody is listening there")

const (
	socketMode = 0o600
	// lockPatience is how long two masters that start at once wait for each other.
	lockPatience = 5 * time.Second
	// probeTimeout is for a socket to be answered or refused; both are immediate.
	probeTimeout = time.Second
	// maxPath is what a socket address holds on every system but Linux, which has
	// four bytes more (sys/un.h).
	maxPath = 103
)

// A Listener is the control socket of one master. Close it, or have
// Server.Serve do that.
type Listener struct {
	path string
	uids []int
	dir  string // made for it: to be removed with it
	once sync.Once

	mu      sync.Mutex
	ln      *net.UnixListener   // Renew replaces it
	leaving []*net.UnixListener // replaced; may have clients in their queues
	file    FileID              // file of the socket; zero: not known
	closed  bool
}

// Path returns the path of the socket.
func (l *Listener) Path() string { return l.path }

// Listen makes a control socket at path, which need not be absolute. Root, our
// own user and uids may use it; where we may give it away, the file belongs to
// the first of uids.
//
// A socket that nobody serves is replaced. Anything else there is refused and
// left as it is: a file, link or socket of somebody else, a socket that is served
// (ErrInUse), and a directory that others than root and us may write to.
func Listen(path string, uids []int) (*Listener, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("make control socket: %w", err)
	}
	l, err := listen(path, uids)
	if err != nil {
		return nil, fmt.Errorf("make control socket %s: %w", path, err)
	}
	return l, nil
}

// Check says why Listen would refuse path, as far as that can be told without making or
// removing anything: it does not ask whether a socket there is served.
func Check(path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("make control socket: %w", err)
	}
	resolved, err := resolve(path)
	if err == nil {
		var info os.FileInfo
		if info, err = os.Lstat(resolved); err == nil {
			err = checkKind(info)
		} else if errors.Is(err, os.ErrNotExist) {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("make control socket %s: %w", path, err)
	}
	return nil
}

// resolve returns path without links in its directory, for whoever owns one could point it
// elsewhere later, and checks both.
func resolve(path string) (string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, filepath.Base(path))
	if len(path) > maxPath {
		return "", fmt.Errorf("the path has %d bytes, and a socket's may have %d", len(path), maxPath)
	}
	return path, checkDirectory(dir, false)
}

func listen(path string, uids []int) (*Listener, error) {
	path, err := resolve(path)
	if err != nil {
		return nil, err
	}
	lock, err := acquire(path + ".lock")
	if err != nil {
		return nil, err
	}
	defer lock.release()
	if err := makeWay(path, uids); err != nil {
		return nil, err
	}
	ln, err := bind(path)
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false) // Close does, under the lock
	l := &Listener{ln: ln, path: path, uids: uids}
	if err := l.adopt(); err != nil {
		_ = ln.Close()
		_ = os.Remove(path) // ours, and nobody changes it while we have the lock
		return nil, err
	}
	return l, nil
}

// adopt gives the new file the mode that a umask may have narrowed, and the owner
// who is to use it.
func (l *Listener) adopt() (err error) {
	if err := os.Chmod(l.path, socketMode); err != nil {
		return err
	}
	if len(l.uids) > 0 && os.Geteuid() == 0 {
		if err := os.Lchown(l.path, l.uids[0], -1); err != nil {
			return err
		}
	}
	info, err := os.Lstat(l.path)
	if err == nil {
		l.file = fileIDOf(info)
	}
	return err
}

// makeWay removes a stale socket of ours, or says what is in the way.
func makeWay(path string, uids []int) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := checkKind(info); err != nil {
		return err
	}
	if owner := ownerOf(info); owner != 0 && owner != os.Geteuid() && (len(uids) == 0 || owner != uids[0]) {
		return fmt.Errorf("it exists and is a socket of uid %d: remove it, or choose another path", owner)
	}
	c, err := net.DialTimeout("unix", path, probeTimeout)
	if err == nil {
		_ = c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		// Connected, or its backlog is full, or it speaks in datagrams.
		return fmt.Errorf("%w: stop it, or choose another path", ErrInUse)
	}
	return os.Remove(path)
}

func checkKind(info os.FileInfo) error {
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("it exists and is %s: remove it, or choose another path", kindOf(info))
	}
	return nil
}

func kindOf(info os.FileInfo) string {
	switch info.Mode().Type() {
	case 0:
		return "a file"
	case os.ModeDir:
		return "a directory"
	case os.ModeSymlink:
		return "a symbolic link"
	case os.ModeNamedPipe:
		return "a fifo"
	case os.ModeSocket:
		return "a socket"
	}
	return "a device"
}

func ownerOf(info os.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

// checkDirectory refuses a directory in which others could put things in our way,
// or whose own name they could give to another. dir has no links. anyOwner allows it to
// belong to whomever whoever made the directories above has given it.
func checkDirectory(dir string, anyOwner bool) error {
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%s is no directory", dir)
	case !anyOwner && ownerOf(info) != 0 && ownerOf(info) != os.Geteuid():
		return fmt.Errorf("the directory %s belongs to uid %d, neither to root nor to us (uid %d): choose another", dir, ownerOf(info), os.Geteuid())
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("the directory %s may be written to by others (mode %v): chmod go-w it, or choose another", dir, info.Mode())
	}
	for dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
		if info, err = os.Stat(dir); err != nil {
			return err
		}
		if info.Mode().Perm()&0o002 != 0 && info.Mode()&os.ModeSticky == 0 {
			return fmt.Errorf("the directory %s above it may be written to by everybody (mode %v): choose another", dir, info.Mode())
		}
	}
	return nil
}

// Close stops listening and removes the file, if it is still ours.
func (l *Listener) Close() error {
	l.once.Do(func() {
		l.mu.Lock()
		l.closed = true
		l.mu.Unlock()
		// The file first: nobody is to find a socket that refuses.
		if lock, err := acquire(l.path + ".lock"); err == nil {
			if l.state() == nil {
				_ = os.Remove(l.path) // a stale one is replaced by the next
			}
			lock.release()
		}
		if l.dir != "" {
			_ = os.Remove(l.dir) // not empty: others use it
		}
	})
	return l.hangUp()
}

// hangUp stops listening, for good.
func (l *Listener) hangUp() error {
	l.mu.Lock()
	l.closed = true
	ln := l.ln
	for _, old := range l.leaving {
		_ = old.Close()
	}
	l.leaving = nil
	l.mu.Unlock()
	if err := ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// lock is an exclusive right by flock(2) on a file that exists only as long.
type lock struct {
	f    *os.File
	path string
}

// acquire waits for the lock at most lockPatience. Who has it removes the file
// before giving it up, so a file that was opened and then locked may be one that
// is there no more: then again.
func acquire(path string) (*lock, error) {
	for end := time.Now().Add(lockPatience); ; {
		f, again, err := tryLock(path)
		if err != nil {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !again {
			return &lock{f, path}, nil
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("lock %s: another process has it for more than %v", path, lockPatience)
		}
		time.Sleep(time.Millisecond)
	}
}

// tryLock returns the locked file, or whether to try again.
func tryLock(path string) (_ *os.File, again bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if errors.Is(err, syscall.ELOOP) {
		return nil, false, errors.New("it is a symbolic link: remove it")
	}
	if err != nil {
		return nil, false, err
	}
	keep := false
	defer func() {
		if !keep {
			_ = f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, false, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular():
		return nil, false, fmt.Errorf("it is %s: remove it", kindOf(info))
	case ok && st.Nlink == 0:
		return nil, true, nil
	case ok && st.Nlink > 1 || info.Size() > 0:
		return nil, false, errors.New("it is a file of somebody else: remove it")
	case ownerOf(info) != os.Geteuid() && ownerOf(info) != 0:
		return nil, false, fmt.Errorf("it is a file of uid %d: remove it", ownerOf(info))
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, syscall.EINTR) {
			return nil, true, nil
		}
		return nil, false, os.NewSyscallError("flock", err)
	}
	now, err := os.Lstat(path)
	if err != nil || !os.SameFile(now, info) {
		return nil, true, nil
	}
	keep = true
	return f, false, nil
}

func (l *lock) release() {
	_ = os.Remove(l.path)
	_ = l.f.Close()
}

// SocketName is the file in the runtime directory of the only master, or of the
// first.
const SocketName = "control.sock"

// Directories are where a control socket is made and looked for when nobody says
// otherwise, in this order. getenv is os.Getenv.
func Directories(getenv func(string) string) (dirs []string) {
	if d, _, _ := strings.Cut(getenv("RUNTIME_DIRECTORY"), ":"); d != "" { // systemd.exec(5): may be several
		dirs = append(dirs, d)
	}
	dirs = append(dirs, runDirectory)
	if d := getenv("XDG_RUNTIME_DIR"); d != "" {
		dirs = append(dirs, filepath.Join(d, "rrd"))
	}
	return dirs
}

// runDirectory is a variable for tests.
var runDirectory = "/run/rrd"

// ListenAuto makes a control socket in the first of the Directories where that
// is possible. Where another master has the usual name it is control-PID.sock.
// The error has the reason of each.
func ListenAuto(getenv func(string) string, uids []int) (*Listener, error) {
	var errs []error
	for _, dir := range Directories(getenv) {
		l, err := listenIn(dir, uids)
		if err == nil {
			return l, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// listenIn makes the directory if it is not there. A master that ends may
// remove it in between, hence the second try.
func listenIn(dir string, uids []int) (*Listener, error) {
	var last error
	for range 3 {
		made, err := makeDirectory(dir, uids)
		if err != nil {
			return nil, err
		}
		l, err := Listen(filepath.Join(dir, SocketName), uids)
		if errors.Is(err, ErrInUse) {
			l, err = Listen(filepath.Join(dir, "control-"+strconv.Itoa(os.Getpid())+".sock"), uids)
		}
		if err == nil {
			if made {
				l.dir = dir
			}
			return l, nil
		}
		if last = err; !errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	return nil, last
}

// makeDirectory makes dir for us alone; root lets the group of the first of uids
// through. It leaves one that is there as it is.
func makeDirectory(dir string, uids []int) (made bool, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		if errors.Is(err, os.ErrExist) {
			return false, nil
		}
		return false, fmt.Errorf("make control socket: %w", err)
	}
	if len(uids) == 0 || os.Geteuid() != 0 {
		return true, nil
	}
	u, err := user.LookupId(strconv.Itoa(uids[0]))
	if err != nil {
		return true, nil // of no known group: --control can name a directory that lets it through
	}
	gid, err := strconv.Atoi(u.Gid)
	if err == nil {
		err = os.Lchown(dir, -1, gid)
	}
	if err == nil {
		err = os.Chmod(dir, 0o750) //nolint:gosec // that group is to come in
	}
	if err != nil {
		return true, fmt.Errorf("make control socket: %w", err)
	}
	return true, nil
}
