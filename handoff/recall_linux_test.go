package handoff

import (
	"os"
	"os/exec"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"rrd/test/leakcheck"
)

// recalled takes back what the worker has not read.
func (l *link) recalled() []Frame {
	l.Helper()
	var frames []Frame
	if err := recall(l.master, func(f *Frame) { frames = append(frames, *f) }); err != nil {
		l.Fatal(err)
	}
	return frames
}

func handoffs(seqs ...uint64) []Frame {
	frames := make([]Frame, len(seqs))
	for i, seq := range seqs {
		frames[i] = Frame{Type: Handoff, Seq: seq}
	}
	return frames
}

// handOff sends each number in a message of its own.
func (l *link) handOff(d FD, seqs ...uint64) {
	l.Helper()
	for _, seq := range seqs {
		l.master.Add(seq, 0, 0, d)
		if err := l.master.Flush(); err != nil {
			l.Fatal(err)
		}
	}
}

func TestRecallThenReceive(t *testing.T) {
	l := newLink(t, Pair)
	d := openFiles(t, 1)[0]
	l.handOff(d, 1, 2, 3, 4)
	if diff := cmp.Diff(handoffs(1, 2, 3, 4), l.recalled()); diff != "" {
		t.Error(diff)
	}
	var m Message
	wantErrno(t, "worker", l.port.TryReceive(&m), unix.EAGAIN)
	if again := l.recalled(); len(again) > 0 {
		t.Errorf("a second time: %+v", again)
	}
	// The channel goes on.
	l.handOff(d, 5)
	if r := l.got(1); r[0].Seq != 5 || !r[0].fd.Valid() {
		t.Errorf("afterwards: %+v", r)
	}
}

// What was read is the worker's, also if it never answers; the rest comes back.
func TestReceiveThenRecall(t *testing.T) {
	l := newLink(t, Pair)
	d := openFiles(t, 1)[0]
	l.handOff(d, 1, 2, 3, 4)
	if r := l.got(2); r[0].Seq != 1 || r[1].Seq != 2 {
		t.Fatalf("got %+v", r)
	}
	if diff := cmp.Diff(handoffs(3, 4), l.recalled()); diff != "" {
		t.Error(diff)
	}
}

func TestRecallOfABatch(t *testing.T) {
	l := newLink(t, Pair)
	files := openFiles(t, MaxFrames)
	if err := l.flush(0, files...); err != nil {
		t.Fatal(err)
	}
	frames := l.recalled()
	if len(frames) != MaxFrames {
		t.Fatalf("%d frames", len(frames))
	}
	for i, f := range frames {
		if f.Seq != uint64(i) || f.Listener != uint32(i) || f.Arg != uint32(2*i) || !files[i].Valid() {
			t.Errorf("frame %d is %+v", i, f)
		}
	}
}

// What is no handoff comes back too, to be sent again.
func TestRecallReportsOtherFrames(t *testing.T) {
	l := newLink(t, Pair)
	d := openFiles(t, 1)[0]
	want := []Frame{
		{Type: Hello, Arg: 1, Seq: 30_000},
		{Type: Handoff, Seq: 1},
		{Type: Listening, Seq: 3, Flags: ListeningShared, Payload: []byte("tcp\x00:80")},
		{Type: Drain},
		{Type: Ping, Seq: 4},
	}
	for i := range want {
		switch f := &want[i]; f.Type {
		case Handoff:
			l.handOff(d, f.Seq)
		case Listening:
			if err := l.master.Send(f, d); err != nil {
				t.Fatal(err)
			}
		default:
			if err := l.master.Send(f, FD{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	var got []Frame
	err := recall(l.master, func(f *Frame) {
		c := *f
		c.Payload = append([]byte(nil), f.Payload...)
		if len(c.Payload) == 0 {
			c.Payload = nil
		}
		got = append(got, c)
	})
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v\n%s", err, d)
	}
}

// Everything a channel can hold comes back, and no descriptor is left.
func TestRecallOfAFullChannel(t *testing.T) {
	l := newLink(t, Pair)
	files := openFiles(t, MaxFrames)
	sent := 0
	for {
		if err := l.flush(uint64(sent), files...); err != nil {
			wantErrno(t, "Flush", err, unix.EAGAIN)
			break
		}
		sent += MaxFrames
	}
	frames := l.recalled()
	if len(frames) != sent {
		t.Fatalf("%d came back of %d", len(frames), sent)
	}
	for i := range frames {
		if frames[i].Seq != uint64(i) {
			t.Fatalf("frame %d has number %d", i, frames[i].Seq)
		}
	}
	if err := l.flush(0, files...); err != nil {
		t.Errorf("the channel is still full: %v", err)
	}
}

// A dead worker's end lives on in the duplicate: nothing sent is lost, and what
// it had answered is still to be read.
func TestRecallFromADeadWorker(t *testing.T) {
	l := newLink(t, Pair)
	d := openFiles(t, 1)[0]
	l.handOff(d, 1, 2)
	l.got(1)
	l.say(encode(Frame{Type: Ack, Seq: 1}))
	_ = l.port.Close()
	l.handOff(d, 3)
	if diff := cmp.Diff(handoffs(2, 3), l.recalled()); diff != "" {
		t.Error(diff)
	}
	if f := l.heard(1); f[0].Type != Ack || f[0].Seq != 1 {
		t.Errorf("its answer: %+v", f)
	}
	wantErrno(t, "then", l.master.Receive(), unix.EAGAIN)
}

// Any option that a worker sets on its end is set on the duplicate too. None
// keeps its handoffs from coming back.
func TestRecallFromAHostileWorker(t *testing.T) {
	for name, harm := range map[string]func(fd int) error{
		"blocking":       func(fd int) error { return unix.SetNonblock(fd, false) },
		"credentials":    func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1) },
		"least room":     func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1) },
		"shut to read":   func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RD) },
		"shut for good":  func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) },
		"peeks":          func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 60) },
		"slow to answer": func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, 1<<20) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLink(t, Pair)
			l.handOff(openFiles(t, 1)[0], 1, 2)
			if err := harm(l.portFD()); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(handoffs(1, 2), l.recalled()); d != "" {
				t.Error(d)
			}
		})
	}
}

// A stopped process is recalled from as well, and sees nothing of it when it goes
// on.
func TestRecallFromAStoppedProcess(t *testing.T) {
	leakcheck.Check(t)
	master, child, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envWorker+"=1")
	cmd.ExtraFiles = []*os.File{child}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = child.Close()
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	l := &link{T: t, master: master}
	d := openFiles(t, 1)[0]
	l.handOff(d, 1)
	if f := l.heard(1); f[0].Type != Ack || f[0].Seq != 1 {
		t.Fatalf("got %+v", f)
	}

	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(cmd.Process.Pid, &ws, unix.WUNTRACED, nil); err != nil || !ws.Stopped() {
		t.Fatalf("stop: %v, status %#x", err, ws)
	}
	l.handOff(d, 2, 3, 4, 5)
	if diff := cmp.Diff(handoffs(2, 3, 4, 5), l.recalled()); diff != "" {
		t.Error(diff)
	}
	if err := cmd.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := master.Send(&Frame{Type: Ping, Seq: 6}, FD{}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Frame{{Type: Pong, Seq: 6}}, l.heard(1)); diff != "" {
		t.Error(diff)
	}
}
