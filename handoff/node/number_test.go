package node

import (
	"encoding/json"
	"strconv"
	"testing"
)

// What Node's own primary binds for these values of bind(), tried with Node 20; -1: we
// refuse it.
var udpPorts = map[string]int{
	`null`: 0, `false`: 0, `true`: 1, `5555`: 5555, `5555.5`: 5555, `1e3`: 1000, `65536`: 0, `70000`: 4464, `-5`: 65531,
	`-1.5`: 65535, `5e9`: 61952, `1e20`: 0, `1e300`: 0,
	`"5555"`: 5555, `"5555.5"`: 5555, `""`: 0, `" 5555 "`: 5555, `"\u00a05555\ufeff"`: 5555, `"0x15b3"`: 5555, `"0X15B3"`: 5555,
	`"0b11"`: 3, `"0o17"`: 15, `"1e3"`: 1000, `"+5555"`: 5555, `".5e4"`: 5000, `"5."`: 5, `"70000"`: 4464, `"1e400"`: 0,
	`"Infinity"`: 0, `"abc"`: 0, `"0x"`: 0, `"-0x10"`: 0, `"1_0"`: 0, `"0x_1"`: 0, `"1f"`: 0, `"0x1p4"`: 0, `"nan"`: 0, `"5 5"`: 0, `"."`: 0, `"e5"`: 0,
	`"+-5"`: 0, `"0b12"`: 0, `"0x10000000000000000000015b3"`: 0,
	`{}`: -1, `[5555]`: -1, `""x`: -1,
}

func TestUDPPorts(t *testing.T) {
	for value, want := range udpPorts {
		n, ok := message{"port": json.RawMessage(value)}.number("port")
		if got := udpPort(n); ok != (want >= 0) || ok && int(got) != want {
			t.Errorf("%s is port %d (%v), want %d", value, got, ok, want)
		}
	}
	if n, ok := (message{}).number("port"); !ok || n != 0 {
		t.Errorf("no port is %v (%v)", n, ok)
	}
}

func TestTCPPorts(t *testing.T) {
	for value, want := range map[string]int{`null`: 0, `0`: 0, `80`: 80, `"80"`: 80, `"0x50"`: 80, `65535`: 65535, `-0`: 0,
		`65536`: -1, `-1`: -1, `80.5`: -1, `"x"`: -1, `1e400`: -1} {
		n, ok := message{"port": json.RawMessage(value)}.number("port")
		got, is := tcpPort(n)
		if ok = ok && is; ok != (want >= 0) || ok && int(got) != want {
			t.Errorf("%s is port %d (%v), want %d", value, got, ok, want)
		}
	}
}

// FuzzNumber has whole numbers mean themselves in each notation, and nothing panic.
func FuzzNumber(f *testing.F) {
	for value := range udpPorts {
		f.Add(value, uint32(5555))
	}
	f.Fuzz(func(t *testing.T, value string, n uint32) {
		_, _ = message{"port": json.RawMessage(value)}.number("port")
		if port, ok := tcpPort(toNumber(value)); ok && port != udpPort(toNumber(value)) {
			t.Errorf("%q is port %d for TCP and %d for UDP", value, port, udpPort(toNumber(value)))
		}
		for _, s := range []string{strconv.FormatUint(uint64(n), 10), "0x" + strconv.FormatUint(uint64(n), 16), "0b" + strconv.FormatUint(uint64(n), 2), "0o" + strconv.FormatUint(uint64(n), 8)} {
			if got := toNumber(s); got != float64(n) {
				t.Errorf("%q is %v", s, got)
			}
		}
	})
}
