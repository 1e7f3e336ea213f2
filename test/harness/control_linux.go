package harness

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// Ctl is what a run of rrdctl came to.
type Ctl struct {
	Code     int
	Out, Err string
}

// Control returns the path of the control socket, of a master with
// Options.Control.
func (m *Master) Control() string { return filepath.Join(m.dir, "control.sock") }

// Ctl runs rrdctl with the master's control socket. It fails the test if it does
// not end in time.
func (m *Master) Ctl(args ...string) Ctl {
	m.t.Helper()
	return m.CtlAs(nil, args...)
}

// CtlAs is Ctl with another identity; nil: this process's.
func (m *Master) CtlAs(as *syscall.Credential, args ...string) Ctl {
	m.t.Helper()
	return RunCtl(m.t, as, append([]string{"--control", m.Control()}, args...)...)
}

// RunCtl runs rrdctl.
func RunCtl(t testing.TB, as *syscall.Credential, args ...string) Ctl {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, Build(t, "", "rrd/cmd/rrdctl"), args...)
	cmd.Env = cleanEnviron()
	cmd.Dir = "/" // which everybody may enter
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Errorf("rrdctl %q: %v", args, err)
		return Ctl{Code: -1}
	}
	if ctx.Err() != nil {
		t.Errorf("rrdctl %q has not ended in %v\n%s%s", args, 2*Patience, out.String(), errs.String())
	}
	return Ctl{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}
