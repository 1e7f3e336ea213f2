package dispatcher

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// closedPlaces makes a directory that only root can enter, with one in it in which anybody
// may write, and one of the worker's own. This process is in the former.
func closedPlaces(t *testing.T) (inner, own string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can have workers of another user")
	}
	root, err := os.MkdirTemp("", "place") // not t.TempDir, whose paths are long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	inner, own = filepath.Join(root, "private", "inner"), filepath.Join(root, "own")
	for dir, mode := range map[string]os.FileMode{root: 0o755, filepath.Dir(inner): 0o700, inner: 0o777, own: 0o755} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Dir(inner), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(own, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	t.Chdir(inner)
	return inner, own
}

func withoutOpenat2(t *testing.T, errno syscall.Errno) {
	real := openat2
	openat2 = func(int, string, *unix.OpenHow) (int, error) { return -1, errno }
	t.Cleanup(func() { openat2 = real })
}

// The magic links of /proc lead a worker of another user nowhere that it could not go by
// itself, with and without openat2(2).
func TestMagicLinksAreNoWay(t *testing.T) {
	for name, errno := range map[string]syscall.Errno{"openat2": 0, "before 5.6": unix.ENOSYS, "seccomp": unix.EPERM} {
		t.Run(name, func(t *testing.T) {
			inner, own := closedPlaces(t)
			if errno != 0 {
				withoutOpenat2(t, errno)
			}
			dir, err := os.Open(inner)
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			for link, target := range map[string]string{"cwd": "/proc/self/cwd", "deep": "cwd/../inner", "rel": "../own/cwd"} {
				if err := os.Symlink(target, filepath.Join(own, link)); err != nil {
					t.Fatal(err)
				}
			}
			pid, fd := os.Getpid(), dir.Fd()
			rights := &Rights{UID: nobody, GID: nobody}
			bind := func(path string) error {
				s, err := bindWithRights("unix", path, bindOptions{uid: -1, gid: -1}, rights)
				if err == nil {
					_ = s.close()
				}
				return err
			}
			for _, folder := range []string{
				fmt.Sprintf("/proc/%d/cwd", pid), fmt.Sprintf("/proc/%d/root", pid) + inner, fmt.Sprintf("/proc/%d/fd/%d", pid, fd),
				"/proc/self/cwd", "/proc/self/root/tmp", fmt.Sprintf("/proc/self/fd/%d", fd), "/proc/thread-self/cwd",
				fmt.Sprintf("/proc/%d/task/%d/cwd", pid, pid), fmt.Sprintf("/proc/self/fd/%d/../inner", fd), "/dev/fd/" + fmt.Sprint(fd),
				filepath.Join(own, "cwd"), filepath.Join(own, "deep"), filepath.Join(own, "rel"), inner,
			} {
				if err := bind(folder + "/x.sock"); !errors.Is(err, unix.ELOOP) && !errors.Is(err, unix.EACCES) {
					t.Errorf("%s: %v", folder, err)
				}
			}
			if left, _ := os.ReadDir(inner); len(left) > 0 {
				t.Errorf("%v was made where the worker has no access", left)
			}
		})
	}
}

// What the worker can reach by itself it gets, also through links and by long names, and
// the file goes with the listener.
func TestPlacesOfAWorkerOfAnotherUser(t *testing.T) {
	for name, errno := range map[string]syscall.Errno{"openat2": 0, "before 5.6": unix.ENOSYS} {
		t.Run(name, func(t *testing.T) {
			_, own := closedPlaces(t)
			if errno != 0 {
				withoutOpenat2(t, errno)
			}
			long := strings.Repeat("l", 100) // leaves no room for /proc/self/fd/N/
			deep := filepath.Join(own, strings.Repeat("d", 120))
			for _, dir := range []string{deep, filepath.Join(own, "run")} {
				if err := os.Mkdir(dir, 0o777); err != nil {
					t.Fatal(err)
				}
				if err := os.Chown(dir, nobody, nobody); err != nil {
					t.Fatal(err)
				}
			}
			for link, target := range map[string]string{"abs": filepath.Join(own, "run"), "rel": "./abs/../run"} {
				if err := os.Symlink(target, filepath.Join(own, link)); err != nil {
					t.Fatal(err)
				}
			}
			s := newStepped(t, Config{})
			p := s.peer()
			p.k.rights = &Rights{UID: nobody, GID: nobody}
			for i, path := range []string{own + "/s", own + "//run/./s", own + "/abs/s", own + "/rel/s", own + "/" + long, deep + "/s", deep + "/" + long, own + "/run/../s2"} {
				seq := uint64(i)
				p.say(handoff.Frame{Type: handoff.Listen, Seq: seq, Flags: handoff.ListenReadable | handoff.ListenWritable, Payload: []byte("unix\x00" + path)})
				f := p.answered(seq)
				if f.Arg != 0 {
					t.Errorf("%s: errno %d %s", path, f.Arg, f.Payload)
					continue
				}
				if _, address, _ := strings.Cut(string(f.Payload), "\x00"); address != path {
					t.Errorf("%s: told %s", path, address)
				}
				var st unix.Stat_t
				if err := unix.Stat(path, &st); err != nil || st.Uid != nobody || st.Mode&0o666 != 0o666 {
					t.Errorf("%s: %v, owner %d, mode %o", path, err, st.Uid, st.Mode)
				}
				if len(path) < 108 {
					c, err := net.Dial("unix", path)
					if err != nil {
						t.Errorf("%s: %v", path, err)
					} else {
						_ = c.Close()
					}
				}
				p.say(handoff.Frame{Type: handoff.Leave, Listener: f.Listener})
				s.until("it is closed", func() bool { return s.l.byWire[f.Listener] == nil })
				if _, err := os.Lstat(path); !os.IsNotExist(err) {
					t.Errorf("%s is still there: %v", path, err)
				}
			}
			if s.heard("refused") {
				t.Error(s.told)
			}
		})
	}
}

// If a worker puts a magic link in place of its directory, the file is left alone.
func TestAFileIsRemovedByTheSameWay(t *testing.T) {
	inner, own := closedPlaces(t)
	dir := filepath.Join(own, "run")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	s, err := bindWithRights("unix", dir+"/s", bindOptions{uid: -1, gid: -1}, &Rights{UID: nobody, GID: nobody})
	if err != nil {
		t.Fatal(err)
	}
	moved := filepath.Join(inner, "s")
	if err := os.Rename(dir+"/s", moved); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/proc/self/cwd", dir); err != nil {
		t.Fatal(err)
	}
	_ = s.close()
	if _, err := os.Lstat(moved); err != nil {
		t.Errorf("it was removed where the worker has no access: %v", err)
	}
}
