//go:build unix

package main

import (
	"strings"
	"testing"
	"time"
)

// Files that are no configuration are refused at once, wherever their weight is: some of
// these took the decoder minutes.
func TestFilesOutOfBounds(t *testing.T) {
	const n = 100_000
	for name, tt := range map[string]struct{ text, says string }{
		"dotted key":                        {strings.Repeat("a.", n) + "b=1\n", ":1: a key has more than 8 parts"},
		"spaced dots":                       {strings.Repeat("a . ", n/2) + "b=1\n", ":1: a key has more than 8 parts"},
		"quoted dots":                       {strings.Repeat(`"a".`, n/2) + "b=1\n", ":1: a key has more than 8 parts"},
		"table":                             {"workers = 1\n[" + strings.Repeat("a.", n) + "b]\n", ":2: a key has more than 8 parts"},
		"lists":                             {"command = " + strings.Repeat("[", n) + strings.Repeat("]", n), ":1: lists and tables"},
		"inline tables":                     {"x = " + strings.Repeat("{a=", n/3) + "1" + strings.Repeat("}", n/3), ":1: lists and tables"},
		"both":                              {"x = " + strings.Repeat("[{a=", n/4), ":1: lists and tables"},
		"lines of a list":                   {"command = [\n" + strings.Repeat("[\n", n/4), ":9: lists and tables"},
		"keys":                              {"[env]\n" + strings.Repeat("a=1\n", n/4), "the file has more than 4096 keys"},
		"list":                              {"command = [" + strings.Repeat(`"a",`, n/4) + "]", ":1: the file has more than 4096 keys"},
		"tables":                            {strings.Repeat("[[a]]\n", n/6), "the file has more than 4096 keys"},
		"long key":                          {strings.Repeat("a", n) + "=1\n", "a key or a number has more than 256 bytes"},
		"long quoted key":                   {`"` + strings.Repeat("a", n) + `" = 1`, "a key or a number has more than 256 bytes"},
		"long table":                        {`["` + strings.Repeat("a", n) + `"]`, "a key has more than 256 bytes"},
		"number":                            {"workers = 1" + strings.Repeat("_1", n), "a key or a number has more than 256 bytes"},
		"bytes":                             {strings.Repeat("#\n", maxConfig/2+1), "is longer than 262144 bytes"},
		"after a comment that ends with CR": {"#\r" + strings.Repeat("a.", n) + "b=1\n", "a key has more than 8 parts"},
		"after a string with quotes":        {`chdir = """a""\"""""` + "\n" + strings.Repeat("a.", n), ":2: a key has more than 8 parts"},
		"after a literal string":            {`chdir = '\'` + "\n" + strings.Repeat("a.", n), ":2: a key has more than 8 parts"},
		"value":                             {`policy = "` + strings.Repeat("a", n) + `"`, "(100002 bytes)"},
	} {
		began := time.Now()
		_, _, err := testHost(map[string]string{"/r.toml": tt.text}).parseConfig(words("--config /r.toml"), nil)
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %.300v, want %q", name, err, tt.says)
		}
		if err != nil && len(err.Error()) > 2000 {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
	}
}

// Brackets, dots and quotes in strings and comments are text.
func TestShapeKnowsStrings(t *testing.T) {
	heavy := strings.Repeat("[.{=,", 5000)
	for _, text := range []string{
		"# " + heavy + "\nworkers = 1\n",
		`chdir = "` + heavy + `\"` + heavy + `"`,
		`chdir = '` + heavy + `\'`,
		`chdir = """` + "\n" + heavy + "\n\"" + heavy + `\""""`,
		`chdir = '''` + heavy + "\n'" + heavy + `'''`,
		"[env]\n" + `"A.B" = "` + heavy + `"`,
	} {
		if line, err := checkShape(text); err != nil {
			t.Errorf("%.40q: line %d: %v", text, line, err)
		}
	}
}

func FuzzFile(f *testing.F) {
	for _, text := range []string{"workers = 2\n[env]\nA.b = \"c\"\n", "x = [[1, {a = '''\n''' }]]", `"""`, `a."b".c = 1_0`, "#\r\n"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		began := time.Now()
		_, err := parseFile("r.toml", text)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("%d bytes took %v: %v", len(text), took, err)
		}
	})
}
