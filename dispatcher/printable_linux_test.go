package dispatcher

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestPrintable(t *testing.T) {
	for name, want := range map[string]string{
		"":                       "",
		":80":                    ":80",
		"/run/ä €.sock":          "/run/ä €.sock",
		"/a\xff\xfe":             `/a\xff\xfe`,
		`/a\xff\xfe`:             `/a\\xff\\xfe`,
		"/b\"}\nx{y=\"":          `/b"}\x0ax{y="`,
		"\x1b[31m\x7f\t":         `\x1b[31m\x7f\x09`,
		"\u009b\u202e\u2028":     `\u009b\u202e\u2028`,
		"\U000e0001\u00ad\ufffd": `\U000e0001\u00ad` + "\ufffd",
		ClosedListeners:          ClosedListeners,
	} {
		if got := Printable(name); got != want {
			t.Errorf("%q: %s, want %s", name, got, want)
		}
	}
}

func FuzzPrintable(f *testing.F) {
	for _, name := range []string{"/a\xff", `\`, `\x`, "\u202e", "\ufffd\xef", "a\x00b"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		p := Printable(name)
		if !utf8.ValidString(p) || strings.ContainsAny(p, "\n\r\x00\x1b\u009b\u2028\u202e") {
			t.Errorf("%q: %q", name, p)
		}
		if back, err := unprintable(p); err != nil || back != name {
			t.Errorf("%q comes back from %q as %q, %v", name, p, back, err)
		}
	})
}

// Paths that are not UTF-8 cross an upgrade, in a document that is JSON.
func TestNamesOfAnyBytesCrossAnUpgrade(t *testing.T) {
	const path, other = "/run/a\xff\\.sock", "/run/a\xfe\\.sock"
	state := func() *State {
		return &State{
			Listeners: []savedListener{{Name: path, Addr: path, Asked: "unix|" + path, Conf: ListenerConfig{Name: path, Address: path},
				Sock: &savedSocket{Path: path, Addr: path}}},
			Names: []savedName{{ListenerStats: ListenerStats{ListenerInfo: ListenerInfo{Name: path, Address: path}}},
				{ListenerStats: ListenerStats{ListenerInfo: ListenerInfo{Name: other, Address: other}}}},
			Asked: []savedAsked{{Key: "unix|" + path, Address: path}},
		}
	}
	s := state()
	s.escapeNames()
	s = crossed(t, s)
	if err := s.unescapeNames(); err != nil {
		t.Fatal(err)
	}
	got, _ := json.Marshal(s.Names)
	want, _ := json.Marshal(state().Names)
	if s.Names[0].Name != path || s.Names[1].Name != other || s.Listeners[0].Sock.Path != path || s.Asked[0].Key != "unix|"+path {
		t.Errorf("%s, want %s", got, want)
	}
	plain := &State{Names: []savedName{{ListenerStats: ListenerStats{ListenerInfo: ListenerInfo{Name: `a\b`}}}}}
	if plain.escapeNames(); plain.Escaped || plain.Names[0].Name != `a\b` {
		t.Error("ordinary names are not as an older rrd wrote them")
	}
}
