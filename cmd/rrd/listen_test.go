//go:build unix

package main

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"rrd/dispatcher"
)

func TestParseListen(t *testing.T) {
	ln := func(name, network, address string) dispatcher.ListenerConfig {
		return dispatcher.ListenerConfig{Name: name, Network: network, Address: address, UID: -1, GID: -1}
	}
	with := func(ln dispatcher.ListenerConfig, f func(*dispatcher.ListenerConfig)) dispatcher.ListenerConfig {
		f(&ln)
		return ln
	}
	mode := func(m os.FileMode) *os.FileMode { return &m }
	longest := "/" + strings.Repeat("s", maxSocketPath-1)
	for _, x := range []struct {
		in   string
		want dispatcher.ListenerConfig
	}{
		{":80", ln(":80", "tcp", ":80")},
		{":0", ln(":0", "tcp", ":0")},
		{"[::]:80", ln("[::]:80", "tcp", ":80")},
		{"[0:0:0:0:0:0:0:0]:080", ln("[0:0:0:0:0:0:0:0]:080", "tcp", ":80")},
		{"0.0.0.0:80", ln("0.0.0.0:80", "tcp4", "0.0.0.0:80")},
		{"127.0.0.1:80", ln("127.0.0.1:80", "tcp4", "127.0.0.1:80")},
		{"localhost:80", ln("localhost:80", "tcp4", "127.0.0.1:80")},
		{"[::1]:80", ln("[::1]:80", "tcp6", "[::1]:80")},
		{"[::ffff:127.0.0.1]:80", ln("[::ffff:127.0.0.1]:80", "tcp4", "127.0.0.1:80")},
		{"[fe80::1%eth0]:80", ln("[fe80::1%eth0]:80", "tcp6", "[fe80::1%eth0]:80")},
		{"web=:80", ln("web", "tcp", ":80")},
		{"web.v1-a=[::1]:65535", ln("web.v1-a", "tcp6", "[::1]:65535")},
		{"unix:/run/a.sock", ln("unix:/run/a.sock", "unix", "/run/a.sock")},
		{"unix:/run/../tmp//a=b", ln("unix:/run/../tmp//a=b", "unix", "/tmp/a=b")},
		{"unix:" + longest, ln("unix:"+longest, "unix", longest)},
		{"fd:3", ln("fd:3", "fd", "3")},
		{"fd:web", ln("fd:web", "fd", "web")},
		{"a=fd:web", ln("a", "fd", "web")},
		{"udp://:53", ln("udp://:53", "udp", ":53")},
		{"dns=udp://127.0.0.1:53", ln("dns", "udp4", "127.0.0.1:53")},
		{"udp://[::1]:53", ln("udp://[::1]:53", "udp6", "[::1]:53")},
		{":80,backlog=16", with(ln(":80", "tcp", ":80"), func(l *dispatcher.ListenerConfig) { l.Backlog = 16 })},
		{":80,as=3000", with(ln(":80", "tcp", ":80"), func(l *dispatcher.ListenerConfig) { l.As = 3000 })},
		{"udp://:53,as=5353", with(ln("udp://:53", "udp", ":53"), func(l *dispatcher.ListenerConfig) { l.As = 5353 })},
		{"fd:web,as=65535", with(ln("fd:web", "fd", "web"), func(l *dispatcher.ListenerConfig) { l.As = 65535 })},
		{"unix:/s,mode=0,backlog=1", with(ln("unix:/s", "unix", "/s"), func(l *dispatcher.ListenerConfig) { l.Mode, l.Backlog = mode(0), 1 })},
		{"unix:/s,mode=777", with(ln("unix:/s", "unix", "/s"), func(l *dispatcher.ListenerConfig) { l.Mode = mode(0o777) })},
		{"unix:/s,owner=4711,group=www", with(ln("unix:/s", "unix", "/s"), func(l *dispatcher.ListenerConfig) { l.UID, l.GID = 4711, 80 })},
	} {
		got, err := parseListen(testHost(nil), x.in)
		if diff := cmp.Diff(x.want, got); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", x.in, err, diff)
		}
	}
}

func TestParseListenMistakes(t *testing.T) {
	tooLong := "/" + strings.Repeat("s", maxSocketPath)
	for in, want := range map[string]string{
		"":                        `has no address: write one like :80, 127.0.0.1:80, [::1]:80, unix:/path or fd:NAME`,
		"web=":                    `has no address: write one like :80, 127.0.0.1:80, [::1]:80, unix:/path or fd:NAME`,
		",backlog=4":              `has no address: write one like :80, 127.0.0.1:80, [::1]:80, unix:/path or fd:NAME`,
		"=:80":                    `names a host: write its IP address, localhost, or :80 for every address of this machine`,
		"80":                      `has no colon: write :80 for every address of this machine`,
		"example.org":             `has no port: write it as in 127.0.0.1:80`,
		"example.org:80":          `names a host: write its IP address, localhost, or :80 for every address of this machine`,
		"1.2.3:80":                `names a host: write its IP address, localhost, or :80 for every address of this machine`,
		"*:80":                    `has no address: write :80 for every address of this machine`,
		":http":                   `has no port from 0 to 65535 after its last colon`,
		":":                       `has no port from 0 to 65535 after its last colon`,
		":65536":                  `has no port from 0 to 65535 after its last colon`,
		":-1":                     `has no port from 0 to 65535 after its last colon`,
		":+1":                     `has no port from 0 to 65535 after its last colon`,
		"::1:80":                  `has IPv6 without brackets: write [::1]:80`,
		"[::1]":                   `has no port from 0 to 65535 after its last colon`,
		"[::1:80":                 `has an odd bracket: write IPv6 as in [::1]:80`,
		"[]:80":                   `has no IPv6 address in its brackets`,
		"[localhost]:80":          `has no IPv6 address in its brackets`,
		"[127.0.0.1]:80":          `has IPv4 in brackets: write 127.0.0.1:80`,
		"tcp://:80":               `has an unknown scheme: write the address alone, or udp://, unix:/path or fd:NAME`,
		"udp::53":                 `lacks slashes: write udp://:53 or udp://127.0.0.1:53`,
		"udp://":                  `has no port: write it as in 127.0.0.1:80`,
		"/run/a.sock":             `is a path: write unix:/run/a.sock`,
		"unix:":                   `"unix:" is no absolute path: write unix:/path`,
		"unix:a.sock":             `is no absolute path: write unix:/path`,
		"unix:@abstract":          `is no absolute path: write unix:/path`,
		"unix:/":                  `is a directory: name the socket in it`,
		"unix:/a\x00":             `contains a control character or is no UTF-8: remove it`,
		"unix:/a\xff":             `contains a control character or is no UTF-8: remove it`,
		"a\n=:80":                 `contains a control character or is no UTF-8: remove it`,
		"unix:" + tooLong:         `and a unix socket's can have `,
		"fd:":                     `names no descriptor: write fd:3, or fd:NAME with the FileDescriptorName= of the socket unit`,
		"fd:a:b":                  `names no descriptor: write fd:3, or fd:NAME with the FileDescriptorName= of the socket unit`,
		"fd:2":                    `is no inherited descriptor: the first one is fd:3`,
		"fd:-3":                   `is no inherited descriptor: the first one is fd:3`,
		":80,mode=0660":           `has mode=, which only unix: listeners have: remove it`,
		"fd:3,owner=root":         `has owner=, which only unix: listeners have: remove it`,
		":80,group=www":           `has group=, which only unix: listeners have: remove it`,
		"unix:/s,mode=rw":         `has a mode= that is not octal from 0 to 0777, as in mode=0660`,
		"unix:/s,mode=1777":       `has a mode= that is not octal from 0 to 0777, as in mode=0660`,
		"unix:/s,mode":            `has a mode= that is not octal from 0 to 0777, as in mode=0660`,
		"unix:/s,owner=x":         `has an owner= that is no user of this system: name one, or give its number`,
		"unix:/s,group=x":         `has a group= that is no group of this system: name one, or give its number`,
		":80,backlog=0":           `has a backlog= that is not a number from 1 to 1048576`,
		":80,backlog=x":           `has a backlog= that is not a number from 1 to 1048576`,
		"unix:/s,as=3000":         `has as=, and unix: listeners have no port: remove it`,
		":80,as=0":                `has an as= that is not the port that the program asks for, from 1 to 65535`,
		":80,as=65536":            `has an as= that is not the port that the program asks for, from 1 to 65535`,
		":80,as=+1":               `has an as= that is not the port that the program asks for, from 1 to 65535`,
		":80,as":                  `has an as= that is not the port that the program asks for, from 1 to 65535`,
		":80,backlog=1,backlog=2": `has the option backlog twice: remove one`,
		":80,":                    `has an unknown option "": the options are backlog=, as=, mode=, owner= and group=`,
		":80,reuseport":           `has an unknown option "reuseport": the options are backlog=, as=, mode=, owner= and group=`,
		"udp://:53,backlog=1":     `has backlog=, which udp:// has none of: remove it`,
		"fd:3,backlog=1":          `has backlog=, which whoever opened the descriptor has set: remove it`,
	} {
		ln, err := parseListen(testHost(nil), in)
		if err == nil || !strings.Contains(err.Error(), want) || strings.ContainsRune(err.Error(), '\n') {
			t.Errorf("%q: %+v\n got %v\nwant %s", in, ln, err, want)
		}
	}
}

func TestListenDuplicates(t *testing.T) {
	for in, want := range map[string]string{
		":80 :80":                          `":80" has the same name as another listener`,
		"a=:80 b=:80":                      `"b=:80" is the same address as that of "a": remove one of them`,
		"a=:80 b=[::]:80":                  `is the same address`,
		"a=:80 b=0.0.0.0:80":               `is the same address`,
		"0.0.0.0:80 :80":                   `is the same address`,
		"a=:80 a=:81":                      `"a=:81" has the same name as another listener: name them apart, as in web=:81`,
		"a=unix:/s b=unix://s":             `is the same address`,
		"unix:/a:0 b=unix:/a:0":            `is the same address`,
		"a=fd:3 b=fd:3":                    `is the same address`,
		"localhost:1 127.0.0.1:1":          `is the same address`,
		"udp://:5 b=udp://0.0.0.0:5":       `is the same address`,
		":80,as=3000 127.0.0.1:81,as=3000": `"127.0.0.1:81,as=3000" has the same as= as ":80", and programs could not tell them apart: change one of them`,
		"fd:3,as=3000 [::1]:81,as=3000":    `has the same as= as "fd:3"`,
		":80,as=53 udp://:80,as=53":        "",
		"a=:0 b=:0 c=127.0.0.1:0 d=127.0.0.1:0 e=0.0.0.0:0": "",
		":80 udp://:80 127.0.0.1:81 [::1]:81":               "",
	} {
		_, _, err := testHost(nil).parseConfig(nil, []string{"RRD_LISTEN=" + in})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", in, err, want)
		}
	}
}

func TestParseEndpoint(t *testing.T) {
	for in, want := range map[string]endpoint{
		":9746": {"tcp", ":9746"}, "127.0.0.1:0": {"tcp4", "127.0.0.1:0"}, "[::1]:1": {"tcp6", "[::1]:1"},
		"localhost:9": {"tcp4", "127.0.0.1:9"}, "unix:/m": {"unix", "/m"},
	} {
		if got, err := parseEndpoint(in); err != nil || got != want {
			t.Errorf("%s: %v %v", in, got, err)
		}
	}
	c, _, err := testHost(nil).parseConfig(words("--metrics off --control off"), nil)
	if err != nil || c.Metrics != (endpoint{}) || c.Control != "off" {
		t.Errorf("off: %+v %v", c, err)
	}
}

// Of port 0 there can be several listeners.
func TestDiffListenersOfPort0(t *testing.T) {
	both := []dispatcher.ListenerConfig{
		{Name: "a", Network: "tcp4", Address: "127.0.0.1:0", UID: -1, GID: -1},
		{Name: "b", Network: "tcp4", Address: "127.0.0.1:0", UID: -1, GID: -1},
	}
	if _, err := diffListeners(both, both); err != nil {
		t.Error(err)
	}
}
