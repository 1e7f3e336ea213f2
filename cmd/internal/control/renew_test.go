//go:build unix

package control

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func renews(t *testing.T, l *Listener, want error) {
	t.Helper()
	if why, err := l.Renew(); !errors.Is(why, want) || err != nil {
		t.Fatalf("renewed because of %v (%v), want %v", why, err, want)
	}
}

func pings(t *testing.T, c *Client) {
	t.Helper()
	if _, err := c.Call(t.Context(), "echo", map[string]string{"text": "x"}, nil); err != nil {
		t.Error(err)
	}
}

func TestRenew(t *testing.T) {
	path := filepath.Join(privateDir(t), "c.sock")
	l, err := Listen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, s := newFake()
	stop := serving(t, s, l)
	first := dial(t, path)
	renews(t, l, nil)
	for range 2 {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		renews(t, l, ErrRemoved)
		renews(t, l, nil)
		pings(t, dial(t, path))
	}
	pings(t, first)
	if info, err := os.Lstat(path); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v %v", info, err)
	}
	_ = first.Close()
	stop()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is left: %v", err)
	}
	renews(t, l, nil)
}

func TestRenewLeavesALiveSocketAlone(t *testing.T) {
	path := filepath.Join(privateDir(t), "c.sock")
	l, err := Listen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if why, err := l.Renew(); !errors.Is(why, ErrReplaced) || !errors.Is(err, ErrInUse) {
		t.Errorf("%v: %v", why, err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the other socket was harmed: %v", err)
	}
	_ = c.Close()
	_ = other.Close()
	renews(t, l, ErrRemoved) // Close has removed it
}

// The directory that was made for the socket is made again with it.
func TestRenewMakesItsDirectory(t *testing.T) {
	dir := filepath.Join(privateDir(t), "rrd")
	l, err := listenIn(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	renews(t, l, ErrRemoved)
	c, err := net.Dial("unix", l.Path())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}

// A file that has come in the place of ours is not ours, also in the next image.
func TestInheritKnowsTheFile(t *testing.T) {
	path := filepath.Join(privateDir(t), "c.sock")
	l, err := Listen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.socket().File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	next, err := Inherit(f, path, l.File(), l.Made(), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = l.Close(), next.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the other file was removed: %v", err)
	}
}
