//go:build unix

package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// privateDir is like t.TempDir, short enough for a socket.
func privateDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ctl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestListen(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o777} {
		old := syscall.Umask(umask)
		dir := filepath.Join(os.TempDir(), fmt.Sprintf("ctl-%d-%o", os.Getpid(), umask))
		err := os.Mkdir(dir, 0o700)
		_ = os.Chmod(dir, 0o700) //nolint:gosec // of a umask that left nothing
		var l *Listener
		if err == nil {
			l, err = Listen(filepath.Join(dir, "c.sock"), nil)
		}
		syscall.Umask(old)
		if err != nil {
			t.Fatalf("umask %o: %v", umask, err)
		}
		info, err := os.Lstat(l.Path())
		if err != nil || info.Mode() != os.ModeSocket|0o600 {
			t.Errorf("umask %o: %v, %v", umask, info.Mode(), err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("the second time: %v", err)
		}
		if err := os.Remove(dir); err != nil { // nothing is left in it
			t.Error(err)
		}
	}
}

// F42: at no moment is the file wider than 0600.
func TestF42Mode(t *testing.T) {
	dir := privateDir(t)
	path := filepath.Join(dir, "c.sock")
	defer syscall.Umask(syscall.Umask(0))
	var over atomic.Bool
	var watcher sync.WaitGroup
	watcher.Go(func() {
		for !over.Load() {
			if info, err := os.Lstat(path); err == nil && info.Mode().Perm()&^0o600 != 0 {
				t.Errorf("it was %v", info.Mode())
				return
			}
		}
	})
	n := 1000
	if testing.Short() {
		n = 100
	}
	for range n {
		l, err := Listen(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
	over.Store(true)
	watcher.Wait()
}

// F44: what is planted is refused with the reason, and stays as it was.
func TestF44Planted(t *testing.T) {
	secret := filepath.Join(privateDir(t), "secret")
	if err := os.WriteFile(secret, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	var held io.Closer
	plantDatagram := func(path string) (err error) {
		held, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		return err
	}
	defer func() { _ = held.Close() }()
	for _, x := range []struct {
		name  string
		plant func(path string) error
		want  string
	}{
		{"file", func(p string) error { return os.WriteFile(p, []byte("x"), 0o600) }, "it exists and is a file"},
		{"link", func(p string) error { return os.Symlink(secret, p) }, "it exists and is a symbolic link"},
		{"dangling link", func(p string) error { return os.Symlink(p+"-none", p) }, "it exists and is a symbolic link"},
		{"hard link", func(p string) error { return os.Link(secret, p) }, "it exists and is a file"},
		{"fifo", func(p string) error { return syscall.Mkfifo(p, 0o600) }, "it exists and is a fifo"},
		{"directory", func(p string) error { return os.Mkdir(p, 0o700) }, "it exists and is a directory"},
		{"datagram socket", plantDatagram, "somebody is listening there"},
		{"lock that is a link", func(p string) error { return os.Symlink(secret, p+".lock") }, "it is a symbolic link: remove it"},
		{"lock that is a hard link", func(p string) error { return os.Link(secret, p+".lock") }, "it is a file of somebody else"},
		{"lock that is a fifo", func(p string) error { return syscall.Mkfifo(p+".lock", 0o600) }, "it is a fifo"},
		{"lock that is a directory", func(p string) error { return os.Mkdir(p+".lock", 0o700) }, "is a directory"},
	} {
		t.Run(x.name, func(t *testing.T) {
			dir := privateDir(t)
			path := filepath.Join(dir, "c.sock")
			if err := x.plant(path); err != nil {
				t.Fatal(err)
			}
			before := listing(t, dir)
			_, err := Listen(path, nil)
			if err == nil || !strings.Contains(err.Error(), x.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want %s", err, x.want)
			}
			if after := listing(t, dir); after != before {
				t.Errorf("before:\n%safter:\n%s", before, after)
			}
			if text, err := os.ReadFile(secret); err != nil || string(text) != "precious" {
				t.Errorf("%q, %v", text, err)
			}
		})
	}
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %v %d %v\n", e.Name(), info.Mode(), info.Size(), info.ModTime())
	}
	return b.String()
}

// F44: directories in which others could plant something.
func TestF44Directories(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	base := privateDir(t)
	check := func(t *testing.T, path, want string) {
		t.Helper()
		check(t, path, want)
		if err := Check(path); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("without making it: %s: %v, want %q", path, err, want)
		}
	}
	for _, x := range []struct {
		mode os.FileMode
		want string
	}{
		{0o700, ""}, {0o755, ""}, {0o750, ""},
		{0o777 | os.ModeSticky, "may be written to by others"}, {0o770, "may be written to by others"}, {0o702, "may be written to by others"},
	} {
		dir := filepath.Join(base, fmt.Sprintf("%o", uint32(x.mode)))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, x.mode); err != nil {
			t.Fatal(err)
		}
		check(t, filepath.Join(dir, "c.sock"), x.want)
		link := dir + "-link"
		if err := os.Symlink(dir, link); err != nil {
			t.Fatal(err)
		}
		check(t, filepath.Join(link, "c.sock"), x.want)
		if x.want == "" {
			l, err := Listen(filepath.Join(link, "c.sock"), nil)
			if err != nil || l.Path() != filepath.Join(dir, "c.sock") {
				t.Errorf("through a link: %+v, %v", l, err)
			}
			l.Close()
		}
	}
	above := filepath.Join(base, "above")
	if err := os.MkdirAll(filepath.Join(above, "own"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(above, 0o777); err != nil { //nolint:gosec // that is what is refused
		t.Fatal(err)
	}
	check(t, filepath.Join(above, "own", "c.sock"), "above it may be written to by everybody")
	check(t, filepath.Join(base, "none", "c.sock"), "no such file or directory")
	check(t, filepath.Join(base, strings.Repeat("x", 100)), "a socket's may have")
}

func check(t *testing.T, path, want string) {
	t.Helper()
	l, err := Listen(path, nil)
	if err == nil {
		l.Close()
	}
	if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
		t.Errorf("%s: %v, want %q", path, err, want)
	}
}

// F44: a directory and a stale socket of another user.
func TestF44Foreign(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	dir := privateDir(t)
	path := filepath.Join(dir, "c.sock")
	stale(t, path)
	if err := os.Lchown(path, 12345, -1); err != nil {
		t.Fatal(err)
	}
	before := listing(t, dir)
	check(t, path, "is a socket of uid 12345")
	if after := listing(t, dir); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
	l, err := Listen(path, []int{12345, 7})
	if err != nil {
		t.Fatalf("one of its own first user: %v", err)
	}
	if info, err := os.Lstat(path); err != nil || ownerOf(info) != 12345 || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	l.Close()
	served, err := Listen(filepath.Join(dir, SocketName), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer served.Close()
	if err := os.Lchown(dir, 12345, -1); err != nil {
		t.Fatal(err)
	}
	check(t, path, "belongs to uid 12345")
	// Root asks there all the same: systemd makes such a directory for DynamicUser=.
	live, skipped := Find(t.Context(), func(name string) string { return map[string]string{"RUNTIME_DIRECTORY": dir}[name] })
	if !slices.Contains(live, served.Path()) || len(skipped) > 0 {
		t.Errorf("%v, %v", live, skipped)
	}
}

// stale leaves a socket that nobody serves.
func stale(t *testing.T, path string) {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
}

// F45: a stale one is replaced, a live one is not, whatever it answers.
func TestF45StaleAndLive(t *testing.T) {
	path := filepath.Join(privateDir(t), "c.sock")
	stale(t, path)
	l, err := Listen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	info, _ := os.Lstat(path)
	for range 200 { // more than a backlog that nobody empties may hold
		if _, err := Listen(path, nil); !errors.Is(err, ErrInUse) {
			t.Fatalf("%v", err)
		}
	}
	if now, err := os.Lstat(path); err != nil || !os.SameFile(info, now) {
		t.Errorf("the live one is gone: %v", err)
	}

	// Who ends removes only what is its own.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second, err := Listen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the first has removed the second's: %v", err)
	}
	second.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// F45: of those that start at the same moment, over a stale one, exactly one wins.
func TestF45Race(t *testing.T) {
	n := 1000
	if testing.Short() {
		n = 50
	}
	path := filepath.Join(privateDir(t), "c.sock")
	for round := range n {
		if round%2 == 0 {
			stale(t, path)
		}
		var all sync.WaitGroup
		var mu sync.Mutex
		var winners []*Listener
		start := make(chan struct{})
		for range 4 {
			all.Go(func() {
				<-start
				l, err := Listen(path, nil)
				if err != nil && !errors.Is(err, ErrInUse) {
					t.Errorf("%v", err)
				}
				if err == nil {
					mu.Lock()
					winners = append(winners, l)
					mu.Unlock()
				}
			})
		}
		close(start)
		all.Wait()
		if len(winners) != 1 {
			t.Fatalf("round %d: %d winners", round, len(winners))
		}
		if c, err := net.Dial("unix", path); err != nil {
			t.Fatalf("round %d: %v", round, err)
		} else {
			c.Close()
		}
		winners[0].Close()
	}
	if left := listing(t, filepath.Dir(path)); left != "" {
		t.Errorf("left: %s", left)
	}
}

// listenAsAnother is the test binary as a process of its own.
func listenAsAnother(path string) int {
	l, err := Listen(path, nil)
	switch {
	case errors.Is(err, ErrInUse):
		fmt.Println("lost")
		return 0
	case err != nil:
		fmt.Println(err)
		return 1
	}
	fmt.Println("won")
	_, _ = io.Copy(io.Discard, os.Stdin) // until all have tried
	_ = l.Close()
	return 0
}

// F45 between processes, one of which was killed while it had the lock.
func TestF45Processes(t *testing.T) {
	path := filepath.Join(privateDir(t), "c.sock")
	stale(t, path)
	if err := os.WriteFile(path+".lock", nil, 0o600); err != nil { // of one that was killed
		t.Fatal(err)
	}
	const n = 6
	var children []*exec.Cmd
	var outs []io.Reader
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	for range n {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "CONTROL_TEST_LISTEN="+path)
		cmd.Stdin = r
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		children, outs = append(children, cmd), append(outs, out)
	}
	r.Close()
	said := map[string]int{}
	for _, out := range outs {
		b := make([]byte, 200)
		k, _ := out.Read(b)
		said[strings.TrimSpace(string(b[:k]))]++
	}
	w.Close()
	for _, cmd := range children {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	if said["won"] != 1 || said["lost"] != n-1 {
		t.Errorf("%v", said)
	}
}

func TestAutoAndFind(t *testing.T) {
	base := privateDir(t)
	defer func(was string) { runDirectory = was }(runDirectory)
	runDirectory = filepath.Join(base, "no", "run")
	env := map[string]string{}
	getenv := func(name string) string { return env[name] }
	if _, err := ListenAuto(getenv, nil); err == nil || !strings.Contains(err.Error(), runDirectory) {
		t.Errorf("%v", err)
	}

	env["XDG_RUNTIME_DIR"] = base
	first, err := ListenAuto(getenv, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "rrd")
	if info, err := os.Stat(dir); err != nil || info.Mode() != os.ModeDir|0o700 || first.Path() != filepath.Join(dir, SocketName) {
		t.Errorf("%s in %v, %v", first.Path(), info.Mode(), err)
	}
	second, err := ListenAuto(getenv, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(dir, fmt.Sprintf("control-%d.sock", os.Getpid())); second.Path() != want {
		t.Errorf("%s, want %s", second.Path(), want)
	}
	stale(t, filepath.Join(dir, "control-1.sock"))
	live, skipped := Find(context.Background(), getenv)
	if strings.Join(live, " ") != second.Path()+" "+first.Path() || len(skipped) != 0 {
		t.Errorf("%v, %v", live, skipped)
	}
	first.Close()
	live, _ = Find(context.Background(), getenv)
	if strings.Join(live, " ") != second.Path() {
		t.Errorf("%v", live)
	}
	_ = os.Remove(filepath.Join(dir, "control-1.sock"))
	second.Close()
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("the second had not made it: %v", err)
	}

	// The service manager's own directory comes first.
	env["RUNTIME_DIRECTORY"] = filepath.Join(base, "service") + ":" + filepath.Join(base, "other")
	third, err := ListenAuto(getenv, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(base, "service", SocketName); third.Path() != want {
		t.Errorf("%s, want %s", third.Path(), want)
	}
	third.Close()
	if _, err := os.Stat(filepath.Join(base, "service")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what it had made is left: %v", err)
	}
}

// F43: by what the kernel says, whoever gave them the descriptor.
func TestF43Peers(t *testing.T) {
	path, f, _, _ := listening(t)
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	peer, err := peerOf(c)
	if err != nil || peer.UID != os.Geteuid() || peer.GID != os.Getegid() {
		t.Errorf("%+v, %v", peer, err)
	}
	if f.denied.Load() != 0 {
		t.Error("denied")
	}
}

func TestLockIsGivenUp(t *testing.T) {
	path := filepath.Join(privateDir(t), "x.lock")
	a, err := acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, again, err := tryLock(path); !again || err != nil {
		t.Errorf("%v %v", again, err)
	}
	got := make(chan *lock)
	go func() { // waited for below
		b, err := acquire(path)
		if err != nil {
			t.Error(err)
		}
		got <- b
	}()
	select {
	case <-got:
		t.Fatal("two have it")
	case <-time.After(20 * time.Millisecond):
	}
	a.release()
	(<-got).release()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
