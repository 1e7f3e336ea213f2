//go:build unix

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// workDir is the directory that rrd was started in, by the name that the user knows. A
// release is often reached by a link, and the process stays in the old release when
// that link is changed. So the name is resolved again at each reload and each spawn.
// Relative paths, hooks and workers without --chdir then follow it.
type workDir struct {
	path string // "": not known, so the process stays where it is

	mu sync.Mutex // held while the directory is changed
}

// findWorkDir returns $PWD if that names the present directory, by device and inode, or
// else the kernel's name for it.
func findWorkDir(environ []string) *workDir {
	if pwd, ok := lookupVariable(environ, "PWD"); ok && filepath.IsAbs(pwd) && filepath.Clean(pwd) == pwd {
		if named, err := os.Stat(pwd); err == nil && isHere(named) {
			return &workDir{path: pwd}
		}
	}
	path, err := os.Getwd()
	if err != nil || !filepath.IsAbs(path) {
		return &workDir{}
	}
	return &workDir{path: path}
}

// isHere reports whether a directory is the present one.
func isHere(dir os.FileInfo) bool {
	here, err := os.Stat(".")
	return err == nil && os.SameFile(here, dir)
}

// enter goes to where the name leads now.
func (w *workDir) enter() error {
	if w.path == "" {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	named, err := os.Stat(w.path)
	if err == nil && isHere(named) {
		return nil // also where only root may go
	}
	if err == nil {
		err = os.Chdir(w.path)
	}
	if err != nil {
		return fmt.Errorf("the working directory %q, where rrd was started, cannot be entered: %w: make it again, or use --chdir", w.path, reason(err))
	}
	return nil
}

// enterToSpawn is enter before a spawn. A directory that is gone fails the spawn only if
// the command is found from there: another command may do without it.
func (w *workDir) enterToSpawn(c *config) error {
	err := w.enter()
	if err == nil || c.builtIn() || c.Chdir != "" || filepath.IsAbs(c.Command[0]) || !strings.Contains(c.Command[0], "/") {
		return nil
	}
	return err
}

// parseAgain reads the configuration anew, from where the working directory leads now.
func (m *master) parseAgain(h *host, args []string) (*config, error) {
	gone := m.workDir.enter()
	c, _, err := h.parseConfig(args, m.environ)
	switch {
	case gone == nil:
		return c, err
	case err != nil, !c.builtIn() && c.Chdir == "":
		return nil, gone
	}
	return c, nil
}
