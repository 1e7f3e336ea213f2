//go:build unix

package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// defaultPath is where the exec helper looks if there is no PATH.
const defaultPath = "/usr/local/bin:/usr/bin:/bin"

// programPath returns the file that the exec helper will run for the first word
// of the command: with slot 0 in place of {slot}, from --chdir, in the PATH that
// the worker gets. Its error names the command.
func (c *config) programPath() (string, error) {
	return c.pathOf(firstWorker.Replace(c.Command[0]))
}

// pathOf is programPath for another program.
func (c *config) pathOf(name string) (string, error) {
	if strings.Contains(name, "/") {
		path := c.fromChdir(name)
		if _, err := exec.LookPath(path); err != nil {
			var ee *exec.Error
			if errors.As(err, &ee) {
				err = reason(ee.Err)
			}
			return "", fmt.Errorf("command %q cannot be run: %w", path, err)
		}
		return path, nil
	}
	for dir := range strings.SplitSeq(c.workerPath(), ":") {
		path := c.fromChdir(cmp.Or(dir, ".") + "/" + name)
		if _, err := exec.LookPath(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("command %q cannot be run: there is no such program in PATH: name its path", name)
}

// fromChdir is where a path with a slash leads in a worker.
func (c *config) fromChdir(path string) string {
	if c.Chdir == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(firstWorker.Replace(c.Chdir), path)
}

// workerPath is the PATH of the first worker.
func (c *config) workerPath() string {
	path := defaultPath
	if v, ok := lookupVariable(c.environ, "PATH"); ok {
		path = v
	}
	if v, ok := lookupVariable(c.Env, "PATH"); ok {
		path = firstWorker.Replace(v)
	}
	return path
}

// lookupVariable returns the last value that environ gives to name.
func lookupVariable(environ []string, name string) (value string, ok bool) {
	for _, kv := range environ {
		if k, v, is := strings.Cut(kv, "="); is && k == name {
			value, ok = v, true
		}
	}
	return value, ok
}

// maxInterpreterLine is how much of a script Linux reads for its first line
// (BINPRM_BUF_SIZE, execve(2)).
const maxInterpreterLine = 256

// readInterpreterLine returns what follows "#!" at the start of a script, or ""
// if path is none, or cannot be read.
func readInterpreterLine(path string) string {
	// Not os.Open alone: opening a fifo would wait for its writer.
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return ""
	}
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	head, err := io.ReadAll(io.LimitReader(f, maxInterpreterLine))
	if err != nil {
		return ""
	}
	line, _, _ := bytes.Cut(head, []byte("\n"))
	rest, ok := bytes.CutPrefix(line, []byte("#!"))
	if !ok {
		return ""
	}
	return strings.TrimSpace(string(rest))
}
