package rules

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The documents that promise something name the tests that show it: each of those
// exists, and each row of the fault matrix that they name is a test.
func TestPromisesNameTests(t *testing.T) {
	named := regexp.MustCompile("`(?:([a-z/]+) )?(Test[A-Za-z0-9_]+)`")
	row := regexp.MustCompile(`\bF\d\d\b`)
	end := endToEnd(t)
	for _, name := range []string{"failure-semantics.md", "SECURITY.md"} {
		b, err := os.ReadFile(filepath.Join("..", "..", "docs", name))
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		tests := named.FindAllStringSubmatch(text, -1)
		if len(tests) < 5 {
			t.Errorf("%s names only %d tests: is the pattern of this test still right?", name, len(tests))
		}
		for _, m := range tests {
			if m[1] == "" && !strings.Contains(end, "\nfunc "+m[2]+"(t *testing.T) {") || m[1] != "" && !hasTest(t, m[1], m[2]) {
				t.Errorf("%s: there is no %s", name, m[0])
			}
		}
		for _, id := range row.FindAllString(text, -1) {
			if !strings.Contains(end, "\nfunc Test"+id) {
				t.Errorf("%s: no test bears the number %s", name, id)
			}
		}
	}
}

// endToEnd returns the tests of package test.
func endToEnd(t *testing.T) string {
	t.Helper()
	files, err := filepath.Glob("../*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString("\n")
		all.Write(b)
	}
	return all.String()
}
