package handoff

import (
	"io"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/test/leakcheck"
)

// The test binary plays other parts too: a worker (runWorker), and single tests
// that must have a process of their own (alone).
const (
	envAlone  = "HANDOFF_TEST_ALONE"
	envWorker = "HANDOFF_TEST_WORKER"
)

// patience is how long a test waits for what must come.
const patience = 10 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(envWorker) != "" {
		os.Exit(runWorker())
	}
	leakcheck.Main(m)
}

// runWorker acks every handoff and answers every ping, until the channel ends.
func runWorker() int {
	p, err := OpenPort(FirstInheritedFD)
	if err != nil {
		return 1
	}
	defer p.Close()
	var m Message
	for {
		if err := p.Receive(&m); err == io.EOF {
			return 0
		} else if err != nil {
			return 2
		}
		m.Close()
		var answer []byte
		for _, f := range m.Frames[:m.N] {
			switch f.Type {
			case Handoff:
				answer = (&Frame{Type: Ack, Seq: f.Seq}).Append(answer)
			case Ping:
				answer = (&Frame{Type: Pong, Seq: f.Seq}).Append(answer)
			}
		}
		if err := p.Send(answer); err != nil {
			return 3
		}
	}
}

// link is a channel with both of its ends in this process.
type link struct {
	*testing.T
	stream bool
	master *Conn
	port   *Port
}

func newLink(t *testing.T, pair func() (*Conn, *os.File, error)) *link {
	t.Helper()
	leakcheck.Check(t)
	master, child, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	port, err := OpenPort(dupOf(t, child))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = port.Close() })
	_ = child.Close()
	return &link{T: t, stream: master.stream, master: master, port: port}
}

// eachKind runs test over every kind of channel that this system has.
func eachKind(t *testing.T, test func(*link)) {
	for kind, pair := range kinds {
		t.Run(kind, func(t *testing.T) { test(newLink(t, pair)) })
	}
}

// dupOf returns a new descriptor for what f has open.
func dupOf(t testing.TB, f *os.File) int {
	t.Helper()
	rc, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	var dupErr error
	err = rc.Control(func(n uintptr) { fd, dupErr = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil || dupErr != nil {
		t.Fatal(err, dupErr)
	}
	return fd
}

// portFD lends the number of the worker's end.
func (l *link) portFD() int {
	fd := -1
	if err := l.port.rc.Control(func(n uintptr) { fd = int(n) }); err != nil {
		l.Fatal(err)
	}
	return fd
}

// openFiles opens n files that differ; they close with the test.
func openFiles(t testing.TB, n int) []FD {
	t.Helper()
	files := make([]FD, n)
	for i := range files {
		var p [2]int
		if err := unix.Pipe(p[:]); err != nil {
			t.Fatal(err)
		}
		unix.CloseOnExec(p[0])
		_ = unix.Close(p[1])
		files[i] = Own(p[0])
	}
	t.Cleanup(func() {
		for i := range files {
			_ = files[i].Close()
		}
	})
	return files
}

// sameFile reports whether both numbers refer to one open pipe.
func sameFile(t testing.TB, a, b int) bool {
	t.Helper()
	var sa, sb unix.Stat_t
	if err := unix.Fstat(a, &sa); err != nil {
		t.Fatalf("descriptor %d: %v", a, err)
	}
	if err := unix.Fstat(b, &sb); err != nil {
		t.Fatalf("descriptor %d: %v", b, err)
	}
	return sa.Ino == sb.Ino && sa.Dev == sb.Dev
}

// awaitReadable waits until the descriptor can be read from.
func awaitReadable(t testing.TB, fd int) {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(p, int(patience.Milliseconds()))
		if err == unix.EINTR {
			continue
		}
		if n != 1 || err != nil {
			t.Fatalf("nothing to read after %v: %v", patience, err)
		}
		return
	}
}

// heard waits for n frames from the worker, in as many messages as they take.
func (l *link) heard(n int) []Frame {
	l.Helper()
	var frames []Frame
	for len(frames) < n {
		awaitReadable(l, l.master.Num())
		if err := l.master.Receive(); err != nil {
			l.Fatalf("master receives: %v", err)
		}
		for {
			var f Frame
			ok, err := l.master.Next(&f)
			if err != nil {
				l.Fatalf("master decodes: %v", err)
			}
			if !ok {
				break
			}
			f.Payload = slices.Clone(f.Payload)
			frames = append(frames, f)
		}
	}
	return frames
}

// received is a frame as the worker saw it, with its descriptor.
type received struct {
	Frame
	fd FD
}

// got waits for n frames from the master, in as many messages as they take. The
// descriptors close with the test.
func (l *link) got(n int) []received {
	l.Helper()
	_ = l.port.SetReadDeadline(time.Now().Add(patience))
	var all []received
	for len(all) < n {
		var m Message
		if err := l.port.Receive(&m); err != nil {
			l.Fatalf("worker receives: %v", err)
		}
		k := 0
		for _, f := range m.Frames[:m.N] {
			f.Payload = slices.Clone(f.Payload)
			r := received{Frame: f}
			if carriesFD(&f) && k < m.NumFDs {
				r.fd = Own(m.FDs[k].Release())
				k++
			}
			all = append(all, r)
		}
		m.Close()
	}
	l.Cleanup(func() {
		for i := range all {
			_ = all[i].fd.Close()
		}
	})
	return all
}

// flush sends a batch with one handoff per file, numbered from seq.
func (l *link) flush(seq uint64, files ...FD) error {
	l.Helper()
	for i, d := range files {
		full := l.master.Add(seq+uint64(i), uint32(i), uint32(2*i), d)
		if full != (i == MaxFrames-1) {
			l.Fatalf("Add %d says full %v", i, full)
		}
	}
	return l.master.Flush()
}

// say sends raw bytes as the worker.
func (l *link) say(b []byte) {
	l.Helper()
	if n, errno := sendmsg(l.portFD(), b, nil); errno != 0 || n != len(b) {
		l.Fatalf("worker sends %d of %d bytes: %v", n, len(b), errno)
	}
}

// next receives as the master and decodes all of the message, until an error.
func (l *link) next() error {
	l.Helper()
	awaitReadable(l, l.master.Num())
	err := l.master.Receive()
	for ok := true; ok && err == nil; {
		var f Frame
		ok, err = l.master.Next(&f)
	}
	return err
}

func wantErrno(t testing.TB, what string, got, want error) {
	t.Helper()
	if got != want { //nolint:errorlint // bare errnos are promised
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func encode(frames ...Frame) []byte {
	var b []byte
	for i := range frames {
		b = frames[i].Append(b)
	}
	return b
}

// recall takes back what the worker of c has not read, frame by frame.
func recall(c *Conn, each func(*Frame)) error {
	end, some := c.Unread()
	if !some {
		return nil
	}
	var broken error
	err := Recall(end, func(msg []byte) {
		if err := Frames(msg, each); err != nil && broken == nil {
			broken = err
		}
	})
	if err == nil {
		err = broken
	}
	return err
}
