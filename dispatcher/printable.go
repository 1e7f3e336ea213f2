package dispatcher

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Printable spells a name or a path so that it can be a label, a field of a record or a
// word on a terminal: one line of valid UTF-8 without controls. Different names stay
// different: a backslash is doubled, a byte is \xNN, a character \uNNNN. Names of ordinary
// characters are returned as they are.
func Printable(s string) string {
	if isPrintable(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1, r < 0x20, r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '\\':
			b.WriteString(`\\`)
		case !isHarmless(r):
			if r > 0xffff {
				fmt.Fprintf(&b, `\U%08x`, r)
			} else {
				fmt.Fprintf(&b, `\u%04x`, r)
			}
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

func isPrintable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return r == '\\' || !isHarmless(r) })
}

// isHarmless reports whether a terminal shows r as a character and does nothing else. Controls,
// line separators and marks that change the direction of the text are not harmless.
func isHarmless(r rune) bool { return r == ' ' || unicode.IsPrint(r) || r == utf8.RuneError }

// unprintable undoes Printable.
func unprintable(s string) (string, error) {
	if !strings.Contains(s, `\`) {
		return s, nil
	}
	out := make([]byte, 0, len(s))
	for s != "" {
		r, _, rest, err := strconv.UnquoteChar(s, 0)
		if err != nil {
			return "", fmt.Errorf("name %q: %w", s, err)
		}
		if strings.HasPrefix(s, `\x`) {
			out = append(out, byte(r))
		} else {
			out = utf8.AppendRune(out, r)
		}
		s = rest
	}
	return string(out), nil
}

// eachName calls fn for every name and path in a State. JSON has no strings that are not
// UTF-8, and a path can be any bytes.
func (s *State) eachName(fn func(*string)) {
	for i := range s.Listeners {
		ln := &s.Listeners[i]
		for _, p := range []*string{&ln.Name, &ln.Addr, &ln.Asked, &ln.Conf.Name, &ln.Conf.Address} {
			fn(p)
		}
		if ln.Sock != nil {
			fn(&ln.Sock.Path)
			fn(&ln.Sock.Addr)
		}
	}
	for i := range s.Names {
		fn(&s.Names[i].Name)
		fn(&s.Names[i].Address)
	}
	for i := range s.Asked {
		fn(&s.Asked[i].Key)
		fn(&s.Asked[i].Address)
	}
}

// escapeNames escapes all names if one of them does not fit into JSON.
func (s *State) escapeNames() {
	s.eachName(func(name *string) { s.Escaped = s.Escaped || !utf8.ValidString(*name) })
	if s.Escaped {
		s.eachName(func(name *string) { *name = Printable(*name) })
	}
}

// unescapeNames undoes escapeNames.
func (s *State) unescapeNames() (err error) {
	if !s.Escaped {
		return nil
	}
	s.Escaped = false
	s.eachName(func(name *string) {
		if err == nil {
			*name, err = unprintable(*name)
		}
	})
	return err
}
