package worker

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"rrd/handoff"
	"rrd/test/leakcheck"
)

// server is a worker with an http.Server that ends gently.
type server struct {
	*master
	ch   *channel
	ln   net.Listener
	srv  *http.Server
	g    *gentle
	endC <-chan result[int] // Serve has returned
}

// newServer serves listener 1. A sweep comes every millisecond; idle is what a test of
// the times sets.
func newServer(t *testing.T, h http.Handler, idle time.Duration, wrap func(net.Listener) net.Listener) *server {
	t.Helper()
	m := newMaster(t)
	s := &server{master: m, ch: m.worker(0), srv: &http.Server{Handler: h}}
	s.ln = m.listen(s.ch, 1)
	if wrap != nil {
		s.ln = wrap(s.ln)
	}
	s.g = gentleOf(s.srv, s.ch.drainC)
	s.g.idle, s.g.half, s.g.every = idle, time.Hour, time.Millisecond
	s.endC = later(func() (int, error) { return 0, s.ch.serve(s.ln, s.srv) })
	t.Cleanup(func() {
		_ = s.srv.Close()
		if _, err := wait(t, s.endC); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve returns %v", err)
		}
	})
	m.expect(handoff.Ready)
	return s
}

func (s *server) client() *webClient {
	s.Helper()
	c, _ := s.handOff(1)
	return &webClient{TB: s.TB, Conn: c, r: bufio.NewReader(c)}
}

func (s *server) drain() {
	s.Helper()
	s.send(handoff.Frame{Type: handoff.Drain})
	<-s.ch.drainC
}

// resting waits until the server takes n connections for idle ones.
func (s *server) resting(n int) {
	s.Helper()
	eventually(s.TB, func() bool {
		idle := 0
		s.g.conns.Range(func(_, v any) bool {
			if v.(*served).since.Load() > 0 {
				idle++
			}
			return true
		})
		return idle == n
	})
}

// webClient sends requests by hand.
type webClient struct {
	testing.TB
	net.Conn
	r *bufio.Reader
}

const request = "GET / HTTP/1.1\r\nHost: test\r\n\r\n"

func (c *webClient) ask(text string) {
	c.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		c.Fatal(err)
	}
}

// answer reads one; closes reports whether it is the last on its connection.
func (c *webClient) answer() (body string, closes bool) {
	c.Helper()
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		c.Fatalf("no answer: %v", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		c.Fatal(err)
	}
	return string(b), resp.Close
}

func (c *webClient) wantAnswer(body string, closes bool) {
	c.Helper()
	if b, cl := c.answer(); b != body || cl != closes {
		c.Fatalf("answer %q, close %v; want %q, %v", b, cl, body, closes)
	}
}

func (c *webClient) wantEOF() {
	c.Helper()
	if b, err := c.r.ReadByte(); err != io.EOF {
		c.Fatalf("read %q, %v; want the end", b, err)
	}
}

func hello(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }

func TestServeThenDrain(t *testing.T) {
	leakcheck.Check(t)
	s := newServer(t, http.HandlerFunc(hello), time.Hour, nil)
	c := s.client()
	for range 3 {
		c.ask(request)
		c.wantAnswer("hello", false)
	}
	s.resting(1)
	s.drain()
	c.ask(request)
	c.wantAnswer("hello", true)
	c.wantEOF()
	s.until(handoff.Drained, 0)
}

// What fixes the head of an answer, after the drain has begun while it was handled.
func TestServeClosesWithTheAnswerUnderWay(t *testing.T) {
	for name, write := range map[string]func(http.ResponseWriter){
		"nothing":      func(http.ResponseWriter) {},
		"Write":        func(w http.ResponseWriter) { _, _ = w.Write(nil) },
		"WriteString":  func(w http.ResponseWriter) { _, _ = io.WriteString(w, "") },
		"WriteHeader":  func(w http.ResponseWriter) { w.WriteHeader(http.StatusOK) },
		"Flush":        func(w http.ResponseWriter) { w.(http.Flusher).Flush() },
		"FlushError":   func(w http.ResponseWriter) { _ = http.NewResponseController(w).Flush() },
		"ReadFrom":     func(w http.ResponseWriter) { _, _ = w.(io.ReaderFrom).ReadFrom(strings.NewReader("")) },
		"early hints":  func(w http.ResponseWriter) { w.WriteHeader(http.StatusEarlyHints) },
		"its own":      func(w http.ResponseWriter) { w.Header().Set("Connection", "keep-alive"); w.WriteHeader(http.StatusOK) },
		"no keepalive": func(w http.ResponseWriter) { w.Header().Set("Connection", "close"); w.WriteHeader(http.StatusOK) },
	} {
		t.Run(name, func(t *testing.T) {
			begunC, drainedC := make(chan struct{}), make(chan struct{})
			s := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				close(begunC)
				<-drainedC
				write(w)
			}), time.Hour, nil)
			c := s.client()
			c.ask(request)
			<-begunC
			s.drain()
			close(drainedC)
			if name == "early hints" {
				resp, err := http.ReadResponse(c.r, nil)
				if err != nil || resp.StatusCode != http.StatusEarlyHints {
					t.Fatalf("%v, %v", resp, err)
				}
				_ = resp.Body.Close()
			}
			c.wantAnswer("", true)
			c.wantEOF()
		})
	}
}

// An answer whose head was sent before the drain promises more.
func TestServeKeepsItsPromise(t *testing.T) {
	begunC, drainedC := make(chan struct{}), make(chan struct{})
	s := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/long" {
			w.(http.Flusher).Flush()
			close(begunC)
			<-drainedC
		}
		hello(w, r)
	}), time.Hour, nil)
	c := s.client()
	c.ask("GET /long HTTP/1.1\r\nHost: test\r\n\r\n")
	<-begunC
	s.drain()
	close(drainedC)
	c.wantAnswer("hello", false)
	c.ask(request)
	c.wantAnswer("hello", true)
}

func TestServeEndsWhatIsIdle(t *testing.T) {
	s := newServer(t, http.HandlerFunc(hello), 20*time.Millisecond, nil)
	silent, spoken := s.client(), s.client()
	spoken.ask(request)
	spoken.wantAnswer("hello", false)
	s.resting(2)
	s.drain()
	silent.wantEOF()
	spoken.wantEOF()
	s.until(handoff.Drained, 0)
}

func TestServeEndsWhatIsIdleBehindAnotherListener(t *testing.T) {
	s := newServer(t, http.HandlerFunc(hello), 0, func(ln net.Listener) net.Listener { return hiding{ln} })
	c := s.client()
	c.ask(request)
	c.wantAnswer("hello", false)
	s.drain()
	c.wantEOF()
}

// hiding hides what its connections are.
type hiding struct{ net.Listener }

func (ln hiding) Accept() (net.Conn, error) {
	c, err := ln.Listener.Accept()
	return struct{ net.Conn }{c}, err
}

// Half a request is no idleness.
func TestServeWaitsForTheRestOfARequest(t *testing.T) {
	s := newServer(t, http.HandlerFunc(hello), 0, nil)
	again, first := s.client(), s.client()
	again.ask(request)
	again.wantAnswer("hello", false)
	for _, c := range []*webClient{again, first} {
		c.ask(request[:10])
	}
	eventually(t, func() bool {
		half := 0
		s.g.conns.Range(func(_, v any) bool {
			if s := v.(*served); s.since.Load() > 0 && s.leash.reads.Load() > s.base.Load() {
				half++
			}
			return true
		})
		return half == 2
	})
	s.drain()
	s.g.sweep(monotonic())
	for _, c := range []*webClient{again, first} {
		c.ask(request[10:])
		c.wantAnswer("hello", true)
	}
}

func TestServeEndsHalfARequestLater(t *testing.T) {
	s := newServer(t, http.HandlerFunc(hello), 0, nil)
	s.g.half = 10 * time.Millisecond
	c := s.client()
	c.ask(request[:10])
	s.drain()
	if _, err := io.ReadAll(c.r); err != nil { // net/http may answer what it takes for a bad request
		t.Error(err)
	}
}

func TestServeLeavesHijackedConnections(t *testing.T) {
	hijackedC := make(chan net.Conn, 1)
	s := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
		}
		hijackedC <- c
	}), 0, nil)
	c := s.client()
	c.ask(request)
	conn := <-hijackedC
	s.drain()
	s.resting(0)
	exchange(t, c.Conn, conn)
	_ = conn.Close()
	s.until(handoff.Drained, 0)
}

// Handlers find all that net/http's own writer has, also what a later Go adds.
func TestServeHidesNothing(t *testing.T) {
	s := newServer(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		own := reflect.TypeOf(w.(*response).ResponseWriter)
		for i := range own.NumMethod() {
			if m := own.Method(i); !reflect.ValueOf(w).MethodByName(m.Name).IsValid() {
				t.Errorf("no %s", m.Name)
			} else if want, got := methodType(own, m), methodType(reflect.TypeOf(w), m); want != got {
				t.Errorf("%s is %s, want %s", m.Name, got, want)
			}
		}
		rc := http.NewResponseController(w)
		for _, err := range []error{rc.EnableFullDuplex(), rc.SetReadDeadline(time.Time{}), rc.SetWriteDeadline(time.Time{})} {
			if err != nil {
				t.Error(err)
			}
		}
		if w.(interface{ CloseNotify() <-chan bool }).CloseNotify() == nil {
			t.Error("CloseNotify returns nil")
		}
	}), time.Hour, nil)
	c := s.client()
	c.ask(request)
	c.wantAnswer("", false)
}

// methodType is the type of a method less its receiver.
func methodType(t reflect.Type, m reflect.Method) string {
	m, _ = t.MethodByName(m.Name)
	return strings.Replace(m.Type.String(), t.String(), "", 1)
}

// A server may have hooks of its own, no handler, and several listeners.
func TestServeKeepsTheProgramsOwn(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	states := make(chan http.ConnState, 16)
	srv := &http.Server{ConnState: func(_ net.Conn, s http.ConnState) { states <- s }}
	first, second := m.listen(ch, 1), m.listen(ch, 2)
	for _, ln := range []net.Listener{first, second} {
		c := later(func() (int, error) { return 0, ch.serve(ln, srv) })
		defer func() {
			if _, err := wait(t, c); !errors.Is(err, http.ErrServerClosed) {
				t.Error(err)
			}
		}()
	}
	defer srv.Close()
	m.expect(handoff.Ready)
	for id := range uint32(2) {
		conn, _ := m.handOff(id + 1)
		c := &webClient{TB: t, Conn: conn, r: bufio.NewReader(conn)}
		c.ask(request)
		if body, _ := c.answer(); !strings.Contains(body, "404") {
			t.Errorf("%q is not of the default handler", body)
		}
		for _, want := range []http.ConnState{http.StateNew, http.StateActive, http.StateIdle} {
			if got := <-states; got != want {
				t.Errorf("state %v, want %v", got, want)
			}
		}
	}
	m.send(handoff.Frame{Type: handoff.Drain})
	m.until(handoff.Drained, 0) // without a request: both were idle
}

// Over TLS, in both versions of HTTP.
func TestServeTLS(t *testing.T) {
	for proto, want := range map[string]string{"http/1.1": "HTTP/1.1", "h2": "HTTP/2.0"} {
		t.Run(proto, func(t *testing.T) {
			cert := selfSigned(t)
			s := newServer(t, http.HandlerFunc(hello), time.Hour, func(ln net.Listener) net.Listener {
				return tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{proto}})
			})
			dials := 0
			client := &http.Client{Transport: &http.Transport{
				ForceAttemptHTTP2: proto == "h2",
				TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
				DialContext: func(context.Context, string, string) (net.Conn, error) {
					if dials++; dials > 1 {
						return nil, errors.New("no second connection")
					}
					c, _ := s.handOff(1)
					return c, nil
				},
			}}
			defer client.CloseIdleConnections()
			ask := func() (version string, err error) {
				resp, err := client.Get("https://test/")
				if err != nil {
					return "", err
				}
				defer resp.Body.Close()
				_, err = io.Copy(io.Discard, resp.Body)
				return resp.Proto, err
			}
			for range 2 {
				if got, err := ask(); err != nil || got != want {
					t.Fatal(got, err)
				}
			}
			s.drain()
			if _, err := ask(); err != nil { // and then it ends
				t.Fatal(err)
			}
			s.until(handoff.Drained, 0)
			if _, err := ask(); err == nil {
				t.Error("served on the connection that was to end")
			}
		})
	}
}

// A connection of HTTP/2 is idle although the client's control frames go on.
func TestServeEndsIdleHTTP2(t *testing.T) {
	cert := selfSigned(t)
	s := newServer(t, http.HandlerFunc(hello), 20*time.Millisecond, func(ln net.Listener) net.Listener {
		return tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"h2"}})
	})
	client := &http.Client{Transport: &http.Transport{
		ForceAttemptHTTP2: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
		DialContext:       func(context.Context, string, string) (net.Conn, error) { c, _ := s.handOff(1); return c, nil },
	}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("https://test/")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	s.resting(1)
	s.drain()
	s.until(handoff.Drained, 0)
}

func TestServeWithoutAMaster(t *testing.T) {
	s := newServer(t, http.HandlerFunc(hello), 0, nil)
	exited := exits(s.ch)
	c := s.client()
	c.ask(request)
	c.wantAnswer("hello", false)
	s.die()
	c.wantEOF()
	eventually(t, func() bool { return exited.Load() == 1 })
}

// onALeash returns a connection with a leash.
func onALeash(t *testing.T) (client net.Conn, conn *Conn, l *leash) {
	t.Helper()
	client, d := pair(t, "tcp")
	var u funnel
	u.open()
	t.Cleanup(u.close)
	c, err := u.conn(&d)
	if err != nil {
		t.Fatal(err)
	}
	conn = wrap(c, nil, 0, 0, ours).(*Conn)
	t.Cleanup(func() { _ = conn.Close() })
	return client, conn, leashOf(conn)
}

func TestPullWakesARead(t *testing.T) {
	_, conn, l := onALeash(t)
	c := later(func() (int, error) { return conn.Read(make([]byte, 1)) })
	l.pull(0)
	if n, err := wait(t, c); n != 0 || !isTimeout(err) {
		t.Errorf("Read: %d, %v", n, err)
	}
}

func TestPullAfterARead(t *testing.T) {
	client, conn, l := onALeash(t)
	_, _ = client.Write([]byte("ab"))
	b := make([]byte, 1)
	if _, err := conn.Read(b); err != nil {
		t.Fatal(err)
	}
	l.pull(0) // by who has not seen that Read
	if n, err := conn.Read(b); n != 1 || err != nil {
		t.Errorf("Read: %d, %v", n, err)
	}
}

func TestPullThenUnreadBytes(t *testing.T) {
	client, conn, l := onALeash(t)
	_, _ = client.Write([]byte("a"))
	eventually(t, func() bool { return hasUnread(conn.TCPConn) })
	l.pull(0)
	b := make([]byte, 1)
	if n, err := conn.Read(b); n != 1 || err != nil {
		t.Fatalf("Read: %d, %v", n, err)
	}
	// The program's own deadline holds again: none, and one.
	c := later(func() (int, error) { return conn.Read(b) })
	_, _ = client.Write([]byte("a"))
	if n, err := wait(t, c); n != 1 || err != nil {
		t.Errorf("Read: %d, %v", n, err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
	if _, err := conn.Read(b); !isTimeout(err) {
		t.Errorf("Read with a deadline: %v", err)
	}
}

func TestSetDeadlineEndsAPull(t *testing.T) {
	client, conn, l := onALeash(t)
	l.pull(0)
	_ = conn.SetDeadline(time.Time{})
	c := later(func() (int, error) { return conn.Read(make([]byte, 1)) })
	_, _ = client.Write([]byte("a"))
	if n, err := wait(t, c); n != 1 || err != nil {
		t.Errorf("Read: %d, %v", n, err)
	}
}

func isTimeout(err error) bool {
	var t net.Error
	return errors.As(err, &t) && t.Timeout()
}
