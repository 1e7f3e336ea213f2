//go:build unix

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// maxFile bounds what is read of a file; a configuration has a few lines.
const maxFile = 1 << 20

// commandKey is the one key of the file that is no flag.
const commandKey = "command"

func readConfigFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = &os.PathError{Op: "read", Path: path, Err: fmt.Errorf("more than %d bytes", maxFile)}
	}
	return data, err
}

// readFileSettings reads the file that --config names: its settings with
// FILE:LINE as origin, and its command.
func (h *host) readFileSettings(from setValue) (map[string]setValue, []string, error) {
	path := from.values[len(from.values)-1]
	data, err := h.readFile(path)
	if err != nil {
		return nil, nil, located("config", from.origin, badValue(path, "cannot be read: %v", reason(err)))
	}
	found, err := parseFile(path, string(data))
	if err != nil {
		return nil, nil, err
	}
	command := found[commandKey]
	delete(found, commandKey)
	return found, command.values, nil
}

// reason is err without the path, which is named beside it already.
func reason(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// parseFile turns TOML into settings. Its errors say FILE:LINE.
func parseFile(path, data string) (map[string]setValue, error) {
	if line, err := checkShape(data); err != nil {
		at := oneWord(path)
		if line > 0 {
			at = fmt.Sprintf("%s:%d", at, line)
		}
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	var keys map[string]toml.Primitive
	md, err := toml.Decode(data, &keys)
	if err != nil {
		line := 0
		var pe toml.ParseError
		if errors.As(err, &pe) {
			line, err = pe.Position.Line, errors.New(pe.Message)
		}
		return nil, fmt.Errorf("%s:%d: %s: correct the TOML", oneWord(path), line, oneWord(err.Error()))
	}
	found := map[string]setValue{}
	for _, key := range md.Keys() {
		name := key[0]
		if _, done := found[name]; done {
			continue // inside a table, which was judged as a whole
		}
		value, line := locate(&md, keys[name])
		at := oneWord(path)
		if line > 0 { // a table that is only there by dotted keys has none
			at = fmt.Sprintf("%s:%d", at, line)
		}
		if len(name) > maxKey {
			return nil, fmt.Errorf("%s: a key has more than %d bytes: correct or remove it", at, maxKey)
		}
		s := findSetting(name)
		if name != commandKey && (s == nil || s.name == "config") {
			return nil, fmt.Errorf("%s: %q is no setting%s: correct or remove it", at, name, suggestion(name, fileKeys(), ""))
		}
		values, err := fileValues(name, value)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", at, name, err)
		}
		found[name] = setValue{values, at}
	}
	return found, nil
}

func fileKeys() []string {
	keys := []string{commandKey}
	for _, s := range settings {
		if s.name != "config" {
			keys = append(keys, s.name)
		}
	}
	return keys
}

// captured takes a value out of the decoder and stops it there.
type captured struct{ value any }

var errCaptured = errors.New("captured")

func (c *captured) UnmarshalTOML(v any) error {
	c.value = v
	return errCaptured
}

// locate returns a top-level value and its line. The decoder tells positions
// only in errors of an Unmarshaler, so it is given one that always fails.
func locate(md *toml.MetaData, p toml.Primitive) (any, int) {
	var c captured
	var pe toml.ParseError
	errors.As(md.PrimitiveDecode(p, &c), &pe)
	return c.value, pe.Position.Line
}

// fileValues spells a value of the file as a flag would have it, so that one
// piece of code judges both.
func fileValues(name string, v any) ([]string, error) {
	isList := name == commandKey || findSetting(name).list
	switch v := v.(type) {
	case []any:
		if !isList {
			return nil, errors.New("is a list, but takes one value")
		}
		if len(v) == 0 {
			return nil, errors.New("is an empty list: fill or remove it")
		}
		values := make([]string, len(v))
		for i, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, fmt.Errorf("entry %d of the list is no string: put it in quotes", i+1)
			}
			values[i] = s
		}
		if name == commandKey && values[0] == "" {
			return nil, errors.New(`"" is no command: name a program`)
		}
		return values, nil
	case map[string]any:
		if name != "env" {
			return nil, errors.New("is a table, but takes no keys")
		}
		return envTable(v)
	case string:
		if name == commandKey {
			return nil, fmt.Errorf(`is a string: write a list of words, as in command = [%s]`, quotedWords(v))
		}
		return one(v), nil
	}
	s, ok := scalar(v)
	if !ok || isList {
		return nil, errors.New("is no string: put it in quotes")
	}
	return one(s), nil
}

// scalar spells a number or a boolean, so that workers = 4 needs no quotes.
func scalar(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case int64:
		return strconv.FormatInt(v, 10), true
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64), true
	case bool:
		return strconv.FormatBool(v), true
	}
	return "", false
}

// envTable spells [env] as the list that --env would give, in order of names.
func envTable(table map[string]any) ([]string, error) {
	var values []string
	for k, v := range table {
		s, ok := scalar(v)
		if !ok {
			return nil, fmt.Errorf("%q is no string: put it in quotes", k)
		}
		if strings.Contains(k, "=") {
			return nil, fmt.Errorf("%q contains =, which no variable's name can", k)
		}
		values = append(values, k+"="+s)
	}
	slices.Sort(values)
	return values, nil
}

func quotedWords(v string) string {
	words := strings.Fields(v)
	for i, w := range words {
		words[i] = quoted(w)
	}
	return strings.Join(words, ", ")
}
