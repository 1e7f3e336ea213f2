package leakcheck

import "testing"

func TestParseStat(t *testing.T) {
	for _, c := range []struct {
		text string
		want process
		ok   bool
	}{
		{"12 (cat) S 7 12 12 0 -1", process{name: "cat", state: "S", parent: 7}, true},
		{"12 (a b) c) Z 1 12\n", process{name: "a b) c", state: "Z", parent: 1}, true},
		{"", process{}, false},
		{"12 cat S 7", process{}, false},
		{"12 (cat)", process{}, false},
		{"12 (cat) S", process{}, false},
		{"12 (cat) S x", process{}, false},
		{")(", process{}, false},
	} {
		if got, ok := parseStat(c.text); got != c.want || ok != c.ok {
			t.Errorf("%q: got %+v, %v, want %+v, %v", c.text, got, ok, c.want, c.ok)
		}
	}
}

// A process may call itself anything, and is read all the same.
func FuzzParseStat(f *testing.F) {
	f.Add("cat")
	f.Add("a b) Z 1 (c")
	f.Fuzz(func(t *testing.T, name string) {
		want := process{name: name, state: "S", parent: 7}
		if got, ok := parseStat("12 (" + name + ") S 7 12"); !ok || got != want {
			t.Errorf("got %+v, %v, want %+v", got, ok, want)
		}
	})
}
