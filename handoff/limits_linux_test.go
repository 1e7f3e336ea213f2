package handoff

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// alone runs the calling test again in a process of its own and reports whether
// this is that process. The other one has nothing more to do.
func alone(t *testing.T, prepare func(*exec.Cmd)) bool {
	t.Helper()
	if os.Getenv(envAlone) == t.Name() {
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), envAlone+"="+t.Name())
	if prepare != nil {
		prepare(cmd)
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("in a process of its own: %v\n%s", err, out)
	}
	return false
}

// leaveRoom lowers this process's limit of open files until exactly n more can
// be opened.
func leaveRoom(t *testing.T, n int) {
	t.Helper()
	limit := 0
	for free := 0; free < n; limit++ {
		if _, err := unix.FcntlInt(uintptr(limit), unix.F_GETFD, 0); err != nil {
			free++
		}
	}
	setLimit(t, uint64(limit))
}

func setLimit(t *testing.T, soft uint64) {
	t.Helper()
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	lim.Cur = soft
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
}

// At the limit a prefix of the descriptors arrives, in order. The frames are all
// there, so the rest can be rejected, and the next batch is whole again: on a
// stream too, where frames and descriptors come apart.
func TestOutOfDescriptors(t *testing.T) {
	if !alone(t, nil) {
		return
	}
	const room = 5
	eachKind(t, func(l *link) {
		var lim unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
			l.Fatal(err)
		}
		files := openFiles(l, MaxFrames)
		for round, full := range []bool{true, false} {
			seq := uint64(100 * round)
			if err := l.flush(seq, files...); err != nil {
				l.Fatal(err)
			}
			want := MaxFrames
			if full {
				want = room
				leaveRoom(l.T, room)
			}
			all := l.got(MaxFrames)
			setLimit(l.T, lim.Cur)
			for i, r := range all {
				if r.Seq != seq+uint64(i) || r.fd.Valid() != (i < want) {
					l.Fatalf("round %d, handoff %d is %d, has a descriptor: %v", round, i, r.Seq, r.fd.Valid())
				}
				if r.fd.Valid() && !sameFile(l, r.fd.Num(), files[i].Num()) {
					l.Errorf("round %d, handoff %d brought another descriptor", round, i)
				}
			}
		}
	})
}

// No room at all, and several messages waiting on a stream: their descriptors
// do not slip to other frames.
func TestOutOfDescriptorsThenMore(t *testing.T) {
	if !alone(t, nil) {
		return
	}
	eachKind(t, func(l *link) {
		var lim unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
			l.Fatal(err)
		}
		files := openFiles(l, 6)
		// Frames without descriptors in between shift what one read would bring.
		for i := range 3 {
			hello := Frame{Type: Hello, Payload: make([]byte, 4000)}
			if err := l.master.Send(&hello, FD{}); err != nil {
				l.Fatal(err)
			}
			if err := l.flush(uint64(2*i), files[2*i:2*i+2]...); err != nil {
				l.Fatal(err)
			}
		}
		leaveRoom(l.T, 1)
		all := l.got(3)
		setLimit(l.T, lim.Cur)
		all = append(all, l.got(9-len(all))...)
		for _, r := range all {
			if r.Type != Handoff {
				continue
			}
			if want := r.Seq != 1; r.fd.Valid() != want {
				l.Errorf("handoff %d has a descriptor: %v, want %v", r.Seq, r.fd.Valid(), want)
			} else if want && !sameFile(l, r.fd.Num(), files[r.Seq].Num()) {
				l.Errorf("handoff %d brought another descriptor", r.Seq)
			}
		}
	})
}

// An unprivileged master may have only so many descriptors under way. The batch
// that does not leave is the caller's, and leaves after others arrived.
func TestTooManyUnderWay(t *testing.T) {
	nobody := func(cmd *exec.Cmd) {
		if os.Getuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			cmd.Dir = "/"
		}
	}
	if !alone(t, nobody) {
		return
	}
	l := newLink(t, Pair)
	files := openFiles(t, MaxFrames)
	setLimit(t, 64)
	sent := 0
	var err error
	for err == nil && sent < 1000 {
		if err = l.flush(uint64(sent), files...); err == nil {
			sent += MaxFrames
		}
	}
	if !errors.Is(err, unix.ETOOMANYREFS) {
		t.Fatalf("after %d: %v", sent, err)
	}
	if l.master.frames != 0 {
		t.Errorf("%d left in the batch", l.master.frames)
	}
	if err := l.master.Send(&Frame{Type: Ping}, FD{}); err != nil {
		t.Errorf("a frame without a descriptor: %v", err)
	}
	var m Message
	for range 2 { // two messages of sixteen make room
		if err := l.port.Receive(&m); err != nil || m.NumFDs != MaxFrames {
			t.Fatalf("%d descriptors, %v", m.NumFDs, err)
		}
		m.Close()
	}
	if err := l.flush(uint64(sent), files...); err != nil {
		t.Errorf("after some arrived: %v", err)
	}
}
