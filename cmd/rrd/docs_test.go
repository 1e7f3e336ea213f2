//go:build unix

package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

const root = "../../"

// document reads a document of the repository.
func document(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(root + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// block takes the only code block of a language out of a document.
func block(t *testing.T, name, language string) string {
	t.Helper()
	_, b, ok := strings.Cut(document(t, name), "\n```"+language+"\n")
	b, rest, closed := strings.Cut(b, "\n```\n")
	if !ok || !closed || strings.Contains(rest, "\n```"+language+"\n") {
		t.Fatalf("%s does not hold exactly one block of %s", name, language)
	}
	return b + "\n"
}

// The file in docs/operation.md is legal and leaves out no key.
func TestDocumentedFile(t *testing.T) {
	const path = "/etc/rrd.toml"
	text := block(t, "docs/operation.md", "toml")
	files := map[string]string{path: text, "/etc/app.env": "TOKEN=1\n"}
	c, _, err := testHost(files).parseConfig([]string{"--config", path}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) > 0 {
		t.Errorf("warns: %q", c.Warnings)
	}
	if want := []string{"/usr/local/bin/app", "--id={slot}"}; !slices.Equal(c.Command, want) {
		t.Errorf("command %q, want %q", c.Command, want)
	}
	if want := []string{"TOKEN=1", "DATA=/srv/app/data/{slot}"}; !slices.Equal(c.Env, want) {
		t.Errorf("env %q, want %q", c.Env, want)
	}
	found, err := parseFile(path, text)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range fileKeys() {
		if _, ok := found[key]; !ok {
			t.Errorf("%q is not in the file", key)
		}
	}
}

// flagRow is a row of the tables of flags: names, then default and meaning.
var flagRow = regexp.MustCompile("(?m)^\\| `--([a-z-]+)`(?:, `-([a-z])`)? \\|(?: (?:`([^`]*)`)?[^|]*\\|)?.*$")

func TestDocumentedFlags(t *testing.T) {
	rows := map[string][]string{}
	for _, m := range flagRow.FindAllStringSubmatch(document(t, "docs/operation.md"), -1) {
		if rows[m[1]] != nil {
			t.Errorf("--%s has two rows", m[1])
		}
		rows[m[1]] = m
	}
	newFlagSet().VisitAll(func(f *pflag.Flag) {
		m := rows[f.Name]
		delete(rows, f.Name)
		if m == nil {
			t.Errorf("--%s has no row", f.Name)
			return
		}
		if m[2] != f.Shorthand {
			t.Errorf("--%s is short -%s, documented -%s", f.Name, f.Shorthand, m[2])
		}
		if s := findSetting(f.Name); s != nil && s.def != nil && m[3] != s.def[0] {
			t.Errorf("--%s: default %q, documented %q", f.Name, s.def[0], m[3])
		}
	})
	for name := range rows {
		t.Errorf("--%s is documented and no flag", name)
	}
}

// foreignFlags are of the programs that docs/node.md compares rrd with, and of Node.
var foreignFlags = words("node-args wait-ready kill-timeout max-memory-restart max-old-space-size import port watch " +
	"inspect inspect-brk inspect-wait inspect-port run watch-path")

// Flags that are only mentioned must exist too. Other programs' flags do not
// belong into these documents, save one.
func TestMentionedFlagsExist(t *testing.T) {
	mention := regexp.MustCompile("(?:^|[ `(])--([a-z][a-z-]+)")
	for _, name := range []string{"README.md", "CHANGELOG.md", "docs/operation.md", "docs/architecture.md", "docs/metrics.md", "docs/protocol.md", "docs/node.md"} {
		for i, line := range strings.Split(document(t, name), "\n") {
			if strings.Contains(line, "rrdctl") {
				continue // it has flags of its own
			}
			for _, m := range mention.FindAllStringSubmatch(line, -1) {
				if newFlagSet().Lookup(m[1]) == nil && newCompareFlagSet().Lookup(m[1]) == nil && !(name == "docs/node.md" && slices.Contains(foreignFlags, m[1])) {
					t.Errorf("%s:%d: there is no flag --%s", name, i+1, m[1])
				}
			}
		}
	}
}

// The table of log events has what the code logs, and nothing else.
func TestDocumentedEvents(t *testing.T) {
	_, table, _ := strings.Cut(document(t, "docs/operation.md"), "\n## Log\n")
	table, _, _ = strings.Cut(table, "\n## ")
	documented := map[string]bool{}
	for _, row := range regexp.MustCompile(`(?m)^\|([^|]*)\|`).FindAllStringSubmatch(table, -1) {
		for _, name := range regexp.MustCompile("`([a-z._]+)`").FindAllStringSubmatch(row[1], -1) {
			documented[name[1]] = true
		}
	}
	logged := map[string]bool{}
	for _, dir := range []string{".", root + "dispatcher"} {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			if !strings.HasSuffix(name, "_test.go") {
				eventsOf(t, name, logged)
			}
		}
	}
	if len(logged) < 20 {
		t.Fatalf("only %d events found in the code: is the search broken?", len(logged))
	}
	for name := range logged {
		if !documented[name] {
			t.Errorf("event %q is logged and not documented", name)
		}
	}
	for name := range documented {
		if !logged[name] {
			t.Errorf("event %q is documented and not logged", name)
		}
	}
}

// eventsOf finds Str("event", NAME) and logListener(NAME, ...).
func eventsOf(t *testing.T, path string, events map[string]bool) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	constant := func(e ast.Expr) string {
		if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			s, _ := strconv.Unquote(lit.Value)
			return s
		}
		return ""
	}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		switch {
		case !ok || len(call.Args) != 2:
		case sel.Sel.Name == "Str" && constant(call.Args[0]) == "event" && constant(call.Args[1]) != "":
			events[constant(call.Args[1])] = true
		case sel.Sel.Name == "logListener":
			events[constant(call.Args[0])] = true
		}
		return true
	})
}

func TestDocumentedExitCodes(t *testing.T) {
	_, table, _ := strings.Cut(document(t, "docs/operation.md"), "\n## Exit codes\n")
	for _, code := range []int{exitOK, exitFailure, exitUsage, exitNotReady} {
		if !strings.Contains(table, "\n| "+strconv.Itoa(code)+" | ") {
			t.Errorf("exit code %d has no row", code)
		}
	}
}

// The worker in README.md compiles.
func TestDocumentedWorker(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte(block(t, "README.md", "go")), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "app"), source).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// Links between the documents lead to files and headings that exist.
func TestLinksInDocuments(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]*)(#[^):]*)?\)`)
	documents, err := filepath.Glob(root + "docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(documents, root+"README.md") {
		name := strings.TrimPrefix(path, root)
		text := document(t, name)
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, heading := name, m[2]
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(name), m[1])
			}
			if _, err := os.Stat(root + target); err != nil {
				t.Errorf("%s links to %s: %v", name, m[0], err)
			} else if heading != "" && !slices.Contains(headings(document(t, target)), heading) {
				t.Errorf("%s links to %s, and %s has no such heading", name, m[0], target)
			}
		}
	}
}

// headings are the anchors that a document's headings make.
func headings(text string) (anchors []string) {
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		a := strings.ToLower(strings.ReplaceAll(m[1], " ", "-"))
		anchors = append(anchors, "#"+regexp.MustCompile(`[^a-z0-9_-]`).ReplaceAllString(a, ""))
	}
	return anchors
}
