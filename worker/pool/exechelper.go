package pool

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// ExecHelperArg is the hidden first argument that makes main call ExecHelper.
const ExecHelperArg = "__rrd-exec"

// The exec helper is this program again, started in place of the command. It sets
// what package os cannot set for a child (LISTEN_PID, limits, signal mask and
// dispositions, no_new_privs), and becomes the command by exec in the same process.
// The command's environment is the helper's own; everything else is in its words:
//
//	__rrd-exec status=4 nofile=1024 [nofile-hard] [listen-pid] [uid=1 gid=1 groups=1,2] [dir=PATH] -- COMMAND [ARG...]
//
// status is the descriptor of a pipe. The exec closes it; before, the helper writes
// at most one line into it, "ERRNO STEP\tNAME", for a SpawnError, and exits with 127.

// helperArgv returns the words of the helper for sp.
func helperArgv(sp *spec, statusFD int) []string {
	argv := []string{sp.helper, ExecHelperArg,
		"status=" + strconv.Itoa(statusFD), "nofile=" + strconv.FormatUint(sp.nofile, 10)}
	if sp.nofileHard {
		argv = append(argv, "nofile-hard")
	}
	if sp.listenPID {
		argv = append(argv, "listen-pid")
	}
	if c := sp.credential; c != nil {
		groups := make([]string, len(c.Groups))
		for i, g := range c.Groups {
			groups[i] = strconv.FormatUint(uint64(g), 10)
		}
		argv = append(argv, fmt.Sprintf("uid=%d", c.UID), fmt.Sprintf("gid=%d", c.GID),
			"groups="+strings.Join(groups, ","))
	}
	if sp.dir != "" {
		argv = append(argv, "dir="+sp.dir)
	}
	return append(append(argv, "--"), sp.argv...)
}

// readStatus returns nil when the helper's end of the pipe was closed without a word.
func readStatus(r io.Reader) error {
	b, err := io.ReadAll(io.LimitReader(r, 8192))
	if err != nil || len(b) == 0 {
		return err
	}
	number, what, _ := strings.Cut(strings.TrimSuffix(string(b), "\n"), " ")
	step, name, _ := strings.Cut(what, "\t")
	n, err := strconv.Atoi(number)
	if err != nil {
		return fmt.Errorf("read status of exec helper: %q", b)
	}
	return &SpawnError{Step: step, Name: name, Err: syscall.Errno(n)}
}

// ExecHelper is the exec helper; args are those behind ExecHelperArg. It returns only if
// the command could not be started, with the exit code for the process.
func ExecHelper(args []string) int {
	// Some of what is set belongs to a thread and is inherited from the one
	// that calls exec.
	runtime.LockOSThread()
	h, err := parseHelperArgs(args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "rrd: %s is for rrd's own use: %v\n", ExecHelperArg, err)
		return 2
	}
	syscall.CloseOnExec(h.status)
	err = h.run()
	var se *SpawnError
	if !errors.As(err, &se) {
		se = &SpawnError{Step: "prepare", Name: fmt.Sprint(err), Err: syscall.EINVAL}
	}
	var errno syscall.Errno
	if !errors.As(se.Err, &errno) {
		errno = syscall.EINVAL
	}
	// A master that is gone does not read it: the exit code says it as well.
	_, _ = syscall.Write(h.status, fmt.Appendf(nil, "%d %s\t%s\n", int(errno), se.Step, se.Name))
	return 127
}

type helper struct {
	status     int
	nofile     uint64
	nofileHard bool
	listenPID  bool
	credential *Credential
	dir        string
	argv       []string
}

func parseHelperArgs(args []string) (*helper, error) {
	h := &helper{status: -1}
	var c Credential
	for i, arg := range args {
		if arg == "--" {
			h.argv = args[i+1:]
			break
		}
		var err error
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "status":
			h.status, err = strconv.Atoi(value)
		case "nofile":
			h.nofile, err = strconv.ParseUint(value, 10, 64)
		case "nofile-hard":
			h.nofileHard = true
		case "listen-pid":
			h.listenPID = true
		case "uid":
			c.UID, err = parseID(value)
			h.credential = &c
		case "gid":
			c.GID, err = parseID(value)
		case "groups":
			for word := range strings.SplitSeq(value, ",") {
				if word != "" && err == nil {
					var g uint32
					g, err = parseID(word)
					c.Groups = append(c.Groups, g)
				}
			}
		case "dir":
			h.dir = value
		default:
			err = errors.New("unknown word")
		}
		if err != nil {
			return nil, fmt.Errorf("%q: %w", arg, err)
		}
	}
	if h.status < 3 || len(h.argv) == 0 {
		return nil, errors.New("status=FD and a command are required")
	}
	return h, nil
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err
}

// run returns only with the error of the step that failed.
func (h *helper) run() error {
	// The limit first, as raising it may need the rights that go next.
	if h.nofile > 0 {
		if err := setNoFile(h.nofile, h.nofileHard); err != nil {
			return &SpawnError{"set RLIMIT_NOFILE", strconv.FormatUint(h.nofile, 10), err}
		}
	}
	if err := h.become(); err != nil {
		return err
	}
	if h.dir != "" {
		if err := syscall.Chdir(h.dir); err != nil {
			return &SpawnError{"chdir", fmt.Sprintf("%q", h.dir), err}
		}
	}
	env := os.Environ()
	if h.listenPID {
		env = slices.DeleteFunc(env, func(kv string) bool { return strings.HasPrefix(kv, envListenPID+"=") })
		env = append(env, envListenPID+"="+strconv.Itoa(os.Getpid()))
	}
	if err := resetThread(); err != nil {
		return err
	}
	return &SpawnError{"exec", fmt.Sprintf("%q", h.argv[0]), execPath(h.argv, env)}
}

// setNoFile sets the soft limit, and the hard one where it is lower or hard is
// asked for: some runtimes, Go's among them, raise the soft one to it. Package syscall is
// needed for it: knowing of this call it will not put the limit this process had
// before Go raised it back in place at the exec.
func setNoFile(n uint64, hard bool) error {
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
		return err
	}
	if hard {
		lim.Max = 0
	}
	return syscall.Setrlimit(syscall.RLIMIT_NOFILE, limited(lim, n))
}

// become takes on the credential: groups, then gid, then uid, each for good, since
// setuid(2) by root sets the saved ID too. Package syscall does it on all threads.
func (h *helper) become() error {
	c := h.credential
	if c == nil {
		return nil
	}
	groups := make([]int, len(c.Groups))
	for i, g := range c.Groups {
		groups[i] = int(g)
	}
	// Somebody who may not change them may still ask for what he has.
	if have, err := syscall.Getgroups(); err != nil || !sameGroups(have, groups) {
		if err := syscall.Setgroups(groups); err != nil {
			return &SpawnError{"set groups", fmt.Sprint(c.Groups), err}
		}
	}
	if err := syscall.Setgid(int(c.GID)); err != nil {
		return &SpawnError{"set gid", strconv.Itoa(int(c.GID)), err}
	}
	if err := syscall.Setuid(int(c.UID)); err != nil {
		return &SpawnError{"set uid", strconv.Itoa(int(c.UID)), err}
	}
	if c.UID != 0 {
		if err := dropCapabilities(); err != nil {
			return &SpawnError{"drop capabilities", "", err}
		}
	}
	return nil
}

func sameGroups(a, b []int) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(slices.Compact(a), slices.Compact(b))
}

// execPath is execvp(3): a name without a slash is tried in each directory of PATH of
// the environment it is given. It returns only with an error.
func execPath(argv, env []string) error {
	name := argv[0]
	if strings.Contains(name, "/") {
		return syscall.Exec(name, argv, env)
	}
	path := "/usr/local/bin:/usr/bin:/bin"
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	var found error = syscall.ENOENT
	for dir := range strings.SplitSeq(path, ":") {
		if dir == "" {
			dir = "."
		}
		switch err := syscall.Exec(dir+"/"+name, argv, env); err {
		case syscall.ENOENT, syscall.ENOTDIR:
		case syscall.EACCES:
			found = err // unless a later one does
		default:
			return err
		}
	}
	return found
}
