//go:build unix

package main

import (
	"fmt"
	"strings"
)

// These bounds protect the TOML decoder. Its time grows with the square of the depth of
// a key or a value: 32 kB of dots took minutes. A configuration is flat and short.
const (
	maxConfig   = 256 << 10 // bytes
	maxKeyDepth = 8         // parts of a key, as in a.b.c
	maxNesting  = 8         // lists and tables in each other
	maxEntries  = 4096      // keys, values of lists and tables
	maxKey      = 256       // bytes of a word: a key, or a number
)

// checkShape refuses a file that is out of bounds, and names the line. Of TOML it knows
// only the ends of strings and comments. If the file is not TOML, checkShape may stop early,
// and the decoder then stops at the same place.
func checkShape(data string) (line int, err error) {
	if len(data) > maxConfig {
		return 0, fmt.Errorf("is longer than %d bytes, which no configuration is: name another file", maxConfig)
	}
	s := shape{data: data, line: 1}
	for s.at < len(s.data) && err == nil {
		err = s.next()
	}
	return s.line, err
}

// shape counts its way through a file.
type shape struct {
	data    string
	at      int // next byte
	line    int
	parts   int // dots of the key that is being read
	nesting int
	entries int
	word    int // bytes of the word that is being read
}

// next reads a byte, a string or a comment.
func (s *shape) next() error {
	c := s.data[s.at]
	s.at++
	switch c {
	case '\n':
		s.line++
		s.parts, s.word = 0, 0
	case '\r', ' ', '\t':
		s.word = 0
	case '#':
		if n := strings.IndexAny(s.data[s.at:], "\r\n"); n >= 0 {
			s.at += n
		} else {
			s.at = len(s.data)
		}
	case '"', '\'':
		s.word += s.skipString(c)
		return s.limitKey()
	case '.':
		s.word = 0
		if s.parts++; s.parts >= maxKeyDepth {
			return fmt.Errorf("a key has more than %d parts, which no setting has: correct or remove it", maxKeyDepth)
		}
	case '[', '{':
		s.parts, s.word = 0, 0
		if s.nesting++; s.nesting > maxNesting {
			return fmt.Errorf("lists and tables are more than %d deep, which no setting is: correct or remove it", maxNesting)
		}
		return s.count()
	case ']', '}':
		s.parts, s.word = 0, 0
		s.nesting = max(s.nesting-1, 0)
	case '=', ',':
		s.parts, s.word = 0, 0
		return s.count()
	default:
		s.word++
		return s.limitWord()
	}
	return nil
}

func (s *shape) count() error {
	if s.entries++; s.entries > maxEntries {
		return fmt.Errorf("the file has more than %d keys and values: correct or remove some", maxEntries)
	}
	return nil
}

func (s *shape) limitWord() error {
	if s.word > maxKey {
		return fmt.Errorf("a key or a number has more than %d bytes, which no setting has: correct or remove it", maxKey)
	}
	return nil
}

// limitKey limits a string that is a key: a dot or an equals sign follows.
func (s *shape) limitKey() error {
	if rest := strings.TrimLeft(s.data[s.at:], " \t"); rest != "" && (rest[0] == '.' || rest[0] == '=') {
		return s.limitWord()
	}
	return nil
}

// skipString steps over a string whose first quote was read, and returns its length. A
// string of one line that does not end there ends with the line, where the decoder stops.
func (s *shape) skipString(quote byte) int {
	from := s.at
	long := strings.Repeat(string(quote), 3)
	if strings.HasPrefix(s.data[s.at-1:], long) {
		s.at += 2
		for s.at < len(s.data) && !strings.HasPrefix(s.data[s.at:], long) {
			s.skipCharacter(quote)
		}
		s.at = min(s.at+len(long), len(s.data))
		return s.at - from
	}
	for s.at < len(s.data) && s.data[s.at] != '\n' {
		if s.data[s.at] == quote {
			s.at++
			break
		}
		s.skipCharacter(quote)
	}
	return s.at - from
}

// skipCharacter steps over a character, or over an escape where the quotes have some.
func (s *shape) skipCharacter(quote byte) {
	n := 1
	if quote == '"' && s.data[s.at] == '\\' && s.at+1 < len(s.data) {
		n = 2
	}
	s.line += strings.Count(s.data[s.at:s.at+n], "\n")
	s.at += n
}
