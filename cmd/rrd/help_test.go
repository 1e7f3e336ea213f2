//go:build unix

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/pflag"
)

func TestHelpFitsOneScreen(t *testing.T) {
	lines := strings.Split(helpText, "\n")
	if len(lines) > 50 {
		t.Errorf("%d lines", len(lines))
	}
	for _, l := range lines {
		if utf8.RuneCountInString(l) > 80 || strings.Contains(l, "\t") {
			t.Errorf("too wide: %s", l)
		}
	}
}

func TestHelpNamesEveryFlagAndDefault(t *testing.T) {
	newFlagSet().VisitAll(func(f *pflag.Flag) {
		mention := regexp.MustCompile(`(?m)(^|[ ,])--` + f.Name + `([ ,]|$)`)
		if len(mention.FindAllString(helpText, -1)) == 0 {
			t.Errorf("--%s is not in the help text", f.Name)
		}
		if f.Shorthand != "" && !strings.Contains(helpText, "-"+f.Shorthand) {
			t.Errorf("-%s is not in the help text", f.Shorthand)
		}
	})
	for _, s := range settings {
		if len(s.def) == 0 {
			continue
		}
		// Flags that share a line have their defaults there in the same order.
		if !regexp.MustCompile(`--` + s.name + ` .*\(([^)]+, )?` + regexp.QuoteMeta(s.def[0]) + `(, [^)]+)?\)`).MatchString(helpText) {
			t.Errorf("the default %q of --%s is not in the help text", s.def[0], s.name)
		}
	}
	for _, m := range regexp.MustCompile(`--([a-z][a-z-]*)`).FindAllStringSubmatch(helpText, -1) {
		if newFlagSet().Lookup(m[1]) == nil {
			t.Errorf("--%s is in the help text only", m[1])
		}
	}
}

// Every default is legal, which no other test sees for those behind "auto".
func TestDefaultsAreLegal(t *testing.T) {
	for _, s := range settings {
		if len(s.def) == 0 {
			continue
		}
		if err := s.apply(testHost(nil), &config{}, s.def); err != nil {
			t.Errorf("--%s: %v", s.name, err)
		}
	}
}

func TestVersion(t *testing.T) {
	var out strings.Builder
	if err := writeVersion(&out); err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`^rrd \S+\ncommit: \S+\ngo: ` + regexp.QuoteMeta(runtime.Version()+" "+runtime.GOOS+"/"+runtime.GOARCH) +
		`\nkernel: .+\nfeatures: pidfd (yes|no), close_range (yes|no), SO_PASSRIGHTS (yes|no)\n$`)
	if !want.MatchString(out.String()) {
		t.Errorf("%q", out.String())
	}
}

// On systems without unix sockets that pass descriptors there must be exactly
// one file to compile, so that there is exactly one error.
func TestEveryFileIsConstrainedToUnix(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if f != "unsupported.go" && !strings.HasSuffix(f, "_linux.go") && !strings.HasSuffix(f, "_linux_test.go") && !strings.HasPrefix(string(data), "//go:build unix") {
			t.Errorf("%s does not start with //go:build unix", f)
		}
	}
}
