//go:build unix

package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"rrd/dispatcher"
	"rrd/handoff"
)

// activationNames are the variables of socket activation, sd_listen_fds(3).
var activationNames = []string{"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"}

// maxActivation bounds what LISTEN_FDS is believed.
const maxActivation = 4096

// activation owns the descriptors that this process was started with, until a
// listener claims them.
type activation struct {
	files map[int]*os.File
	names map[int]string
	// problem says why there are none although LISTEN_FDS is set.
	problem string
}

// takeActivation takes the descriptors that environ promises to the process
// pid, sets close-on-exec on each and unsets the variables of this process.
// Call it once, before anything else opens descriptors or starts processes,
// and claim afterwards.
func takeActivation(environ []string, pid int) *activation {
	a := takeActivationFrom(environ, pid, handoff.FirstInheritedFD)
	for _, name := range activationNames {
		os.Unsetenv(name)
	}
	return a
}

func takeActivationFrom(environ []string, pid, firstFD int) *activation {
	a := &activation{files: map[int]*os.File{}, names: map[int]string{}}
	env := map[string]string{}
	for _, kv := range environ {
		if name, value, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(name, "LISTEN_") {
			env[name] = value
		}
	}
	fds, ok := env["LISTEN_FDS"]
	if !ok {
		a.problem = "LISTEN_FDS is not set: rrd was not started by a socket unit or the like"
		return a
	}
	n, err := strconv.Atoi(fds)
	if err != nil || n < 0 || n > maxActivation {
		a.problem = fmt.Sprintf("LISTEN_FDS is %q, which is not a number from 0 to %d", fds, maxActivation)
		return a
	}
	if env["LISTEN_PID"] != strconv.Itoa(pid) {
		a.problem = fmt.Sprintf("LISTEN_PID is %q, but this is process %d: what stands between the socket unit and rrd must start it with exec", env["LISTEN_PID"], pid)
		return a
	}
	for fd := firstFD; fd < firstFD+n; fd++ {
		if !passed(fd) {
			a.problem = fmt.Sprintf("LISTEN_FDS is %q, but descriptor %d was not passed to rrd: whoever sets it must pass so many, from %d", fds, fd, firstFD)
			return a
		}
	}
	var names []string
	if env["LISTEN_FDNAMES"] != "" {
		names = strings.Split(env["LISTEN_FDNAMES"], ":")
	}
	for i := range n {
		fd := firstFD + i
		syscall.CloseOnExec(fd)
		a.names[fd] = "unknown" // as sd_listen_fds_with_names(3) has it
		if i < len(names) {
			a.names[fd] = names[i]
		}
		a.files[fd] = os.NewFile(uintptr(fd), "fd:"+a.names[fd])
	}
	return a
}

// passed reports whether fd can be of somebody else: what has no file type is the poller
// of Go's runtime, or the like, which took a number that nobody had.
func passed(fd int) bool {
	var st syscall.Stat_t
	return syscall.Fstat(fd, &st) == nil && st.Mode&syscall.S_IFMT != 0
}

// claim gives each listener of network "fd" its descriptor, which the listener
// owns from then on. After an error everything is closed.
func (a *activation) claim(listen []dispatcher.ListenerConfig) (err error) {
	defer func() {
		if err != nil {
			a.close()
		}
	}()
	for i := range listen {
		ln := &listen[i]
		if ln.Network != "fd" {
			continue
		}
		f, err := a.take(ln.Address)
		if err != nil {
			for j := range listen[:i] {
				if listen[j].Network == "fd" {
					listen[j].File.Close()
					listen[j].File = nil
				}
			}
			return fmt.Errorf("--listen: %w", badValue("fd:"+ln.Address, "%v", err))
		}
		ln.File = f
	}
	return nil
}

// claimKept gives each other listener the socket that was kept for it while there was
// no master: the one of its name, see keepSockets. It closes what is left over, and
// returns the names of that.
func (a *activation) claimKept(listen []dispatcher.ListenerConfig) (unclaimed []string) {
	for i := range listen {
		ln := &listen[i]
		if ln.Network == "fd" {
			continue
		}
		for _, fd := range slices.Sorted(maps.Keys(a.files)) {
			if a.names[fd] == storeName(ln.Name) {
				ln.File = a.files[fd]
				delete(a.files, fd)
				break
			}
		}
	}
	for fd := range a.files {
		unclaimed = append(unclaimed, a.names[fd])
	}
	a.close()
	slices.Sort(unclaimed)
	return slices.Compact(unclaimed)
}

// claim gives the fd: listeners of c their descriptors.
func (c *config) claim(a *activation) error {
	if err := a.claim(c.Listen); err != nil {
		return fmt.Errorf("%w (from %s)", err, c.origin("listen"))
	}
	return nil
}

func (a *activation) close() {
	for fd, f := range a.files {
		f.Close()
		delete(a.files, fd)
	}
}

// take finds a descriptor by number or name and checks that it can be accepted
// on.
func (a *activation) take(name string) (*os.File, error) {
	fd, err := strconv.Atoi(name)
	if err != nil {
		if fd, err = a.named(name); err != nil {
			return nil, err
		}
	}
	if err := checkListening(fd); err != nil {
		return nil, err
	}
	f := a.files[fd]
	delete(a.files, fd)
	if f == nil { // not announced, but inherited all the same
		syscall.CloseOnExec(fd)
		f = os.NewFile(uintptr(fd), "fd:"+name)
	}
	return f, nil
}

func (a *activation) named(name string) (int, error) {
	if a.problem != "" {
		return 0, errors.New("cannot be had: " + a.problem)
	}
	found, all := -1, []string{}
	for fd, n := range a.names {
		all = append(all, n)
		if n != name {
			continue
		}
		if found >= 0 {
			return 0, fmt.Errorf("names several descriptors: use their numbers, fd:%d and fd:%d", min(fd, found), max(fd, found))
		}
		found = fd
	}
	switch {
	case found < 0:
		return 0, fmt.Errorf("is not among LISTEN_FDNAMES=%q: set FileDescriptorName= in the socket unit%s", strings.Join(all, ":"), suggestion(name, all, "fd:"))
	case a.files[found] == nil:
		return 0, errors.New("is claimed by another listener: remove one of them")
	}
	return found, nil
}

// checkListening says what is wrong with fd as a listener.
func checkListening(fd int) error {
	kind, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE)
	switch {
	case errors.Is(err, syscall.EBADF):
		return fmt.Errorf("is not open: nobody passed descriptor %d to rrd", fd)
	case errors.Is(err, syscall.ENOTSOCK):
		return errors.New("is no socket")
	case err != nil:
		return os.NewSyscallError("getsockopt", err)
	case kind != syscall.SOCK_STREAM:
		return errors.New("is no stream socket: for datagrams use udp://ADDRESS")
	}
	listening, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN)
	if err == nil && listening == 0 {
		return errors.New("does not listen: with a socket unit, Accept=no is needed")
	}
	return nil
}
