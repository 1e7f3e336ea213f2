//go:build unix

package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// fake does what the command says: "echo" returns the args, "hold" waits for the
// end of its context, "slow" for a minute.
type fake struct {
	handled []string
	mu      sync.Mutex
	denied  atomic.Int32
	held    atomic.Int32
}

func (f *fake) Handle(ctx context.Context, p Peer, r Request, emit func(any) error) (any, error) {
	switch r.Cmd {
	case "echo":
		return r.Args, nil
	case "none":
		return nil, nil
	case "events":
		for i := range 3 {
			if err := emit(map[string]int{"n": i}); err != nil {
				return nil, err
			}
		}
		return "done", nil
	case "hold":
		f.held.Add(1)
		defer f.held.Add(-1)
		<-ctx.Done()
		return "released", nil
	case "slow":
		select {
		case <-time.After(time.Minute):
			return "slept", nil
		case <-ctx.Done():
			return nil, errors.New("woken")
		}
	case "panic":
		panic("a\nbug")
	case "busy":
		return nil, Errorf(CodeBusy, "later")
	}
	return nil, errors.New("no\nsuch thing")
}

func (f *fake) note(_ Peer, cmd string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		cmd += "!"
	}
	f.handled = append(f.handled, cmd)
}

func newFake() (*fake, *Server) {
	f := &fake{}
	return f, NewServer(ServerConfig{Handler: f, Handled: f.note, Denied: func(Peer, error) { f.denied.Add(1) }})
}

// overPipe serves one client over a pipe; what it returns ends the server.
func overPipe(s *Server) (net.Conn, *bufio.Reader, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	mine, theirs := net.Pipe()
	s.start(ctx, context.Background(), &client{s: s, c: theirs, in: lineReader{r: theirs}})
	return mine, bufio.NewReader(mine), func() {
		cancel()
		mine.Close()
		s.clients.Wait()
	}
}

func send(t *testing.T, c net.Conn, lines ...string) {
	t.Helper()
	if _, err := io.WriteString(c, strings.Join(lines, "\n")+"\n"); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, in *bufio.Reader, want string) {
	t.Helper()
	line, err := in.ReadString('\n')
	if err != nil || strings.TrimSuffix(line, "\n") != want {
		t.Fatalf("got %q, %v, want %q", line, err, want)
	}
}

func TestServer(t *testing.T) {
	f, s := newFake()
	c, in, end := overPipe(s)
	send(t, c, `{"v":1,"id":5,"cmd":"echo","args":{"a":1}}`)
	receive(t, in, `{"id":5,"ok":true,"result":{"a":1}}`)
	send(t, c, `{"v":1,"id":6,"cmd":"events"}`)
	receive(t, in, `{"id":6,"event":{"n":0}}`)
	receive(t, in, `{"id":6,"event":{"n":1}}`)
	receive(t, in, `{"id":6,"event":{"n":2}}`)
	receive(t, in, `{"id":6,"ok":true,"result":"done"}`)
	send(t, c, `{"v":1,"id":7,"cmd":"bogus"}`)
	receive(t, in, `{"id":7,"ok":false,"error":"no such thing","code":"failed"}`)
	send(t, c, `{"v":1,"id":8,"cmd":"busy"}`)
	receive(t, in, `{"id":8,"ok":false,"error":"later","code":"busy"}`)
	send(t, c, `{"v":1,"id":9,"cmd":"panic"}`)
	receive(t, in, `{"id":9,"ok":false,"error":"panic: internal error: a bug","code":"failed"}`)
	send(t, c, `{"v":1,"id":10,"cmd":"none"}`)
	receive(t, in, `{"id":10,"ok":true,"result":{}}`)
	send(t, c, `{"v":1,"id":11,"cmd":"echo","extra":1}`)
	receive(t, in, `{"id":11,"ok":false,"error":"this is no request: json: unknown field \"extra\"","code":"usage"}`)
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("after a line that is no request: %v", err)
	}
	end()
	if got := strings.Join(f.handled, " "); got != "echo events bogus! busy! panic! none !" {
		t.Error(got)
	}
}

// Requests that come together are worked off in order.
func TestServerPipelined(t *testing.T) {
	_, s := newFake()
	c, in, end := overPipe(s)
	defer end()
	lines := `{"v":1,"id":1,"cmd":"events"}` + "\n" + `{"v":1,"id":2,"cmd":"echo","args":2}` + "\n" + `{"v":1,"id":3,"cmd":"echo","args":3}` + "\n"
	go func() { _, _ = io.WriteString(c, lines) }() // ends with the connection
	for range 3 {
		if _, err := in.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	receive(t, in, `{"id":1,"ok":true,"result":"done"}`)
	receive(t, in, `{"id":2,"ok":true,"result":2}`)
	receive(t, in, `{"id":3,"ok":true,"result":3}`)
}

// Five seconds without a request end the conversation; a request that takes longer
// does not, and the time begins again after it.
func TestServerIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s := newFake()
		c, in, end := overPipe(s)
		began := time.Now()
		send(t, c, `{"v":1,"id":1,"cmd":"slow"}`)
		receive(t, in, `{"id":1,"ok":true,"result":"slept"}`)
		time.Sleep(MaxIdle - time.Second)
		send(t, c, `{"v":1,"id":2,"cmd":"none"}`)
		receive(t, in, `{"id":2,"ok":true,"result":{}}`)
		receive(t, in, `{"id":0,"ok":false,"error":"no request came for 5s","code":"refused"}`)
		if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
		if took, want := time.Since(began), time.Minute+2*MaxIdle-time.Second; took != want {
			t.Errorf("it took %v, want %v", took, want)
		}
		end()
	})
}

// A byte a second is no request in time either.
func TestServerSlowLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s := newFake()
		c, in, end := overPipe(s)
		began := time.Now()
		var writer sync.WaitGroup
		writer.Go(func() { trickle(c) }) // ends with the connection
		receive(t, in, `{"id":0,"ok":false,"error":"no request came for 5s","code":"refused"}`)
		if took := time.Since(began); took != MaxIdle {
			t.Errorf("it took %v", took)
		}
		end()
		writer.Wait()
	})
}

func trickle(c net.Conn) {
	for _, b := range []byte(`{"v":1,"id":1,"cmd":"none"}`) {
		if _, err := c.Write([]byte{b}); err != nil {
			return
		}
		time.Sleep(time.Second)
	}
}

// Who does not read loses the connection, and the request its client.
func TestServerUnread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s := newFake()
		c, _, end := overPipe(s)
		began := time.Now()
		send(t, c, `{"v":1,"id":1,"cmd":"events"}`)
		s.clients.Wait()
		if took := time.Since(began); took != WriteTimeout {
			t.Errorf("it took %v", took)
		}
		if got := strings.Join(f.handled, " "); got != "events!" {
			t.Error(got)
		}
		end()
	})
}

func TestServerLongLine(t *testing.T) {
	_, s := newFake()
	c, in, end := overPipe(s)
	defer end()
	go func() { _, _ = c.Write(make([]byte, MaxLine+1)) }() // ends with the connection
	receive(t, in, `{"id":0,"ok":false,"error":"a line has more than 65536 bytes","code":"usage"}`)
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

// listening serves a socket in a directory of the test.
func listening(t *testing.T) (path string, f *fake, s *Server, stop func()) {
	t.Helper()
	path = filepath.Join(privateDir(t), "c.sock")
	l, err := Listen(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, s = newFake()
	return path, f, s, serving(t, s, l)
}

func dial(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestClient(t *testing.T) {
	path, f, _, stop := listening(t)
	c := dial(t, path)
	var events []string
	result, err := c.Call(t.Context(), "events", nil, func(e json.RawMessage) { events = append(events, string(e)) })
	if err != nil || string(result) != `"done"` || strings.Join(events, "") != `{"n":0}{"n":1}{"n":2}` {
		t.Errorf("%s %v %q", result, err, events)
	}
	big := strings.Repeat("x", MaxLine-200)
	if result, err = c.Call(t.Context(), "echo", map[string]string{"text": big}, nil); err != nil || len(result) < len(big) {
		t.Errorf("%.100s %v", result, err)
	}
	var e *Error
	if _, err = c.Call(t.Context(), "busy", nil, nil); !errors.As(err, &e) || e.Code != CodeBusy || e.Text != "later" {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Call(ctx, "hold", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	c.Close()
	eventually(t, func() bool { return f.held.Load() == 0 })

	// A request under way is answered when the server ends, and then all is over.
	c = dial(t, path)
	go func() { // waited for by the cleanup
		eventually(t, func() bool { return f.held.Load() == 1 })
		stop()
	}()
	if result, err = c.Call(t.Context(), "hold", nil, nil); err != nil || string(result) != `"released"` {
		t.Errorf("%s %v", result, err)
	}
	c.WaitClosed(t.Context())
	stop()
	if _, err := Dial(t.Context(), path); !errors.Is(err, ErrNoMaster) {
		t.Errorf("%v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file: %v", err)
	}
}

// A client that hangs up is not waited for, also if it had asked for more; one that
// has only ended its own side is.
func TestClientHangsUp(t *testing.T) {
	path, f, _, _ := listening(t)
	for _, line := range []string{
		`{"v":1,"id":1,"cmd":"hold"}` + "\n",
		`{"v":1,"id":1,"cmd":"hold"}` + "\n" + `{"v":1,"id":2,"cmd":"echo"}` + "\n" + `{"v":1`,
	} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, line)
		eventually(t, func() bool { return f.held.Load() == 1 })
		c.Close()
		eventually(t, func() bool { return f.held.Load() == 0 })
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, `{"v":1,"id":1,"cmd":"events"}`+"\n"+`{"v":1,"id":2,"cmd":"echo","args":2}`+"\n")
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(c)
	if err != nil || !strings.HasSuffix(string(out), `{"id":2,"ok":true,"result":2}`+"\n") {
		t.Errorf("%q, %v", out, err)
	}
}

// stuck is a Handle that heeds nothing.
type stuck struct{ begunC, releaseC chan struct{} }

func (x *stuck) Handle(context.Context, Peer, Request, func(any) error) (any, error) {
	close(x.begunC)
	<-x.releaseC
	return nil, nil
}

func TestServerEndsWithAStuckHandle(t *testing.T) {
	l, err := Listen(filepath.Join(privateDir(t), "c.sock"), nil)
	if err != nil {
		t.Fatal(err)
	}
	x := &stuck{make(chan struct{}), make(chan struct{})}
	s := NewServer(ServerConfig{Handler: x})
	end := serving(t, s, l)
	c, err := net.Dial("unix", l.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	send(t, c, `{"v":1,"id":1,"cmd":"x"}`)
	<-x.begunC
	end() // hangs if it waits for that
	close(x.releaseC)
	s.clients.Wait()
}

// Another server goes on with a request, and with what its client has sent behind it.
func TestCrossing(t *testing.T) {
	l, err := Listen(filepath.Join(privateDir(t), "c.sock"), nil)
	if err != nil {
		t.Fatal(err)
	}
	before := &crosses{crossed: make(chan Crossing)}
	endBefore := serving(t, NewServer(ServerConfig{Handler: before}), l)
	c, err := net.Dial("unix", l.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, `{"v":1,"id":7,"cmd":"cross"}`+"\n"+`{"v":1,"id":8,"cmd":"echo","args":8}`+"\n"+`{"v":1,"id":9,`); err != nil {
		t.Fatal(err)
	}
	crossed := <-before.crossed
	rc, err := crossed.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var f *os.File
	if err := rc.Control(func(fd uintptr) {
		if n, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			f = os.NewFile(uintptr(n), "asker")
		}
	}); err != nil || f == nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(crossed)
	if err != nil {
		t.Fatal(err)
	}
	crossed = Crossing{}
	if err := json.Unmarshal(text, &crossed); err != nil {
		t.Fatal(err)
	}

	l, err = Listen(filepath.Join(privateDir(t), "c.sock"), nil)
	if err != nil {
		t.Fatal(err)
	}
	after, s := newFake()
	if err := s.Resume(f, crossed, "gone on", nil); err != nil {
		t.Fatal(err)
	}
	endAfter := serving(t, s, l)
	in := bufio.NewReader(c)
	receive(t, in, `{"id":7,"ok":true,"result":"gone on"}`)
	receive(t, in, `{"id":8,"ok":true,"result":8}`)
	send(t, c, `"cmd":"none"}`)
	receive(t, in, `{"id":9,"ok":true,"result":{}}`)
	c.Close()
	endAfter()
	endBefore()
	if got := strings.Join(after.handled, " "); got != "cross echo none" {
		t.Error(got)
	}
}

// crosses gives its request away, as the image before an upgrade does, and waits for
// the end, which there is the exec.
type crosses struct{ crossed chan Crossing }

func (x *crosses) Handle(ctx context.Context, _ Peer, r Request, _ func(any) error) (any, error) {
	x.crossed <- r.Cross()
	<-ctx.Done()
	return nil, nil
}

// serving runs a server until what it returns is called.
func serving(t *testing.T, s *Server, l *Listener) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }() // waited for in end
	end = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(end)
	return end
}

func eventually(t *testing.T, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not come to pass")
		}
	}
}

// F46: more clients than there are places are told so, and nobody else suffers.
func TestF46ThousandClients(t *testing.T) {
	path, f, _, _ := listening(t)
	var held []*Client
	for range MaxClients {
		c := dial(t, path)
		if _, err := c.Call(t.Context(), "none", nil, nil); err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	n := 1000
	if testing.Short() {
		n = 100
	}
	for i := range n {
		c := dial(t, path)
		var e *Error
		if _, err := c.Call(t.Context(), "none", nil, nil); !errors.As(err, &e) || e.Code != CodeBusy || !strings.Contains(e.Text, "16 clients") {
			t.Fatalf("%v", err)
		}
		c.Close()
		for _, c := range held {
			if i%50 > 0 {
				break // they must only not be idle
			}
			if _, err := c.Call(t.Context(), "none", nil, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, func() bool { return int(f.denied.Load()) == n })
	for _, c := range held {
		c.Close()
	}
	eventually(t, func() bool {
		c := dial(t, path)
		_, err := c.Call(t.Context(), "none", nil, nil)
		return err == nil
	})
}
