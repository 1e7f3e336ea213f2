package node

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/handoff"
	"rrd/handoff/internal/unixmsg"
	"rrd/test/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

var _ handoff.Channel = (*Conn)(nil)

// link is a channel whose worker's end the test plays itself.
type link struct {
	testing.TB
	*Conn
	end  handoff.FD // the worker's
	in   []byte     // what the worker has read, beyond the last line
	got  []handoff.FD
	said []string // user messages
}

func newLink(t testing.TB, c Config) *link {
	t.Helper()
	leakcheck.Check(t)
	return bareLink(t, c)
}

// bareLink is newLink without a look for what is left behind, which takes time.
func bareLink(t testing.TB, c Config) *link {
	t.Helper()
	l := &link{TB: t}
	if c.Message == nil {
		c.Message = func(text []byte) { l.said = append(l.said, string(text)) }
	}
	master, child, err := Pair(c)
	if err != nil {
		t.Fatal(err)
	}
	l.Conn = master
	l.end = dupOf(t, child)
	_ = child.Close()
	t.Cleanup(func() {
		_ = master.Close()
		l.closeGot()
		_ = l.end.Close()
	})
	return l
}

func dupOf(t testing.TB, f *os.File) handoff.FD {
	t.Helper()
	return socketOf(t, f)
}

// openFile opens a file that is like no other; it closes with the test.
func openFile(t testing.TB) handoff.FD {
	t.Helper()
	var p [2]int
	if err := unix.Pipe(p[:]); err != nil {
		t.Fatal(err)
	}
	unix.CloseOnExec(p[0])
	_ = unix.Close(p[1])
	d := handoff.Own(p[0])
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func sameFile(t testing.TB, a, b handoff.FD) bool {
	t.Helper()
	var sa, sb unix.Stat_t
	if err := unix.Fstat(a.Num(), &sa); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fstat(b.Num(), &sb); err != nil {
		t.Fatal(err)
	}
	return sa.Ino == sb.Ino && sa.Dev == sb.Dev
}

// await waits until fd has what events says; false: until the deadline it had not.
func await(t testing.TB, fd int, events int16, deadline time.Time) bool {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		n, err := unix.Poll(p, int(max(time.Until(deadline).Milliseconds(), 0)))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		return n == 1
	}
}

// say writes as the worker. Each of parts is one write.
func (l *link) say(parts ...string) {
	l.Helper()
	for _, p := range parts {
		for b := []byte(p); len(b) > 0; {
			n, errno := unixmsg.Send(l.end.Num(), b, nil)
			if errno != 0 {
				l.Fatalf("worker writes %d bytes: %v", len(b), errno)
			}
			b = b[n:]
		}
	}
}

// drain reads and decodes all that is there, without waiting.
func (l *link) drain() ([]handoff.Frame, error) {
	l.Helper()
	return drain(l.Conn)
}

func drain(c *Conn) (frames []handoff.Frame, err error) {
	for {
		for {
			var f handoff.Frame
			ok, err := c.Next(&f)
			if err != nil {
				return frames, err
			}
			if !ok {
				break
			}
			frames = append(frames, f)
		}
		if err := c.Receive(); isErrno(err, unix.EAGAIN) {
			return frames, nil
		} else if err != nil {
			return frames, err
		}
	}
}

// heard says something as the worker and returns what the master makes of it.
func (l *link) heard(parts ...string) []handoff.Frame {
	l.Helper()
	l.say(parts...)
	frames, err := l.drain()
	if err != nil {
		l.Fatalf("master reads: %v", err)
	}
	return frames
}

// read reads as the worker what has come, as lines.
func (l *link) read() []string {
	l.Helper()
	var oob [256]byte
	buf := make([]byte, 1<<16)
	for {
		n, oobn, flags, errno := unixmsg.Recv(l.end.Num(), buf, oob[:])
		if errno == unix.EAGAIN || errno == 0 && n == 0 {
			break
		}
		if errno != 0 || flags&unix.MSG_CTRUNC != 0 {
			l.Fatalf("worker reads: %v, flags %#x", errno, flags)
		}
		l.in = append(l.in, buf[:n]...)
		l.got = append(l.got, rightsIn(l, oob[:oobn])...)
	}
	i := bytes.LastIndexByte(l.in, '\n') + 1
	text := string(l.in[:i])
	l.in = slices.Clone(l.in[i:])
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

func rightsIn(t testing.TB, oob []byte) (fds []handoff.FD) {
	t.Helper()
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		t.Fatal(err)
	}
	for i := range msgs {
		if nums, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			for _, n := range nums {
				fds = append(fds, handoff.Own(n))
			}
		}
	}
	return fds
}

func (l *link) closeGot() {
	for i := range l.got {
		_ = l.got[i].Close()
	}
	l.got = nil
}

// send sends a frame as the loop does, and must succeed.
func (l *link) send(f handoff.Frame, share handoff.FD) {
	l.Helper()
	if err := l.Send(&f, share); err != nil {
		l.Fatalf("send %v: %v", f.Type, err)
	}
}

// hand hands d off as number seq, and must succeed.
func (l *link) hand(seq uint64, wire uint32, d handoff.FD) {
	l.Helper()
	if err := l.try(seq, wire, d); err != nil {
		l.Fatalf("handoff %d: %v", seq, err)
	}
}

func (l *link) try(seq uint64, wire uint32, d handoff.FD) error {
	l.Helper()
	if !l.Add(seq, wire, 0, d) {
		l.Fatal("Add says that there is room")
	}
	return l.Flush()
}

// listens has the worker ask for a listener on port 80, and grants it.
func (l *link) listens(seq uint64, wire uint32) {
	l.Helper()
	f := l.heard(query(seq, `"address":null,"port":80,"addressType":4`))
	if len(f) != 1 || f[0].Type != handoff.Listen || f[0].Seq != seq {
		l.Fatalf("a queryServer is %+v", f)
	}
	l.send(handoff.Frame{Type: handoff.Listening, Seq: seq, Listener: wire, Payload: []byte("tcp\x00[::]:80")}, handoff.FD{})
}

func mustEOF(t testing.TB, err error) {
	t.Helper()
	if err != io.EOF {
		t.Errorf("got %v, want EOF", err)
	}
}

// query is a queryServer with these fields.
func query(seq uint64, fields string) string {
	return fmt.Sprintf(`{"cmd":"NODE_CLUSTER","act":"queryServer",%s,"seq":%d}`+"\n", fields, seq)
}
