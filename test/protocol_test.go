//go:build linux

package test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/handoff"
	"rrd/test/leakcheck"
)

// patience is how long a worker in another process may take for one thing.
const patience = 20 * time.Second

// documented takes the only block of a language out of a document.
func documented(t *testing.T, path, language string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, block, ok := strings.Cut(string(text), "\n```"+language+"\n")
	block, rest, closed := strings.Cut(block, "\n```\n")
	if !ok || !closed || strings.Contains(rest, "\n```"+language+"\n") {
		t.Fatalf("%s does not hold exactly one block of %s", path, language)
	}
	return block + "\n"
}

// pythonWorker is the worker of docs/protocol.md, and this test its master.
type pythonWorker struct {
	*testing.T
	ch     *handoff.Conn
	cmd    *exec.Cmd
	stderr bytes.Buffer
	heard  []handoff.Frame
}

func startPythonWorker(t *testing.T, protocol string) *pythonWorker {
	t.Helper()
	leakcheck.Check(t)
	program := filepath.Join(t.TempDir(), "worker.py")
	if err := os.WriteFile(program, []byte(documented(t, "../docs/protocol.md", "python")), 0o600); err != nil {
		t.Fatal(err)
	}
	ch, child, err := handoff.Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ch.Close() })
	w := &pythonWorker{T: t, ch: ch, cmd: exec.Command("python3", program, "127.0.0.1:0")}
	w.cmd.Env = append(os.Environ(), "RRD_CHANNEL_FD=3", "RRD_SLOT=2", "RRD_GENERATION=1", "RRD_PROTOCOL="+protocol)
	w.cmd.ExtraFiles = []*os.File{child}
	w.cmd.Stderr = &w.stderr
	if err := w.cmd.Start(); err != nil {
		t.Fatalf("%v (the example in docs/protocol.md needs python3)", err)
	}
	_ = child.Close()
	t.Cleanup(func() {
		if w.cmd.ProcessState == nil {
			_ = w.cmd.Process.Kill()
			_ = w.cmd.Wait()
		}
		if t.Failed() {
			t.Logf("the worker's stderr:\n%s", &w.stderr)
		}
	})
	return w
}

func (w *pythonWorker) say(f handoff.Frame, share handoff.FD) {
	w.Helper()
	if err := w.ch.Send(&f, share); err != nil {
		w.Fatalf("send %v: %v", f.Type, err)
	}
}

// hear waits for the next frame and checks what it is.
func (w *pythonWorker) hear(want handoff.Type) handoff.Frame {
	w.Helper()
	for len(w.heard) == 0 {
		p := []unix.PollFd{{Fd: int32(w.ch.Num()), Events: unix.POLLIN}}
		n, err := unix.Poll(p, int(patience.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			w.Fatalf("no %v after %v: %v", want, patience, err)
		}
		if err := w.ch.Receive(); err != nil {
			w.Fatalf("receive %v: %v", want, err)
		}
		for {
			var f handoff.Frame
			ok, err := w.ch.Next(&f)
			if err != nil {
				w.Fatalf("decode %v: %v", want, err)
			}
			if !ok {
				break
			}
			f.Payload = bytes.Clone(f.Payload)
			w.heard = append(w.heard, f)
		}
	}
	f := w.heard[0]
	w.heard = w.heard[1:]
	if f.Type != want {
		w.Fatalf("heard %+v, want %v", f, want)
	}
	return f
}

// becomeReady goes through the beginning of the conversation. share, if valid, is
// the listener that the worker is to accept from.
func (w *pythonWorker) becomeReady(share handoff.FD) {
	w.Helper()
	w.say(handoff.Frame{Type: handoff.Hello, Arg: handoff.ProtocolVersion, Seq: 30_000}, handoff.FD{})
	listen := w.hear(handoff.Listen)
	if string(listen.Payload) != "tcp\x00127.0.0.1:0" {
		w.Fatalf("it asks for %q", listen.Payload)
	}
	answer := handoff.Frame{Type: handoff.Listening, Seq: listen.Seq, Listener: 7, Payload: []byte("tcp\x00127.0.0.1:80")}
	if share.Valid() {
		answer.Flags = handoff.ListeningShared
	}
	w.say(answer, share)
	w.hear(handoff.Ready)
}

// connections makes n of them, accepted as a master does.
func (w *pythonWorker) connections(n int) (clients []net.Conn, accepted []handoff.FD) {
	w.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		w.Fatal(err)
	}
	defer ln.Close()
	accepted = make([]handoff.FD, n)
	for i := range accepted {
		client, err := net.Dial("tcp4", ln.Addr().String())
		if err != nil {
			w.Fatal(err)
		}
		w.Cleanup(func() { _ = client.Close() })
		clients = append(clients, client)
		server, err := ln.Accept()
		if err != nil {
			w.Fatal(err)
		}
		accepted[i] = dup(w.T, server.(*net.TCPConn))
		_ = server.Close()
		w.Cleanup(func() { _ = accepted[i].Close() })
	}
	return clients, accepted
}

// dup returns a reference of its own to a connection or listener.
func dup(t *testing.T, c interface{ File() (*os.File, error) }) handoff.FD {
	t.Helper()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	return handoff.Own(fd)
}

// handOff sends all in one message, numbered from seq.
func (w *pythonWorker) handOff(seq uint64, fds ...handoff.FD) {
	w.Helper()
	for i, d := range fds {
		w.ch.Add(seq+uint64(i), 7, 0, d)
	}
	if err := w.ch.Flush(); err != nil {
		w.Fatal(err)
	}
}

// served checks that the client gets the worker's line and then the end.
func (w *pythonWorker) served(client net.Conn) {
	w.Helper()
	_ = client.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(client, "hello\n"); err != nil {
		w.Fatal(err)
	}
	line, err := bufio.NewReader(client).ReadString('\n')
	if err != nil || line != "hello from slot 2\n" {
		w.Fatalf("client got %q, %v", line, err)
	}
	if n, err := client.Read(make([]byte, 1)); err != io.EOF {
		w.Fatalf("after the answer: %d bytes, %v", n, err)
	}
}

// finish waits for the end of the process.
func (w *pythonWorker) finish() error {
	w.Helper()
	stop := time.AfterFunc(patience, func() { _ = w.cmd.Process.Kill() })
	defer stop.Stop()
	return w.cmd.Wait()
}

func TestDocumentedWorker(t *testing.T) {
	w := startPythonWorker(t, "1")
	w.becomeReady(handoff.FD{})

	w.say(handoff.Frame{Type: handoff.Ping, Seq: 99}, handoff.FD{})
	if f := w.hear(handoff.Pong); f.Seq != 99 {
		t.Errorf("PONG %d", f.Seq)
	}

	// One, then as many as a message holds: acked before a client has said a word.
	seq := uint64(100)
	for _, n := range []int{1, handoff.MaxFrames} {
		clients, accepted := w.connections(n)
		w.handOff(seq, accepted...)
		for i := range n {
			if f := w.hear(handoff.Ack); f.Seq != seq+uint64(i) {
				t.Errorf("ACK %d, want %d", f.Seq, seq+uint64(i))
			}
		}
		for i, c := range clients {
			// Our copy stays open until the client is through: the end that it sees
			// is the worker's shutdown.
			w.served(c)
			if f := w.hear(handoff.Closed); f.Arg != 1 {
				t.Errorf("CLOSED %d", f.Arg)
			}
			_ = accepted[i].Close()
		}
		seq += uint64(n)
	}

	// Drain: the open one is served to its end, the late one rejected.
	clients, accepted := w.connections(2)
	w.handOff(300, accepted[0])
	w.hear(handoff.Ack)
	w.say(handoff.Frame{Type: handoff.Drain}, handoff.FD{})
	w.handOff(301, accepted[1])
	if f := w.hear(handoff.Reject); f.Seq != 301 || handoff.Reason(f.Arg) != handoff.ReasonDraining {
		t.Errorf("the late one: %+v", f)
	}
	w.served(clients[0])
	w.hear(handoff.Closed)
	w.hear(handoff.Drained)
	if err := w.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := w.finish(); err == nil || err.Error() != "signal: terminated" {
		t.Errorf("after SIGTERM: %v", err)
	}
}

func TestDocumentedWorkerAcceptsByItself(t *testing.T) {
	w := startPythonWorker(t, "1")
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	share := dup(t, ln.(*net.TCPListener))
	defer share.Close()
	w.becomeReady(share)
	for range 3 {
		client, err := net.Dial("tcp4", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		w.served(client)
		_ = client.Close()
	}
	w.say(handoff.Frame{Type: handoff.Drain}, handoff.FD{})
	w.hear(handoff.Drained)
}

// Without a master the worker serves what it has and ends by itself.
func TestDocumentedWorkerWithoutAMaster(t *testing.T) {
	w := startPythonWorker(t, "1")
	w.becomeReady(handoff.FD{})
	clients, accepted := w.connections(1)
	w.handOff(5, accepted...)
	if err := w.ch.Close(); err != nil {
		t.Fatal(err)
	}
	_ = accepted[0].Close()
	w.served(clients[0])
	if err := w.finish(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}

func TestDocumentedWorkerIsRefusedAListener(t *testing.T) {
	w := startPythonWorker(t, "1")
	listen := w.hear(handoff.Listen)
	w.say(handoff.Frame{Type: handoff.Listening, Seq: listen.Seq, Arg: uint32(unix.EADDRINUSE),
		Payload: []byte("somebody is there")}, handoff.FD{})
	if err := w.finish(); err == nil || !strings.Contains(w.stderr.String(), "listen: Address already in use: somebody is there") {
		t.Errorf("%v, %q", err, &w.stderr)
	}
}

func TestDocumentedWorkerNeedsItsVersion(t *testing.T) {
	w := startPythonWorker(t, "0")
	want := fmt.Sprintf("speaks protocol %d, this rrd 0", handoff.OldestVersion)
	if err := w.finish(); err == nil || !strings.Contains(w.stderr.String(), want) {
		t.Errorf("%v, %q, want %q", err, &w.stderr, want)
	}
}
