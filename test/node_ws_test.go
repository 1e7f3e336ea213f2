//go:build linux

package test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"rrd/test/harness"
)

// Websockets by the package ws: in turn while idle, and 20,000 of them under load,
// each of which gets back what it said.
func TestNodeWebsockets(t *testing.T) {
	const workers, each, total = 4, 25, 20_000
	m := node(t, workers, "ws.js", harness.Options{Args: []string{"--policy", "rr"}})
	address := m.Addr()
	by := make(map[int]int)
	for i := range workers * each {
		pid, err := websocket(address, i)
		if err != nil {
			t.Fatal(err)
		}
		by[pid]++
	}
	exactly(t, by, workers, each)

	stop := m.WatchLaw()
	var clients sync.WaitGroup
	var next, failed atomic.Int64
	start := time.Now()
	for range 32 {
		clients.Go(func() {
			for {
				i := next.Add(1)
				if i > total {
					return
				}
				if _, err := websocket(address, int(i)); err != nil && failed.Add(1) < 10 {
					t.Errorf("websocket %d: %v", i, err)
				}
			}
		})
	}
	clients.Wait()
	stop()
	if n := failed.Load(); n > 0 {
		t.Errorf("%d of %d failed", n, total)
	}
	t.Logf("%d websockets in %v", total, time.Since(start))
	if s := m.Idle(); s.Accepted() != workers*each+total || s.Acked() != s.Accepted() {
		t.Errorf("accepted %d, acked %d", s.Accepted(), s.Acked())
	}
	if took := m.Stop(); took > soon {
		t.Errorf("it took %v to stop", took)
	}
	cleanEnd(t, m, workers)
}

// websocket opens one, says something, checks the answer, closes it as RFC 6455
// has it, and returns who served it.
func websocket(address string, n int) (pid int, err error) {
	c, err := net.DialTimeout("tcp", address, harness.Patience)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(harness.Patience)); err != nil {
		return 0, err
	}
	path := fmt.Sprintf("/socket/%d", n)
	_, err = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: ws\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", path)
	if err != nil {
		return 0, err
	}
	in := bufio.NewReader(c)
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		return 0, fmt.Errorf("handshake: %w", err)
	}
	_ = res.Body.Close()
	// The answer to that key, from section 1.3 of RFC 6455.
	if res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("Sec-Websocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		return 0, fmt.Errorf("handshake: %s", res.Status)
	}
	const text, end = 1, 8
	said := fmt.Sprintf("this is %d", n)
	if err := writeFrame(c, text, []byte(said)); err != nil {
		return 0, err
	}
	payload, err := readFrame(in, text)
	if err != nil {
		return 0, err
	}
	var a struct {
		PID       int
		URI, Said string
	}
	if err := json.Unmarshal(payload, &a); err != nil || a.URI != path || a.Said != said {
		return 0, fmt.Errorf("the answer to %q is %q, %w", said, payload, err)
	}
	if err := writeFrame(c, end, nil); err != nil {
		return 0, err
	}
	if _, err := readFrame(in, end); err != nil {
		return 0, fmt.Errorf("close: %w", err)
	}
	if rest, err := io.ReadAll(in); err != nil || len(rest) > 0 {
		return 0, fmt.Errorf("behind the close: %q, %w", rest, err)
	}
	return a.PID, nil
}

// writeFrame writes one of less than 126 bytes, masked as a client's must be.
func writeFrame(w io.Writer, opcode byte, payload []byte) error {
	mask := [4]byte{1, 2, 3, 4}
	frame := append([]byte{0x80 | opcode, 0x80 | byte(len(payload))}, mask[:]...)
	for i, b := range payload {
		frame = append(frame, b^mask[i%4])
	}
	_, err := w.Write(frame)
	return err
}

func readFrame(r io.Reader, opcode byte) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:2]); err != nil {
		return nil, err
	}
	if head[0] != 0x80|opcode {
		return nil, fmt.Errorf("frame %#x, want %#x", head[0], 0x80|opcode)
	}
	length := int(head[1])
	switch {
	case length == 126:
		if _, err := io.ReadFull(r, head[2:]); err != nil {
			return nil, err
		}
		length = int(binary.BigEndian.Uint16(head[2:]))
	case length > 126:
		return nil, errors.New("a frame longer than any here")
	}
	var payload bytes.Buffer
	_, err := io.CopyN(&payload, r, int64(length))
	return payload.Bytes(), err
}
