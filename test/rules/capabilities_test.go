package rules

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// ancestors are the sections of docs/capabilities.md: a letter and how many rows.
var ancestors = []struct {
	letter string
	rows   int
}{{"C", 10}, {"N", 57}, {"H", 19}, {"D", 31}, {"S", 11}, {"P", 16}}

// Every capability has its row, in order, and the row an answer: a test that
// exists, or a sentence.
func TestCapabilities(t *testing.T) {
	text, err := os.ReadFile("../../docs/capabilities.md")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, a := range ancestors {
		for i := range a.rows {
			want = append(want, fmt.Sprint(a.letter, i+1))
		}
	}
	rows := regexp.MustCompile(`(?m)^\| ([A-Z]\d+) \| ([^|]+) \| ([^|]+) \|$`).FindAllStringSubmatch(string(text), -1)
	for i, row := range rows {
		if i >= len(want) || row[1] != want[i] {
			t.Fatalf("row %d is %s; the rows are %s, in this order", i+1, row[1], want)
		}
	}
	if len(rows) != len(want) {
		t.Fatalf("%d rows, want %d: the one after %s is missing or is no row of three columns", len(rows), len(want), want[len(rows)-1])
	}
	named := regexp.MustCompile("`([a-z/]+) (Test[A-Za-z0-9_]+)`")
	sentence := regexp.MustCompile(`^(Differently|Later): [^:]{3,}`)
	for _, row := range rows {
		tests := named.FindAllStringSubmatch(row[3], -1)
		if len(tests) == 0 && !sentence.MatchString(row[3]) {
			t.Errorf("%s names neither a test nor a reason: %s", row[1], row[3])
		}
		if n := strings.Count(row[3], " Test"); n > len(tests) {
			t.Errorf("%s: a test is not written as `package TestName`: %s", row[1], row[3])
		}
		for _, test := range tests {
			if !hasTest(t, test[1], test[2]) {
				t.Errorf("%s: there is no %s in %s", row[1], test[2], test[1])
			}
		}
	}
}

// hasTest looks for a test in the files of a package, for whatever system.
func hasTest(t *testing.T, pkg, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "..", pkg, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "\nfunc "+name+"(t *testing.T) {") {
			return true
		}
	}
	return false
}
