package worker

import (
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// streamMaster is the master's end of a channel where there is no SEQPACKET. It
// writes frames by hand: handoff.Pair makes what its own system has.
type streamMaster struct {
	testing.TB
	c *net.UnixConn
}

func newStreamMaster(t *testing.T) (*streamMaster, *channel) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[0]), "master")
	c, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return &streamMaster{t, c.(*net.UnixConn)}, openTestChannel(t, os.NewFile(uintptr(fds[1]), "worker"))
}

func (m *streamMaster) write(b []byte, fds ...int) {
	m.Helper()
	var oob []byte
	if len(fds) > 0 {
		oob = syscall.UnixRights(fds...)
	}
	if _, _, err := m.c.WriteMsgUnix(b, oob, nil); err != nil {
		m.Fatal(err)
	}
}

func (m *streamMaster) expect(want handoff.Type) handoff.Frame {
	m.Helper()
	b := make([]byte, handoff.FrameSize)
	if _, err := io.ReadFull(m.c, b); err != nil {
		m.Fatalf("read: %v", err)
	}
	if n := int(b[24]) | int(b[25])<<8; n > 0 {
		b = append(b, make([]byte, n)...)
		if _, err := io.ReadFull(m.c, b[handoff.FrameSize:]); err != nil {
			m.Fatal(err)
		}
	}
	var f handoff.Frame
	if _, err := handoff.Decode(&f, b, true); err != nil || f.Type != want {
		m.Fatalf("the worker says %+v, %v, want %v", f, err, want)
	}
	return f
}

// The same conversation over a stream, in pieces that end anywhere.
func TestStreamChannel(t *testing.T) {
	m, ch := newStreamMaster(t)
	hello := (&handoff.Frame{Type: handoff.Hello, Arg: 1, Flags: handoff.HelloTouches}).Append(nil)
	m.write(hello[:10])
	asked := later(func() (net.Listener, error) { return ch.listen("tcp", ":1") })
	f := m.expect(handoff.Listen)
	answer := handoff.Frame{Type: handoff.Listening, Seq: f.Seq, Listener: 1, Payload: []byte("tcp\x00127.0.0.1:1")}
	m.write(append(hello[10:], answer.Append(nil)...))
	ln, err := wait(t, asked)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()

	var clients []net.Conn
	var two []byte
	var nums []int
	for seq := range uint64(2) {
		client, d := pair(t, "tcp")
		defer d.Close()
		clients, nums = append(clients, client), append(nums, d.Num())
		two = (&handoff.Frame{Type: handoff.Handoff, Seq: seq + 1, Listener: 1}).Append(two)
	}
	m.write(two[:70], nums...)
	m.write(two[70:])
	for _, client := range clients {
		conn := accepted(t, accept(t, ln))
		exchange(t, client, conn)
		_ = conn.Close()
	}
	m.expect(handoff.Ready)
	m.expect(handoff.Ack)
	m.expect(handoff.Touched)
	m.write((&handoff.Frame{Type: handoff.Drain}).Append(nil))
	saw := make(map[handoff.Type]bool)
	for !saw[handoff.Drained] {
		b := make([]byte, handoff.FrameSize)
		if _, err := io.ReadFull(m.c, b); err != nil {
			t.Fatal(err)
		}
		saw[handoff.Type(b[4])] = true
	}
	if !saw[handoff.Ack] || !saw[handoff.Closed] {
		t.Errorf("saw %v", saw)
	}
}

// A master that speaks nonsense is as good as gone.
func TestNonsenseEndsTheChannel(t *testing.T) {
	m, ch := newStreamMaster(t)
	ch.start()
	m.write(make([]byte, handoff.FrameSize))
	<-ch.drainC
}
