package pool

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Both ends of the helper's words agree.
func TestHelperArgs(t *testing.T) {
	for _, sp := range []*spec{
		{helper: "/proc/self/exe", argv: []string{"app"}},
		{helper: "h", argv: []string{"--", "status=1", "", "x y"}, nofile: 1024, nofileHard: true, listenPID: true, dir: "a = b",
			credential: &Credential{UID: 1<<32 - 2, GID: 5, Groups: []uint32{7, 8}}},
		{helper: "h", argv: []string{"app"}, credential: &Credential{}},
	} {
		argv := helperArgv(sp, 9)
		if argv[0] != sp.helper || argv[1] != ExecHelperArg {
			t.Errorf("argv %q", argv)
		}
		h, err := parseHelperArgs(argv[2:])
		if err != nil {
			t.Fatal(err)
		}
		want := &helper{status: 9, nofile: sp.nofile, nofileHard: sp.nofileHard, listenPID: sp.listenPID, credential: sp.credential, dir: sp.dir, argv: sp.argv}
		if diff := cmp.Diff(want, h, cmp.AllowUnexported(helper{})); diff != "" {
			t.Errorf("%q (-want +got):\n%s", argv, diff)
		}
	}
}

func TestHelperArgsRefused(t *testing.T) {
	for _, line := range []string{"", "-- app", "status=4", "status=4 --", "status=2 -- app", "status=x -- app",
		"status=4 uid=-1 -- app", "status=4 groups=1,x,2 -- app", "status=4 nofile= -- app", "status=4 more -- app"} {
		if h, err := parseHelperArgs(strings.Fields(line)); err == nil {
			t.Errorf("%q: %+v", line, h)
		}
	}
}

func TestReadStatus(t *testing.T) {
	if err := readStatus(strings.NewReader("")); err != nil {
		t.Error(err)
	}
	err := readStatus(strings.NewReader(fmt.Sprintf("%d set uid\t12\n", int(syscall.EPERM))))
	if !errors.Is(err, syscall.EPERM) || err.Error() != "set uid 12: operation not permitted" {
		t.Error(err)
	}
	err = readStatus(strings.NewReader(fmt.Sprintf("%d set no_new_privs\t\n", int(syscall.EINVAL))))
	if err == nil || err.Error() != "set no_new_privs: invalid argument" {
		t.Error(err)
	}
	if err = readStatus(strings.NewReader("panic: x")); err == nil {
		t.Error("no error for a status of another kind")
	}
}

func TestSameGroups(t *testing.T) {
	for _, tt := range []struct {
		a, b []int
		want bool
	}{
		{nil, nil, true}, {nil, []int{}, true}, {[]int{1, 2}, []int{2, 1, 1}, true},
		{[]int{1}, nil, false}, {[]int{1}, []int{1, 2}, false},
	} {
		if got := sameGroups(tt.a, tt.b); got != tt.want {
			t.Errorf("sameGroups(%v, %v) = %v", tt.a, tt.b, got)
		}
	}
}

func TestFDName(t *testing.T) {
	for name, want := range map[string]string{
		"web": "web", "a b": "a b", "": "unknown", ":80": "unknown", "x\n": "unknown", "né": "unknown",
		strings.Repeat("x", 255): strings.Repeat("x", 255), strings.Repeat("x", 256): "unknown",
	} {
		if got := fdName(name); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
}

func TestSaysReady(t *testing.T) {
	for message, want := range map[string]bool{
		"READY=1": true, "STATUS=x\nREADY=1\n": true, "READY=1\nSTATUS=x": true,
		"": false, "READY=0": false, "XREADY=1": false, "READY=1 ": false, "STATUS=READY=1": false,
	} {
		if got := saysReady(message); got != want {
			t.Errorf("%q: %v", message, got)
		}
	}
}
