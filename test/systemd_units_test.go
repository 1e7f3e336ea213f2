//go:build linux

package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"rrd/test/harness"
)

// The shipped units, as systemd itself reads them.

const unitsDir = "../docs/deploy/systemd/"

// units copies the units and names the built programs in them, so that systemd finds
// these where an installed rrd would have them.
func units(t *testing.T, strict bool) (dir string) {
	t.Helper()
	needsTool(t, "systemd-analyze")
	dir = t.TempDir()
	installed := strings.NewReplacer(
		"/usr/bin/rrdctl", harness.Build(t, "", "rrd/cmd/rrdctl"),
		"/usr/bin/rrd ", harness.RRD(t)+" ")
	names := []string{"rrd.service", "rrd.socket"}
	if strict {
		names = append(names, "rrd.service.d/strict.conf")
		if err := os.Mkdir(filepath.Join(dir, "rrd.service.d"), 0o755); err != nil { //nolint:gosec // read by another program
			t.Fatal(err)
		}
	}
	for _, name := range names {
		text, err := os.ReadFile(unitsDir + name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(installed.Replace(string(text))), 0o644); err != nil { //nolint:gosec // as above
			t.Fatal(err)
		}
	}
	return dir
}

func analyze(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("systemd-analyze", args...)
	// The trailing colon: and where systemd has its own.
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":", "LC_ALL=C", "SYSTEMD_COLORS=0")
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze %q: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestSystemdUnits(t *testing.T) {
	t.Parallel()
	const most = 2.0 // of systemd's exposure level
	for name, strict := range map[string]bool{"as shipped": false, "strict": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := units(t, strict)
			if out := analyze(t, dir, "verify", filepath.Join(dir, "rrd.service"), filepath.Join(dir, "rrd.socket")); strings.Contains(out, "rrd.") {
				t.Errorf("systemd-analyze verify complains:\n%s", out)
			}
			out := analyze(t, dir, "security", "--offline=true", "--threshold="+strconv.Itoa(int(most*10)), "rrd.service")
			m := regexp.MustCompile(`Overall exposure level for rrd\.service: ([0-9.]+)`).FindStringSubmatch(out)
			if m == nil {
				t.Fatalf("no level in\n%s", out)
			}
			if level, err := strconv.ParseFloat(m[1], 64); err != nil || level > most {
				t.Errorf("the exposure level is %s, at most %.1f is wanted:\n%s", m[1], most, out)
			}
			t.Logf("exposure level %s", m[1])
		})
	}
}

// What the unit relies on.
func TestSystemdUnitSays(t *testing.T) {
	text, err := os.ReadFile(unitsDir + "rrd.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"Type=notify", "ExecReload=/usr/bin/rrdctl reload", "KillMode=mixed", "OOMPolicy=continue", "Restart=on-failure",
		"StartLimitIntervalSec=30", "StartLimitBurst=5",
		"FileDescriptorStoreMax=64", "RuntimeDirectoryPreserve=restart",
	} {
		if !strings.Contains(string(text), "\n"+line+"\n") {
			t.Errorf("rrd.service does not have %q", line)
		}
	}
	// A crash of a Go program, and so a watchdog, has exit code 2.
	if strings.Contains(string(text), "RestartPreventExitStatus") {
		t.Error("rrd.service is not started again after a crash")
	}
}
