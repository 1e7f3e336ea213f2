//go:build unix

package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"
)

func TestDecodeRequest(t *testing.T) {
	for _, x := range []struct{ line, want string }{
		{`{"v":1,"id":7,"cmd":"status"}`, ""},
		{` {"v":1,"id":7,"cmd":"status","args":{"a":[1,2]}} ` + "\r", ""},
		{`{"v":1,"cmd":"status"}`, ""},
		{``, "this is no request: it is empty"},
		{`{`, "this is no request: the JSON ends too soon"},
		{`null`, `the request has no "v": this rrd speaks version 1`},
		{`7`, "this is no request: json: cannot unmarshal number into Go value of type control.Request"},
		{`{"v":1,"id":7}`, `the request has no "cmd"`},
		{`{"id":7,"cmd":"status"}`, `the request has no "v": this rrd speaks version 1`},
		{`{"v":2,"id":7,"cmd":"status"}`, "the request is of version 2: this rrd speaks version 1"},
		{`{"v":1,"id":-1,"cmd":"status"}`, "this is no request: json: cannot unmarshal number -1 into Go struct field Request.id of type uint64"},
		{`{"v":1,"id":7,"cmd":"status","force":true}`, `this is no request: json: unknown field "force"`},
		{`{"v":1,"id":7,"cmd":"status"}{}`, "this is no request: something follows the JSON value"},
		{`GET / HTTP/1.1`, "this is no request: invalid character 'G' looking for beginning of value"},
	} {
		r, err := decodeRequest([]byte(x.line))
		got := ""
		if err != nil {
			got = err.Error()
			var e *Error
			if !errors.As(err, &e) || e.Code != CodeUsage {
				t.Errorf("%q: %#v", x.line, err)
			}
		} else if r.Cmd != "status" || r.V != 1 {
			t.Errorf("%q: %+v", x.line, r)
		}
		if got != x.want {
			t.Errorf("%q:\n got %s\nwant %s", x.line, got, x.want)
		}
	}
}

func TestDecodeArgs(t *testing.T) {
	var a SetArgs
	for _, x := range []struct{ raw, want string }{
		{``, ""},
		{`{}`, ""},
		{`{"workers":8}`, ""},
		{`{"workers":8,"slot":1}`, `args: json: unknown field "slot"`},
		{`null`, "args: are null: leave them out, or write an object"},
		{`[8]`, "args: json: cannot unmarshal array into Go value of type control.SetArgs"},
		{`{"workers":"8"}`, "args: json: cannot unmarshal string into Go struct field SetArgs.workers of type int"},
	} {
		got := ""
		if err := DecodeArgs(json.RawMessage(x.raw), &a); err != nil {
			got = err.Error()
		}
		if got != x.want {
			t.Errorf("%q: got %s, want %s", x.raw, got, x.want)
		}
	}
	if a.Workers != 8 {
		t.Errorf("%+v", a)
	}
}

// Lines come whole however they are cut, and none is longer than allowed.
func TestLineReader(t *testing.T) {
	longest := strings.Repeat("x", MaxLine-1)
	for _, size := range []int{1, 2, 1000, MaxLine} {
		in := lineReader{r: &pieces{text: "a\n\nbc\n" + longest + "\nrest", size: size}}
		for _, want := range []string{"a", "", "bc", longest} {
			line, err := in.next()
			if err != nil || string(line) != want {
				t.Fatalf("in pieces of %d: %.20q, %v, want %.20q", size, line, err, want)
			}
		}
		if line, err := in.next(); !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %q, %v", line, err)
		}
	}
	in := lineReader{r: strings.NewReader(longest + "x\n")}
	if _, err := in.next(); !errors.Is(err, errLong) {
		t.Errorf("one too long: %v", err)
	}
	if len(in.buf) > MaxLine {
		t.Errorf("it holds %d bytes", len(in.buf))
	}
}

// A deadline in the middle of a line costs nothing of it.
func TestLineReaderDeadline(t *testing.T) {
	in := lineReader{r: io.MultiReader(strings.NewReader("ab"), failing{}, strings.NewReader("c\n"))}
	if _, err := in.next(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatal(err)
	}
	in.r = strings.NewReader("c\n")
	if line, err := in.next(); err != nil || string(line) != "abc" {
		t.Errorf("%q, %v", line, err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }

type pieces struct {
	text string
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if p.text == "" {
		return 0, io.EOF
	}
	n := copy(b, p.text[:min(p.size, len(p.text))])
	p.text = p.text[n:]
	return n, nil
}

// Every args and result type can be told apart from others and written; each
// command is there once.
func TestCommands(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range Commands() {
		if seen[c.Name] {
			t.Errorf("%s is there twice", c.Name)
		}
		seen[c.Name] = true
		for _, v := range []any{c.Args, c.Result} {
			if _, err := json.Marshal(v); err != nil {
				t.Errorf("%s: %v", c.Name, err)
			}
		}
		if c.Args != nil {
			fresh := reflect.New(reflect.TypeOf(c.Args)).Interface()
			if err := DecodeArgs(json.RawMessage("{}"), fresh); err != nil {
				t.Errorf("%s: %v", c.Name, err)
			}
		}
	}
}

var seeds = []string{
	`{"v":1,"id":1,"cmd":"status"}`,
	`{"v":1,"id":2,"cmd":"workers.set","args":{"workers":8}}`,
	`{"v":1,"id":3,"cmd":"workers.signal","args":{"signal":"TERM","all":true}}`,
	`{"v":1,"id":18446744073709551615,"cmd":"stop","args":{"now":true}}`,
	`{"v":2}`, `{"v":1e400}`, `[[[[[[`, `{"cmd":"\ud800"}`, "\xff\xfe", "\x00", `{"args":{"args":{"args":null}}}`, `{"V":1,"CMD":"x"}`,
}

// What a client can write makes a request or an error of one line, never a panic.
func FuzzDecodeRequest(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) { checkDecode(t, line) })
}

func checkDecode(t *testing.T, line []byte) {
	r, err := decodeRequest(line)
	if err == nil {
		if r.V != Version || r.Cmd == "" {
			t.Errorf("%q is taken: %+v", line, r)
		}
		for _, c := range Commands() {
			if c.Args != nil {
				err = errors.Join(err, DecodeArgs(r.Args, reflect.New(reflect.TypeOf(c.Args)).Interface()))
			}
		}
	}
	if err == nil {
		return
	}
	var out bytes.Buffer
	if err := writeReply(&out, failure(r.ID, err)); err != nil || bytes.Count(out.Bytes(), []byte("\n")) != 1 || !json.Valid(out.Bytes()) {
		t.Errorf("%q is answered %q, %v", line, out.Bytes(), err)
	}
}

// F46: lines that are nearly requests; a million of them with SOAK.
func TestF46FuzzedLines(t *testing.T) {
	n := 50_000
	if os.Getenv("SOAK") != "" {
		n = 1_000_000
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range n {
		line := []byte(seeds[random.IntN(len(seeds))])
		for range 1 + random.IntN(3) {
			at := random.IntN(len(line) + 1)
			switch random.IntN(4) {
			case 0:
				line = append(line[:at:at], line[min(at+random.IntN(8), len(line)):]...)
			case 1:
				line = append(line[:at:at], append([]byte{byte(random.Uint32())}, line[at:]...)...)
			case 2:
				line = append(line[:at:at], append([]byte(seeds[random.IntN(len(seeds))]), line[at:]...)...)
			default:
				if at < len(line) {
					line[at] ^= 1 << random.IntN(8)
				}
			}
		}
		checkDecode(t, line)
	}
}
