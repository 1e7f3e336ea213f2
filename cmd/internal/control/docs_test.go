//go:build unix

package control

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// docs/control.md has every command with its args and the fields of its result,
// in order, and nothing else.
func TestDocumentedCommands(t *testing.T) {
	b, err := os.ReadFile("../../../docs/control.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	_, table, _ := strings.Cut(text, "\n## Commands\n")
	rows := regexp.MustCompile("(?m)^\\| `([a-z.]+)` \\|([^|]*)\\|([^|]*)\\|([^|]*)\\|$").FindAllStringSubmatch(table, -1)
	var names, documented []string
	for _, c := range Commands() {
		names = append(names, c.Name)
	}
	for i, row := range rows {
		documented = append(documented, row[1])
		if i >= len(names) || row[1] != names[i] {
			continue
		}
		c := Commands()[i]
		fields := words(row[2])
		if want := jsonFields(c.Args); !slices.Equal(fields, want) {
			t.Errorf("%s: args %q, documented %q", c.Name, want, fields)
		}
		if strings.Contains(row[4], "the same") || strings.Contains(row[4], "as `workers.list`") || c.Result == nil {
			continue
		}
		for _, f := range jsonFields(c.Result) {
			if !slices.Contains(words(row[4]), f) {
				t.Errorf("%s: the field %s of the result is not documented", c.Name, f)
			}
		}
	}
	if !slices.Equal(names, documented) {
		t.Errorf("commands\n%q, documented\n%q", names, documented)
	}
	for _, v := range []any{ListenerStatus{}, KernelQueue{}, WorkerStatus{}, OtherProcess{}, SlotEvent{}, Setting{}, FD{}, Killed{}, Reload{}, Histogram{}, Text{}, Data{}} {
		for _, f := range jsonFields(v) {
			if !regexp.MustCompile("[`\"]" + f + "[`\"]").MatchString(table) {
				t.Errorf("%T: the field %s is not documented", v, f)
			}
		}
	}
	for _, code := range Codes() {
		if !strings.Contains(text, "\n| `"+string(code)+"` | ") {
			t.Errorf("the code %s is not documented", code)
		}
	}
}

func words(cell string) (found []string) {
	for _, m := range regexp.MustCompile("`([a-z_]+)`").FindAllStringSubmatch(cell, -1) {
		found = append(found, m[1])
	}
	return found
}

func jsonFields(v any) (names []string) {
	if v == nil {
		return nil
	}
	for i := range reflect.TypeOf(v).NumField() {
		name, _, _ := strings.Cut(reflect.TypeOf(v).Field(i).Tag.Get("json"), ",")
		names = append(names, name)
	}
	return names
}

// The limits are as documented.
func TestDocumentedLimits(t *testing.T) {
	b, err := os.ReadFile("../../../docs/control.md")
	if err != nil {
		t.Fatal(err)
	}
	if MaxLine != 65536 || MaxClients != 16 || MaxIdle.Seconds() != 5 || WriteTimeout.Seconds() != 30 || MaxReply != 16<<20 {
		t.Error("a limit has changed: change docs/control.md, and this")
	}
	for _, want := range []string{"65536 bytes", "| 16 |", "| 5 s from", "| 30 s |", "| 16 MiB |"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%q is not in docs/control.md", want)
		}
	}
}
