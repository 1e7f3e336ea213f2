package node

import (
	"math"
	"strconv"
	"strings"
)

// A program may name a UDP port in any way: Node passes the value to its primary as it
// is. The primary's bind converts the value as JavaScript does and keeps 16 bits of it
// (ECMAScript, ToNumber and ToUint32; tried with Node 20). Of a TCP port the worker itself
// makes a number from 0 to 65535.

// number returns the number that a field means, in JavaScript. One that is absent or
// null means 0. An array or an object is refused.
func (m message) number(name string) (f float64, ok bool) {
	v := m[name]
	switch {
	case len(v) == 0 || string(v) == "null" || string(v) == "false":
		return 0, true
	case string(v) == "true":
		return 1, true
	case v[0] == '"':
		s, ok := m.text(name)
		return toNumber(s), ok
	}
	f, err := strconv.ParseFloat(string(v), 64)
	return f, err == nil
}

// tcpPort returns f if it is a port.
func tcpPort(f float64) (port uint16, ok bool) {
	if f >= 0 && f <= math.MaxUint16 && f == math.Trunc(f) {
		return uint16(f), true
	}
	return 0, false
}

// udpPort keeps the lowest 16 bits of the integral part, as Node's bind does. Infinities
// and NaN give 0.
func udpPort(f float64) uint16 {
	n := math.Mod(math.Trunc(f), math.MaxUint16+1)
	if math.IsNaN(n) {
		return 0
	}
	return uint16(int32(n))
}

// toNumber returns the number that a string means (ECMAScript, StringToNumber), or NaN if
// it means none.
func toNumber(s string) float64 {
	s = strings.TrimFunc(s, isSpace)
	if s == "" {
		return 0
	}
	if len(s) > 2 && s[0] == '0' {
		if base := map[byte]int{'x': 16, 'o': 8, 'b': 2}[s[1]|0x20]; base != 0 {
			return digits(s[2:], base)
		}
	}
	// ParseFloat knows more forms, all of which have other letters or underscores.
	if strings.ContainsFunc(s, isNoDecimal) {
		return math.NaN()
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil && !math.IsInf(f, 0) {
		return math.NaN()
	}
	return f
}

// isNoDecimal reports whether no decimal literal contains r.
func isNoDecimal(r rune) bool { return !strings.ContainsRune("0123456789+-.eE", r) }

// digits reads whole numbers of any length.
func digits(s string, base int) (f float64) {
	for _, r := range s {
		n, err := strconv.ParseUint(string(r), base, 8)
		if err != nil {
			return math.NaN()
		}
		f = f*float64(base) + float64(n)
	}
	return f
}

// isSpace reports whether JavaScript skips r around a number (WhiteSpace, LineTerminator).
func isSpace(r rune) bool {
	switch r {
	case '\t', '\n', '\v', '\f', '\r', ' ', '\u00a0', '\u1680', '\u2028', '\u2029', '\u202f', '\u205f', '\u3000', '\ufeff':
		return true
	}
	return r >= '\u2000' && r <= '\u200a'
}
