package main

import (
	"bufio"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// behaviours are what the server of these tests does with a connection that asks for a path.
var behaviours = map[string]func(c *net.TCPConn){
	"/":      func(c *net.TCPConn) { _, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nok 7")) },
	"/other": func(c *net.TCPConn) { _, _ = c.Write([]byte("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nok 8")) },
	"/empty": func(*net.TCPConn) {},
	"/reset": func(c *net.TCPConn) { _ = c.SetLinger(0) },
	"/short": func(c *net.TCPConn) { _, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok 7")) },
	"/no":    func(c *net.TCPConn) { _, _ = c.Write([]byte("HTTP/1.1 503 no\r\nContent-Length: 4\r\n\r\nok 7")) },
}

// clientServer serves connections one at a time; stall, once, is how long the hundredth waits.
func clientServer(t *testing.T, stall time.Duration) (port string) {
	t.Helper()
	ln, err := net.Listen("tcp4", anyPort)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for n := 0; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if n == 100 {
				time.Sleep(stall)
			}
			line, _ := bufio.NewReader(c).ReadString('\n')
			if words := strings.Fields(line); len(words) > 1 {
				behaviours[words[1]](c.(*net.TCPConn))
			}
			_ = c.Close()
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		serving.Wait()
	})
	_, port, _ = net.SplitHostPort(ln.Addr().String())
	return port
}

// clientProgram compiles the clients and returns a run of them.
func clientProgram(t *testing.T) func(port string, l load) result {
	t.Helper()
	dir := t.TempDir()
	if err := buildC(t.Context(), "testdata", dir, "client"); err != nil {
		t.Fatal(err)
	}
	return func(port string, l load) result {
		t.Helper()
		out, err := output(t.Context(), nil, append([]string{filepath.Join(dir, "client")}, l.args(port)...)...)
		if err != nil {
			t.Fatal(err)
		}
		r, err := parseResult(out)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
}

func TestClientTellsFailures(t *testing.T) {
	client, port := clientProgram(t), clientServer(t, 0)
	for path, class := range map[string]string{"/empty": "empty", "/reset": "reset", "/short": "wrong", "/no": "wrong"} {
		r := client(port, load{clients: 2, duration: time.Minute, count: 10, path: path})
		if r.failures[class] != 10 || r.failed != 10 || r.answered != 0 {
			t.Errorf("%s: %+v", path, r)
		}
	}
	nobody, err := freeAddress(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ = net.SplitHostPort(nobody)
	if r := client(port, load{clients: 2, duration: time.Minute, count: 10, path: "/"}); r.failures["refused"] != 10 || r.failed != 10 {
		t.Errorf("to nobody: %+v", r)
	}
}

func TestClientAsksForRareThings(t *testing.T) {
	client, port := clientProgram(t), clientServer(t, 0)
	l := load{clients: 4, duration: time.Minute, count: 2000, path: "/", rare: "/other"}
	first, second := client(port, l), client(port, l)
	if first.answered != 2000 || first.served[8] < 60 || first.served[8] > 140 {
		t.Errorf("one in 20 of 2000: %v", first.served)
	}
	if fmt.Sprint(first.served) != fmt.Sprint(second.served) {
		t.Errorf("%v, then %v", first.served, second.served)
	}
}

// In an open loop all that should have been served during a stall is late, even
// what could not be begun; in a closed loop only those that were open.
func TestClientChargesAStall(t *testing.T) {
	const stall = 300 * time.Millisecond
	client := clientProgram(t)
	l := load{clients: 2, duration: time.Second, rate: 500, path: "/"}
	open := client(clientServer(t, stall), l)
	if open.answered != 500 || open.failed != 0 {
		t.Fatalf("%d answered, %v failed of 500", open.answered, open.failures)
	}
	if p80, p99 := open.times.percentile(0.8), open.times.percentile(0.99); p80 < 50 || p99 < 250 {
		t.Errorf("p80 %v ms, p99 %v ms after a stall of %v in a second", p80, p99, stall)
	}
	l.rate = 0
	closed := client(clientServer(t, stall), l)
	if p80 := closed.times.percentile(0.8); closed.answered < 200 || p80 > 50 {
		t.Errorf("closed: %d answered, p80 %v ms", closed.answered, p80)
	}
}
