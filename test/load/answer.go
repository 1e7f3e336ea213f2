package load

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
)

// Answer is a complete answer. Body is only lent to a Judge.
type Answer struct {
	Status int
	Worker string // the header Rrd-Worker
	Body   []byte
}

// Judge says what is wrong with an answer to res.URI, and notes in res who gave it.
type Judge func(a Answer, res *Result) error

// BuiltIn judges the answers of rrd's built-in worker, and of programs that
// answer like it.
func BuiltIn(a Answer, res *Result) error {
	if a.Status != 200 {
		return fmt.Errorf("status %d: %.100q", a.Status, a.Body)
	}
	var b struct {
		Worker     *int
		PID        int
		Generation int
		Born       int64
		Connection uint64
		Remote     string
		URI        string
	}
	if err := json.Unmarshal(a.Body, &b); err != nil {
		return fmt.Errorf("%w in %.100q", err, a.Body)
	}
	switch {
	case b.URI != res.URI:
		return fmt.Errorf("asked for %s, got the answer to %s", res.URI, b.URI)
	case b.Worker == nil || a.Worker != strconv.Itoa(*b.Worker):
		return fmt.Errorf("header says worker %q, body %.100q", a.Worker, a.Body)
	case b.PID <= 0 || b.Generation < 1:
		return fmt.Errorf("no process in %.100q", a.Body)
	}
	res.Slot, res.PID, res.Generation, res.Connection, res.Remote = *b.Worker, b.PID, b.Generation, b.Connection, b.Remote
	res.Born = b.Born
	return nil
}

// AnyOK judges by the status only, and notes Rrd-Worker if it is there.
func AnyOK(a Answer, res *Result) error {
	if a.Status != 200 {
		return fmt.Errorf("status %d: %.100q", a.Status, a.Body)
	}
	if slot, err := strconv.Atoi(a.Worker); err == nil {
		res.Slot = slot
	}
	return nil
}

// answer is how far reading has come.
type answer struct {
	headed  bool // the header is complete
	status  int
	worker  string
	body    int // where it begins
	length  int
	skipped int // bytes of the body that were thrown away
	bad     error
}

var (
	headEnd      = []byte("\r\n\r\n")
	workerField  = []byte("\r\nRrd-Worker: ")
	lengthFields = [][]byte{[]byte("\r\nContent-Length: "), []byte("\r\nContent-length: "), []byte("\r\ncontent-length: ")}
	errNoLength  = errors.New("no Content-Length")
)

// head parses the header if b holds all of it.
func (a *answer) head(b []byte) bool {
	end := bytes.Index(b, headEnd)
	if end < 0 {
		return false
	}
	a.headed, a.body = true, end+len(headEnd)
	h := b[:end+2]
	if len(h) < 12 || !bytes.HasPrefix(h, []byte("HTTP/1.")) {
		a.bad = fmt.Errorf("no HTTP answer: %.60q", h)
		return true
	}
	var err error
	if a.status, err = strconv.Atoi(string(h[9:12])); err != nil {
		a.bad = fmt.Errorf("no HTTP answer: %.60q", h)
		return true
	}
	a.worker = field(h, workerField)
	length := ""
	for _, name := range lengthFields {
		if length == "" {
			length = field(h, name)
		}
	}
	if length == "" {
		a.bad = errNoLength
	} else if a.length, err = strconv.Atoi(length); err != nil {
		a.bad = err
	}
	return true
}

func field(h, name []byte) string {
	_, after, ok := bytes.Cut(h, name)
	if !ok {
		return ""
	}
	value, _, _ := bytes.Cut(after, headEnd[:2])
	return string(value)
}

// classifyDial puts an error of connecting into its class.
func classifyDial(err error) Outcome {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return Refused
	case errors.Is(err, syscall.EAGAIN): // a unix socket with a full backlog
		return Refused
	case errors.Is(err, syscall.EADDRNOTAVAIL), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENOBUFS):
		return Client
	}
	return classify(err)
}

// classify puts an error of reading or writing into its class.
func classify(err error) Outcome {
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Empty
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNABORTED):
		return Reset
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return Timeout
	case errors.As(err, &timeout) && timeout.Timeout():
		return Timeout
	}
	return Wrong
}
