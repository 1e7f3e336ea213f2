package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"rrd/test/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// answering is a server whose answer to connection n, from 1, is answer(n, uri).
// An empty one closes without a word.
func answering(t *testing.T, answer func(n int, uri string) string) string {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for n := 1; ; n++ {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { answerOne(c, n, answer) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		serving.Wait()
	})
	return ln.Addr().String()
}

func answerOne(c net.Conn, n int, answer func(n int, uri string) string) {
	defer c.Close()
	buf := make([]byte, 4096)
	k, _ := c.Read(buf)
	_, rest, _ := strings.Cut(string(buf[:k]), " ")
	uri, _, _ := strings.Cut(rest, " ")
	switch text := answer(n, uri); text {
	case "RESET":
		_ = c.(*net.TCPConn).SetLinger(0)
	case "HANG":
		_, _ = c.Read(buf)
	default:
		_, _ = io.WriteString(c, text)
	}
}

// proper is what the built-in worker of slot n%2 answers.
func proper(n int, uri string) string {
	body := fmt.Sprintf(`{"worker":%d,"pid":%d,"generation":1,"policy":"rr","connection":%d,"remote":"x","uri":%q}`, n%2, 100+n%2, n, uri)
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nRrd-Worker: %d\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", n%2, len(body), body)
}

func TestOutcomes(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer func(n int, uri string) string
		want   Outcome
		says   string
	}{
		{"proper", proper, OK, ""},
		{"nothing", func(int, string) string { return "" }, Empty, "after 0 bytes"},
		{"half a header", func(int, string) string { return "HTTP/1.1 200 OK\r\n" }, Empty, "after 17 bytes"},
		{"half a body", func(n int, uri string) string { return proper(n, uri)[:120] }, Empty, "after 120 bytes"},
		{"reset", func(int, string) string { return "RESET" }, Reset, "reset"},
		{"no answer", func(int, string) string { return "HANG" }, Timeout, ""},
		{"twice", func(n int, uri string) string { return proper(n, uri) + proper(n, uri) }, Duplicate, "bytes behind"},
		{"another's", func(n int, uri string) string { return proper(n, "/other") }, Wrong, "answer to /other"},
		{"an error", func(int, string) string { return "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n" }, Wrong, "status 500"},
		{"no HTTP", func(int, string) string { return "SSH-2.0-x and more\r\n\r\n" }, Wrong, "no HTTP"},
		{"no length", func(int, string) string { return "HTTP/1.1 200 OK\r\nX: y\r\n\r\n" }, Wrong, "no Content-Length"},
		{"no end", func(int, string) string { return strings.Repeat("x", 20<<10) }, Wrong, "no end of the header"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := Run(t.Context(), Config{Address: answering(t, tt.answer), Timeout: 300 * time.Millisecond})
			if len(r.Results) != 1 || r.Results[0].Outcome != tt.want || r.Count(tt.want) != 1 {
				t.Fatalf("%v, want %v", r, tt.want)
			}
			if err := r.Results[0].Err; tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)) {
				t.Errorf("error %v, want one with %q", err, tt.says)
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	if r := Run(t.Context(), Config{Address: ln.Addr().String()}); r.Count(Refused) != 1 {
		t.Errorf("%v", r)
	}
	if r := Run(t.Context(), Config{Network: "unix", Address: t.TempDir() + "/none"}); r.Count(Refused) != 1 {
		t.Errorf("%v", r)
	}
}

// A process that counts a connection twice has served it twice.
func TestSameConnectionTwice(t *testing.T) {
	at := answering(t, func(n int, uri string) string { return proper(min(n, 2), uri) })
	r := Run(t.Context(), Config{Address: at, Total: 3})
	if r.Count(OK) != 2 || r.Count(Duplicate) != 1 || r.Results[2].Outcome != Duplicate {
		t.Errorf("%v", r)
	}
}

func TestClosedLoop(t *testing.T) {
	r := Run(t.Context(), Config{Address: answering(t, proper), Clients: 8, Total: 500})
	if r.Count(OK) != 500 || len(r.Failed()) != 0 {
		t.Fatalf("%v", r)
	}
	if by := r.BySlot(); by[0]+by[1] != 500 || r.Spread(2) > 0.01 {
		t.Errorf("by slot %v, spread %v", by, r.Spread(2))
	}
	for i, res := range r.Results {
		if res.Seq != i || res.Answered < res.Started || res.Ended < res.Answered {
			t.Fatalf("result %d: %+v", i, res)
		}
	}
}

// Those that come while the server stands still are charged for it.
func TestOpenLoopChargesTheStall(t *testing.T) {
	const stall = 200 * time.Millisecond
	released := make(chan struct{})
	time.AfterFunc(stall, func() { close(released) })
	at := answering(t, func(n int, uri string) string {
		<-released
		return proper(n, uri)
	})
	r := Run(t.Context(), Config{Address: at, Rate: 1000, Total: 150, MaxOpen: 10})
	if r.Count(OK) != 150 {
		t.Fatalf("%v", r)
	}
	if got := r.Results[140].Latency(); got < stall-140*time.Millisecond-5*time.Millisecond {
		t.Errorf("connection 140 is charged %v only", got)
	}
	if r.Percentile(1) < stall-5*time.Millisecond || r.Percentile(0) > r.Percentile(0.5) {
		t.Errorf("%v", r)
	}
}

func TestDurationAndCancel(t *testing.T) {
	at := answering(t, proper)
	if r := Run(t.Context(), Config{Address: at, Rate: 500, Duration: 100 * time.Millisecond}); r.Count(OK) < 10 || r.Count(OK) > 60 {
		t.Errorf("open: %v", r)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if r := Run(ctx, Config{Address: at, Clients: 4, Total: 100}); len(r.Results) != 0 {
		t.Errorf("cancelled: %v", r)
	}
}

func TestLongBody(t *testing.T) {
	at := answering(t, func(int, string) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", 1<<20, strings.Repeat("x", 1<<20))
	})
	if r := Run(t.Context(), Config{Address: at}); r.Count(OK) != 1 {
		t.Errorf("%v", r)
	}
	short := answering(t, func(int, string) string {
		return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", 1<<20, strings.Repeat("x", 1<<19))
	})
	if r := Run(t.Context(), Config{Address: short}); r.Count(Empty) != 1 || !errors.Is(r.Results[0].Err, io.EOF) {
		t.Errorf("%v", r)
	}
}

func TestIDsAndSources(t *testing.T) {
	r := &run{}
	if a, b := r.id(1), r.id(2); a == b || len(a) != 32 {
		t.Errorf("ids %s, %s", a, b)
	}
	if got := withID("/sleep?ms=1", "ab"); got != "/sleep?ms=1&id=ab" {
		t.Error(got)
	}
	if d := dialers(Config{Address: "127.0.0.1:80", Total: 3 * perSource}); len(d) != 1 && len(d) != 3 {
		t.Errorf("%d dialers", len(d))
	}
	at := answering(t, proper)
	spread := Run(t.Context(), Config{Address: at, Total: 30})
	if spread.Count(OK) != 30 {
		t.Errorf("%v", spread)
	}
}

func TestPercentile(t *testing.T) {
	var results []Result
	for i := range 100 {
		results = append(results, Result{Seq: i, Slot: 0, Answered: time.Duration(100-i) * time.Millisecond})
	}
	r := newReport(results, time.Second)
	for q, want := range map[float64]time.Duration{0: time.Millisecond, 0.5: 50 * time.Millisecond, 0.99: 99 * time.Millisecond, 1: 100 * time.Millisecond} {
		if got := r.Percentile(q); got != want {
			t.Errorf("%v: %v, want %v", q, got, want)
		}
	}
}
