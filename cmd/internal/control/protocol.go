//go:build unix

package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Version is the only version of the protocol there is.
const Version = 1

// What a client may cost; docs/control.md, "Limits".
const (
	MaxLine      = 64 << 10         // bytes of a request with its line feed
	MaxClients   = 16               // connections at a time
	MaxIdle      = 5 * time.Second  // for a request to arrive, from the connection or the last result on
	WriteTimeout = 30 * time.Second // for a line of a reply to be taken
	// MaxReply is how long a line of a reply may be that a Client takes.
	MaxReply = 16 << 20
)

// Code classes an error for programs.
type Code string

const (
	CodeUsage   Code = "usage"   // the request is wrong; it would be the next time
	CodeRefused Code = "refused" // this peer may not, or not now
	CodeFailed  Code = "failed"  // it was tried
	CodeBusy    Code = "busy"    // something else is under way, or there are too many clients
	CodeUnknown Code = "unknown" // this version of rrd does not have it
)

// Codes lists every code.
func Codes() []Code { return []Code{CodeUsage, CodeRefused, CodeFailed, CodeBusy, CodeUnknown} }

// Error is what a request that did not succeed is answered with. Text is one
// line for a person.
type Error struct {
	Code Code
	Text string
}

func (e *Error) Error() string { return e.Text }

// Errorf returns an *Error.
func Errorf(code Code, format string, args ...any) error {
	return &Error{code, fmt.Sprintf(format, args...)}
}

// Request is one line of a client.
type Request struct {
	V    int             `json:"v"`
	ID   uint64          `json:"id"`
	Cmd  string          `json:"cmd"`
	Args json.RawMessage `json:"args,omitempty"`

	of *client // whose it is; nil: nobody waits for an answer
}

// reply is one line of the master.
type reply struct {
	ID     uint64          `json:"id"`
	Event  json.RawMessage `json:"event,omitempty"`
	OK     *bool           `json:"ok,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  string          `json:"error,omitempty"`
	Code   Code            `json:"code,omitempty"`
}

// decodeRequest reads one line, without its line feed. The ID in the Request is
// right also beside an error, as far as it could be read.
func decodeRequest(line []byte) (Request, error) {
	var r Request
	if err := decodeStrict(line, &r); err != nil {
		return Request{ID: r.ID}, Errorf(CodeUsage, "this is no request: %v", err)
	}
	switch {
	case r.V == 0:
		return r, Errorf(CodeUsage, `the request has no "v": this rrd speaks version %d`, Version)
	case r.V != Version:
		return r, Errorf(CodeUsage, "the request is of version %d: this rrd speaks version %d", r.V, Version)
	case r.Cmd == "":
		return r, Errorf(CodeUsage, `the request has no "cmd"`)
	}
	return r, nil
}

// DecodeArgs fills args, a pointer to one of the Args types, from a request's
// args. What args has no field for is an error of CodeUsage, and so is null.
func DecodeArgs(raw json.RawMessage, args any) error {
	if len(raw) == 0 {
		return nil
	}
	if bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
		return Errorf(CodeUsage, "args: are null: leave them out, or write an object")
	}
	if err := decodeStrict(raw, args); err != nil {
		return Errorf(CodeUsage, "args: %v", err)
	}
	return nil
}

// decodeStrict takes exactly one value, and only fields that v has.
func decodeStrict(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		if errors.Is(err, io.EOF) {
			return errors.New("it is empty")
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return errors.New("the JSON ends too soon")
		}
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON value")
	}
	return nil
}
