package worker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"rrd/handoff"
)

// The parts that a re-executed test binary plays as a real worker process.

func init() {
	roles["echo"] = roleEcho
	roles["environment"] = roleEnvironment
	roles["listen"] = roleListen
	roles["fd limit"] = roleFDLimit
	roles["orphan"] = roleOrphan
}

// spawn starts a worker that plays role. The channel is descriptor 4 there, after
// one lent listener.
func (m *master) spawn(role string, env ...string) *exec.Cmd {
	m.Helper()
	lent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		m.Fatal(err)
	}
	defer lent.Close()
	d := dup(m.TB, lent.(*net.TCPListener))
	f := os.NewFile(uintptr(d.Release()), "lent")
	defer f.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), roleEnv+"="+role, handoff.EnvChannelFD+"=4", handoff.EnvProtocol+"=1",
		handoff.EnvSlot+"=2", handoff.EnvGeneration+"=1")
	cmd.Env = append(cmd.Env, env...)
	cmd.ExtraFiles = []*os.File{f, m.child}
	if err := cmd.Start(); err != nil {
		m.Fatal(err)
	}
	_ = m.child.Close()
	m.child = nil
	m.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	m.send(handoff.Frame{Type: handoff.Hello, Arg: 1, Seq: 30_000})
	return cmd
}

func (m *master) answerListen(id uint32) {
	m.Helper()
	f := m.expect(handoff.Listen)
	m.send(handoff.Frame{Type: handoff.Listening, Seq: f.Seq, Listener: id, Payload: []byte("tcp\x00127.0.0.1:8080")})
}

func roleEcho() error {
	ln, err := Listen("tcp", ":8080")
	if err != nil {
		return err
	}
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go echo(c) // ends with the client
	}
}

func echo(c net.Conn) {
	_, _ = io.Copy(c, c)
	_ = c.Close()
}

func TestProcessServesThenDrains(t *testing.T) {
	m := newMaster(t)
	m.spawn("echo")
	m.answerListen(1)
	m.expect(handoff.Ready)
	client, _ := m.handOff(1)
	m.expect(handoff.Ack)
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(client, b); err != nil || string(b) != "hello" {
		t.Fatalf("%q %v", b, err)
	}
	m.send(handoff.Frame{Type: handoff.Drain})
	m.barrier()
	_ = client.Close()
	m.expect(handoff.Drained)
}

// The master dies; the worker serves its connection to the end and exits with 0.
func TestProcessOutlivesItsMasterForItsConnections(t *testing.T) {
	m := newMaster(t)
	cmd := m.spawn("echo")
	m.answerListen(1)
	m.expect(handoff.Ready)
	client, _ := m.handOff(1)
	m.expect(handoff.Ack)
	m.die()
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(client, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	_ = client.Close()
	if _, err := wait(t, later(func() (int, error) { return 0, cmd.Wait() })); err != nil {
		t.Errorf("worker ends with %v", err)
	}
}

func roleEnvironment() error {
	if !Active() {
		return errors.New("not active")
	}
	ln, err := Listen("tcp", ":8080")
	if err != nil {
		return err
	}
	for _, name := range []string{"RRD_CHANNEL_FD", "RRD_PROTOCOL", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if v, ok := os.LookupEnv(name); ok {
			return fmt.Errorf("%s=%s is left", name, v)
		}
	}
	if os.Getenv("RRD_SLOT") != "2" {
		return errors.New("RRD_SLOT is gone")
	}
	if listens, _ := syscall.GetsockoptInt(3, syscall.SOL_SOCKET, syscall.SO_ACCEPTCONN); listens != 0 {
		return errors.New("the lent listener is open")
	}
	// A child of ours has neither the channel nor the listener.
	out, err := exec.Command("sh", "-c", "ls -l /proc/self/fd; exec true").CombinedOutput()
	if err != nil || strings.Contains(string(out), "socket:") {
		return fmt.Errorf("a child has %s, %v", out, err)
	}
	return ln.Close()
}

func TestProcessEnvironmentIsCleared(t *testing.T) {
	m := newMaster(t)
	cmd := m.spawnSelfLent("environment")
	m.answerListen(1)
	m.expect(handoff.Leave)
	m.wantExit(cmd, 0, "")
}

// spawnSelfLent spawns with LISTEN_PID set to the worker's own pid, as only the
// process itself can: a shell in between does it and execs.
func (m *master) spawnSelfLent(role string) *exec.Cmd {
	m.Helper()
	lent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		m.Fatal(err)
	}
	defer lent.Close()
	d := dup(m.TB, lent.(*net.TCPListener))
	f := os.NewFile(uintptr(d.Release()), "lent")
	defer f.Close()
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run=^$`, os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+role, handoff.EnvChannelFD+"=4", handoff.EnvProtocol+"=1",
		handoff.EnvSlot+"=2", "LISTEN_FDS=1", "LISTEN_FDNAMES=web")
	cmd.ExtraFiles = []*os.File{f, m.child}
	cmd.Stderr = new(bytes.Buffer)
	if err := cmd.Start(); err != nil {
		m.Fatal(err)
	}
	_ = m.child.Close()
	m.child = nil
	m.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

func (m *master) wantExit(cmd *exec.Cmd, code int, stderr string) {
	m.Helper()
	_, _ = wait(m.TB, later(func() (int, error) { return 0, cmd.Wait() }))
	got := cmd.Stderr.(*bytes.Buffer).String()
	if cmd.ProcessState.ExitCode() != code || !strings.Contains(got, stderr) {
		m.Errorf("exit %d, %q; want %d, %q", cmd.ProcessState.ExitCode(), got, code, stderr)
	}
}

func roleListen() error {
	if !Active() {
		return errors.New("not active")
	}
	Draining() // has nothing to say then, and must not crash
	_, err := Listen("tcp", ":8080")
	return err
}

// Every wrong value is one clear error of Listen.
func TestProcessWrongEnvironment(t *testing.T) {
	for _, c := range []struct{ fd, protocol, want string }{
		{"x", "1", `RRD_CHANNEL_FD="x" is not a descriptor that rrd passes`},
		{"2", "1", `RRD_CHANNEL_FD="2" is not a descriptor that rrd passes`},
		{"200", "1", `RRD_CHANNEL_FD=200: descriptor 200: not a channel of rrd`},
		{"3", "1", `RRD_CHANNEL_FD=3: descriptor 3: not a channel of rrd`},
		{"4", "", `RRD_PROTOCOL="" is not a protocol version`},
		{"4", "0", `RRD_PROTOCOL="0" is not a protocol version`},
	} {
		m := newMaster(t)
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), roleEnv+"=listen", "RRD_CHANNEL_FD="+c.fd, "RRD_PROTOCOL="+c.protocol)
		cmd.ExtraFiles = []*os.File{null, m.child}
		out, err := cmd.CombinedOutput()
		_ = null.Close()
		if err == nil || !strings.Contains(string(out), c.want) || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%+v: %v, %s", c, err, out)
		}
	}
}

// roleFDLimit lowers its own limit so far that a descriptor cannot arrive, then
// accepts; a byte on stdin makes it close what it has kept open.
func roleFDLimit() error {
	ln, err := Listen("tcp", ":8080")
	if err != nil {
		return err
	}
	first, err := ln.Accept()
	if err != nil {
		return err
	}
	// Fill the numbers below the connection's, so that its close makes room.
	rc, err := first.(*Conn).SyscallConn()
	if err != nil {
		return err
	}
	var num uintptr
	if err := rc.Control(func(fd uintptr) { num = fd }); err != nil {
		return err
	}
	var last uintptr
	for last < num {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		last = f.Fd()
		fillers = append(fillers, f)
	}
	room, _ := strconv.Atoi(os.Getenv("ROOM"))
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		return err
	}
	set(&old.Cur, int(last)+1+room)
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		return err
	}
	go closeOnByte(first) // ends with the process
	fmt.Println("limited")
	second, err := ln.Accept()
	if err != nil {
		return err
	}
	_, err = io.Copy(second, second)
	return err
}

// set hides that the field is signed on some systems.
func set[T int64 | uint64](field *T, n int) { *field = T(n) }

var fillers []*os.File // open to the end

func closeOnByte(c net.Conn) {
	_, _ = os.Stdin.Read(make([]byte, 1))
	_ = c.Close()
}

// At the limit of open files a connection goes back, and comes again when one of
// ours is closed. With room for no descriptor it is lost on arrival; with room
// for one it arrives, and where there is no funnel it cannot be duplicated.
func TestProcessAtItsLimitOfOpenFiles(t *testing.T) {
	need := 2 // descriptors, for a moment
	if runtime.GOOS == "linux" {
		need = 1
	}
	for room := range need {
		t.Run(fmt.Sprint("room for ", room), func(t *testing.T) {
			m := newMaster(t)
			cmd := exec.Command(os.Args[0], "-test.run=^$")
			cmd.Env = append(os.Environ(), roleEnv+"=fd limit", "RRD_CHANNEL_FD=3", "RRD_PROTOCOL=1", fmt.Sprint("ROOM=", room))
			cmd.ExtraFiles = []*os.File{m.child}
			cmd.Stderr = os.Stderr
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			_ = m.child.Close()
			m.child = nil
			t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
			m.answerListen(1)
			m.expect(handoff.Ready)
			m.handOff(1)
			m.expect(handoff.Ack)
			if _, err := io.ReadFull(stdout, make([]byte, len("limited"))); err != nil {
				t.Fatal(err)
			}
			client, seq := m.handOff(1)
			m.expectReject(seq, handoff.ReasonFDLimit)
			m.expect(handoff.Again) // after 100 ms
			m.c.Add(seq, 1, 0, *m.copies[seq])
			m.flush()
			m.expectReject(seq, handoff.ReasonFDLimit)
			if _, err := stdin.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			m.expect(handoff.Again)
			if room+1 < need {
				return
			}
			m.c.Add(seq, 1, 0, *m.copies[seq])
			m.flush()
			if f := m.expect(handoff.Ack); f.Seq != seq {
				t.Fatal(f)
			}
			exchangeEcho(t, client)
		})
	}
}

func exchangeEcho(t *testing.T, client net.Conn) {
	t.Helper()
	if _, err := client.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(client, b); err != nil || string(b) != "hello" {
		t.Fatalf("%q %v", b, err)
	}
}

// roleOrphan writes to its log, a pipe that the dead master had read, and exits by
// itself.
func roleOrphan() error {
	ln, err := Listen("tcp", ":8080")
	if err != nil {
		return err
	}
	c, err := ln.Accept()
	if err != nil {
		return err
	}
	_, _ = c.Read(make([]byte, 1)) // makes the ack leave, then the end
	<-Draining()
	fmt.Fprintln(os.Stderr, "the master is gone")
	if _, err := c.Write([]byte("alive")); err != nil {
		return err
	}
	_ = c.Close()
	select {} // the library ends the process
}

func TestProcessSurvivesItsBrokenLog(t *testing.T) {
	m := newMaster(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), roleEnv+"=orphan", "RRD_CHANNEL_FD=3", "RRD_PROTOCOL=1")
	cmd.ExtraFiles = []*os.File{m.child}
	cmd.Stderr = w
	err = cmd.Start()
	_, _ = r.Close(), w.Close()
	if err != nil {
		t.Fatal(err)
	}
	_ = m.child.Close()
	m.child = nil
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	m.answerListen(1)
	m.expect(handoff.Ready)
	client, _ := m.handOff(1)
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	m.expect(handoff.Ack)
	m.die()
	if got, err := io.ReadAll(client); string(got) != "alive" {
		t.Errorf("%q %v", got, err)
	}
	if _, err := wait(t, later(func() (int, error) { return 0, cmd.Wait() })); err != nil {
		t.Errorf("worker ends with %v", err)
	}
}
