package pool

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// A pipe becomes the worker's; what has a name, and may be another's, does not.
func TestGivePipe(t *testing.T) {
	needRoot(t)
	r, pipe, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer pipe.Close()
	dir := t.TempDir()
	file, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	named, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer named.Close()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	owner := func(f *os.File) [2]uint32 {
		t.Helper()
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		return [2]uint32{st.Uid, st.Gid}
	}
	for _, f := range []*os.File{file, named, null} {
		before := owner(f)
		givePipe(f, &Credential{UID: 1234, GID: 2345})
		if now := owner(f); now != before {
			t.Errorf("%s belongs to %v, belonged to %v", f.Name(), now, before)
		}
	}
	givePipe(pipe, &Credential{UID: 1234, GID: 2345})
	if now := owner(pipe); now != [2]uint32{1234, 2345} {
		t.Errorf("the pipe belongs to %v", now)
	}
}
