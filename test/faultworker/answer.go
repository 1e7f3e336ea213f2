//go:build unix

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

// answer is what tells this process from others.
type answer struct {
	slot, generation int
	connections      atomic.Uint64
}

// born tells this process from another that has its pid later.
var born = time.Now().UnixNano()

// serve answers the one request of connection n like rrd's built-in worker and closes the connection,
// shutdown first: the master's copy may still be open.
func (a *answer) serve(c net.Conn, n uint64) {
	defer c.Close()
	req, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return
	}
	if ms, err := strconv.Atoi(req.URL.Query().Get("ms")); err == nil && req.URL.Path == "/sleep" {
		time.Sleep(time.Duration(ms) * time.Millisecond) // what the client asks for
	}
	body, err := json.Marshal(map[string]any{
		"worker": a.slot, "pid": os.Getpid(), "generation": a.generation, "born": born,
		"connection": n, "remote": c.RemoteAddr().String(), "uri": req.RequestURI,
	})
	if err != nil {
		return
	}
	_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nRrd-Worker: %d\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", a.slot, len(body), body)
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
}
