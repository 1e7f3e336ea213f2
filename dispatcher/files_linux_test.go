package dispatcher

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// openUnix opens a unix listener and returns it with its path.
func (s *stepped) openUnix() (*listener, string) {
	s.Helper()
	path := filepath.Join(s.TempDir(), "s")
	mode := os.FileMode(0o640)
	return s.open(ListenerConfig{Name: "web", Network: "unix", Address: path, Mode: &mode, UID: -1, GID: -1}), path
}

// lookAgain has the loop look at the files, and waits for the end of that.
func (s *stepped) lookAgain() {
	s.Helper()
	s.pass(fileEvery)
	s.step()
	s.until("the files were looked at", func() bool { return !s.l.files.looking })
}

func remove(t testing.TB, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestARemovedFileIsMadeAgain(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln, path := s.openUnix()
	a := s.serving(ln)
	s.lookAgain()
	if s.heard("rearmed") {
		t.Fatalf("nothing was removed: %v", s.told)
	}
	s.client(ln) // in the queue of the socket that goes
	remove(t, path)
	s.lookAgain()
	s.mustHear("rearmed web 1 times, replaced=false: its file was removed")
	s.client(ln)
	s.settle()
	a.mustGet(1, 2)
	a.ack(2)
	if fi, err := os.Lstat(path); err != nil || fi.Mode().Perm() != 0o640 {
		t.Errorf("%v %v", fi, err)
	}
	if len(ln.leaving) > 0 {
		t.Error("the old socket is still open")
	}
	if n := s.stats("web").Rearmed; n != 1 {
		t.Errorf("counted %d", n)
	}
	s.l.startClosing(ln)
	s.until("it is closed", func() bool { return s.heard("closed web") })
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("the file is still there: %v", err)
	}
}

// What waits in the queue of the old socket is accepted when there is room again.
func TestARemovedFileWhileTheQueueIsFull(t *testing.T) {
	s := newStepped(t, Config{Configured: true, QueueLimit: 1})
	ln, path := s.openUnix()
	s.connect(ln, 3)
	s.settle()
	remove(t, path)
	s.lookAgain()
	if len(ln.leaving) != 1 {
		t.Fatal("the old socket was closed with clients in its queue")
	}
	if _, err := s.l.save((&sameChannels{}).codec()); !errors.Is(err, ErrBusy) {
		t.Errorf("save: %v, want busy", err)
	}
	a := s.serving(ln)
	s.settle()
	a.mustGet(2, 3) // ready has heard of 1
	a.ack(3)
	s.settle()
	if len(ln.leaving) > 0 {
		t.Error("the old socket is still open")
	}
}

// Workers that share the old socket are to be replaced.
func TestARemovedFileOfASharedSocket(t *testing.T) {
	s := newStepped(t, Config{Policy: SchedNone, Configured: true})
	ln, path := s.openUnix()
	a := s.peer()
	old := a.join("unix", "web")
	defer old.Close()
	remove(t, path)
	s.lookAgain()
	s.mustHear("rearmed web 1 times, replaced=true: its file was removed")
	b := s.peer()
	lent := b.join("unix", "web")
	defer lent.Close()
	s.client(ln)
	d, errno := accept(lent.Num())
	if errno != 0 {
		t.Fatal(errno)
	}
	_ = d.Close()
}

// A file that is removed ever again is made ever again, and told of once a second.
func TestRearmsAreToldOnceASecond(t *testing.T) {
	s := newStepped(t, Config{Policy: SchedNone, Configured: true})
	_, path := s.openUnix()
	for range 3 {
		remove(t, path)
		s.l.lookAtFiles()
		s.until("the look is over", func() bool { return !s.l.files.looking })
		s.step()
	}
	if n := s.times("rearmed"); n != 1 {
		t.Errorf("told %d times: %v", n, s.told)
	}
	s.pass(aLongTime)
	s.step()
	s.mustHear("rearmed web 2 times")
	s.until("the look is over", func() bool { return !s.l.files.looking })
}

func TestALiveSocketInThePlaceIsLeftAlone(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	ln, path := s.openUnix()
	remove(t, path)
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s.lookAgain()
	}
	s.settle()
	s.mustHear("unreachable web: another file has taken the place of its file, and it cannot be made again: ")
	if n := s.times("unreachable"); n != 1 {
		t.Errorf("told %d times", n)
	}
	if why := s.stats("web").Unreachable; !strings.Contains(why, "is served by another process") {
		t.Errorf("unreachable: %q", why)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the other socket was harmed: %v", err)
	}
	_ = c.Close()
	_ = other.Close()
	s.lookAgain()
	s.mustHear("rearmed web")
	if why := s.stats("web").Unreachable; why != "" {
		t.Errorf("still unreachable: %s", why)
	}
	s.serving(ln)
	s.client(ln)
}

// A worker's file is made again with the worker's rights only.
func TestARemovedFileOfAWorker(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can have workers of another user")
	}
	s := newStepped(t, Config{})
	p := s.peer()
	p.k.rights = &Rights{UID: nobody, GID: nobody}
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "s")
	p.ask(1, "unix", path, 0)
	if f := p.answered(1); f.Arg != 0 {
		t.Fatalf("%s", f.Payload)
	}
	remove(t, path)
	s.lookAgain()
	s.mustHear("rearmed " + path)
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil || st.Uid != nobody {
		t.Fatalf("owner %d: %v", st.Uid, err)
	}
	remove(t, path)
	if err := os.Chown(dir, 0, 0); err != nil {
		t.Fatal(err)
	}
	s.lookAgain()
	s.step()
	s.mustHear("unreachable " + path + ": its file was removed, and it cannot be made again: bind: permission denied")
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("made with other rights: %v", err)
	}
}

// The file of an inherited socket is of the process that has opened it.
func TestARemovedFileOfAnInheritedSocket(t *testing.T) {
	s := newStepped(t, Config{Configured: true})
	path := filepath.Join(t.TempDir(), "s")
	outer, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer outer.Close()
	f, err := outer.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	sock, err := inherited(f)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := s.l.open(ListenerConfig{Name: "web", Network: "fd", Address: "3"}, sock, nil)
	if err != nil {
		t.Fatal(err)
	}
	moved := path + ".moved"
	if err := os.Rename(path, moved); err != nil {
		t.Fatal(err)
	}
	s.lookAgain()
	s.step()
	s.mustHear("unreachable web: its file was removed (" + path + "): restart the service")
	if err := os.Rename(moved, path); err != nil {
		t.Fatal(err)
	}
	s.lookAgain()
	s.step()
	if why := s.stats("web").Unreachable; why != "" {
		t.Errorf("still unreachable: %s", why)
	}
	s.l.startClosing(ln)
	s.until("it is closed", func() bool { return s.heard("closed web") })
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the file of the other process was removed: %v", err)
	}
}

func TestCheckFiles(t *testing.T) {
	r := run(t, Config{Configured: true})
	r.fileEvery = aLongTime
	path := filepath.Join(t.TempDir(), "s")
	r.open(ListenerConfig{Name: "web", Network: "unix", Address: path, UID: -1, GID: -1})
	check := func(n int, again bool) {
		t.Helper()
		got, err := r.CheckFiles(context.Background())
		if len(got) != n || err != nil || n > 0 && (got[0].Err == nil) != again {
			t.Errorf("%v %v, want %d, made again: %v", got, err, n, again)
		}
	}
	check(0, true)
	remove(t, path)
	check(1, true)
	check(0, true)
	remove(t, path)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	check(1, false)
	remove(t, path)
	check(1, true)
	_ = r.Close()
	if _, err := r.CheckFiles(context.Background()); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
