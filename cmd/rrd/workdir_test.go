//go:build unix

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestWorkDir(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	first, second, link := filepath.Join(top, "r1"), filepath.Join(top, "r2"), filepath.Join(top, "current")
	flip := func(to string) {
		t.Helper()
		_ = os.Remove(link)
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{first, second} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	flip(first)
	t.Chdir(first)
	for pwd, want := range map[string]string{
		link:                    link,
		first:                   first,
		second:                  first, // another directory
		"current":               first,
		first + "/../current":   first,
		filepath.Join(top, "x"): first,
		"":                      first,
	} {
		if got := findWorkDir([]string{"PWD=" + pwd}).path; got != want {
			t.Errorf("PWD=%s: %s, want %s", pwd, got, want)
		}
	}
	w := findWorkDir([]string{"PWD=" + link})
	here := func(want string) {
		t.Helper()
		got, err := os.Readlink("/proc/self/cwd")
		if err == nil && got != want {
			t.Errorf("in %s, want %s", got, want)
		}
	}
	flip(second)
	if err := os.Remove(first); err != nil { // the old release is deleted
		t.Fatal(err)
	}
	if err := w.enter(); err != nil {
		t.Error(err)
	}
	here(second)
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	for command, fails := range map[string]bool{"./app": true, "bin/app": true, "app": false, "/srv/app": false, "": false} {
		c := &config{}
		if command != "" {
			c.Command = []string{command}
		}
		err := w.enterToSpawn(c)
		if (err != nil) != fails {
			t.Errorf("%q: %v", command, err)
		}
		if err != nil && !strings.Contains(err.Error(), link) {
			t.Errorf("the error does not name the directory: %v", err)
		}
		c.Chdir = top
		if err := w.enterToSpawn(c); err != nil {
			t.Errorf("%q with --chdir: %v", command, err)
		}
	}
	here(second)
	if err := (&workDir{}).enter(); err != nil {
		t.Error(err)
	}
}
