package node

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/handoff"
	"rrd/test/leakcheck"
)

// real is a Node process that takes the test for its cluster primary.
type real struct {
	*testing.T
	*Conn
	cmd    *exec.Cmd
	said   []string
	frames []handoff.Frame // heard and not asked for yet
}

// startNode runs a program under node. Where CI is set node must be there.
func startNode(t *testing.T, c Config, program string) *real {
	t.Helper()
	path, err := exec.LookPath("node")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	leakcheck.Check(t)
	script := filepath.Join(t.TempDir(), "program.js")
	if err := os.WriteFile(script, []byte(program), 0o644); err != nil {
		t.Fatal(err)
	}
	r := &real{T: t}
	if c.Message == nil {
		c.Message = func(text []byte) { r.said = append(r.said, string(text)) }
	}
	master, child, err := Pair(c)
	if err != nil {
		t.Fatal(err)
	}
	r.Conn = master
	r.cmd = exec.Command(path, script)
	r.cmd.Env = append(os.Environ(), "NODE_CHANNEL_FD=3", "NODE_UNIQUE_ID=1", "NODE_CHANNEL_SERIALIZATION_MODE=json")
	r.cmd.ExtraFiles = []*os.File{child}
	r.cmd.Stderr = t.Output()
	r.cmd.Stdout = t.Output()
	err = r.cmd.Start()
	_ = child.Close()
	if err != nil {
		_ = master.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.cmd.Process.Kill()
		_ = r.cmd.Wait()
		_ = master.Close()
	})
	return r
}

// next waits for the next frame that the worker says, io.EOF at its end.
func (r *real) next() (handoff.Frame, error) {
	r.Helper()
	deadline := time.Now().Add(patience)
	for len(r.frames) == 0 {
		if r.Unsent() {
			await(r, r.Num(), unix.POLLOUT, deadline)
			if err := r.Flush(); err != nil && !isErrno(err, unix.EAGAIN) {
				return handoff.Frame{}, err
			}
		}
		if !await(r, r.Num(), unix.POLLIN, deadline) {
			r.Fatalf("the worker says nothing for %v; messages so far: %q", patience, r.said)
		}
		frames, err := drain(r.Conn)
		r.frames = append(r.frames, frames...)
		if len(r.frames) == 0 && err != nil {
			return handoff.Frame{}, err
		}
	}
	f := r.frames[0]
	r.frames = r.frames[1:]
	return f, nil
}

func (r *real) want(t handoff.Type) handoff.Frame {
	r.Helper()
	f, err := r.next()
	if err != nil || f.Type != t {
		r.Fatalf("got %+v, %v; want %v", f, err, t)
	}
	return f
}

// wantEnd waits for the end of the channel and for that of the process.
func (r *real) wantEnd(code int) {
	r.Helper()
	f, err := r.next()
	if err != io.EOF {
		r.Fatalf("got %+v, %v; want the end", f, err)
	}
	_ = r.cmd.Wait()
	if got := r.cmd.ProcessState.ExitCode(); got != code {
		r.Errorf("exit code %d, want %d (%v)", got, code, r.cmd.ProcessState)
	}
}

// serve grants the next request as wire, under round robin.
func (r *real) serve(wire uint32) handoff.Frame {
	r.Helper()
	f := r.want(handoff.Listen)
	r.answer(handoff.Frame{Type: handoff.Listening, Seq: f.Seq, Listener: wire, Payload: f.Payload, Data: f.Data}, handoff.FD{})
	return f
}

func (r *real) answer(f handoff.Frame, d handoff.FD) {
	r.Helper()
	if err := r.Send(&f, d); err != nil {
		r.Fatalf("send %v: %v", f.Type, err)
	}
}

// client makes a connection and returns both ends, the server's as the master
// has it.
func client(t testing.TB) (net.Conn, handoff.FD) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	d := socketOf(t, s.(*net.TCPConn))
	t.Cleanup(func() { _ = d.Close() }) // again or at last
	return c, d
}

// hand hands a connection off and returns the client's end after the ack.
func (r *real) hand(seq uint64, wire uint32) net.Conn {
	r.Helper()
	c, d := client(r)
	r.Add(seq, wire, 0, d)
	if err := r.Flush(); err != nil {
		r.Fatal(err)
	}
	if f := r.want(handoff.Ack); f.Seq != seq {
		r.Fatalf("acked %d, want %d", f.Seq, seq)
	}
	_ = d.Close() // as the master does: both copies must go for the connection to end
	return c
}

// socketOf returns a descriptor of one's own for what c has open. Never c.File():
// that makes the open socket blocking.
func socketOf(t testing.TB, c syscall.Conn) handoff.FD {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var d handoff.FD
	var dupErr error
	err = rc.Control(func(n uintptr) {
		var fd int
		fd, dupErr = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0)
		d = handoff.Own(fd)
	})
	if err != nil || dupErr != nil {
		t.Fatal(err, dupErr)
	}
	return d
}

func get(t testing.TB, c net.Conn) string {
	t.Helper()
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	_, body, _ := strings.Cut(string(b), "\r\n\r\n")
	return body
}

const hello = `
const server = require('http').createServer((q, r) => { r.setHeader('content-length', 5); r.end('hello') });
`

func TestNodeLife(t *testing.T) {
	r := startNode(t, Config{}, hello+`
server.listen(8080, '127.0.0.1', 77, () => process.send({port: server.address().port}));
`)
	f := r.serve(7)
	if string(f.Payload) != "tcp4\x00127.0.0.1:8080" || f.Arg != 77 || f.Listener != 0 || f.Data != nil {
		t.Errorf("asked for %+v", f)
	}
	r.want(handoff.Ready)
	for seq := range uint64(3) {
		if got := get(t, r.hand(seq+40, 7)); got != "hello" {
			t.Errorf("served %q", got)
		}
	}
	r.answer(handoff.Frame{Type: handoff.Drain}, handoff.FD{})
	if f := r.want(handoff.Leave); f.Listener != 7 {
		t.Errorf("left %d", f.Listener)
	}
	r.wantEnd(0)
	if len(r.said) != 1 || r.said[0] != `{"port":8080}` {
		t.Errorf("program said %q", r.said)
	}
}
