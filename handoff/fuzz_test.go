package handoff

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// understand is how a stream of bytes is to be read, said in the plainest way.
func understand(b []byte) (frames []Frame, err error) {
	for len(b) >= FrameSize && len(b) >= messageLen(b) {
		n := messageLen(b)
		var f Frame
		if _, err := Decode(&f, b[:n], true); err != nil {
			return frames, err
		}
		frames = append(frames, f)
		b = b[n:]
	}
	return frames, nil
}

// FuzzStream sends any bytes, in any pieces, to both ends of a stream. Both
// understand the same.
func FuzzStream(f *testing.F) {
	for _, c := range badMessages() {
		f.Add(c.msg, uint16(10))
	}
	for _, frame := range someFrames {
		f.Add(append(frame.Append(nil), someFrames[0].Append(nil)...), uint16(50))
	}
	f.Add(encode(someFrames[:9]...), uint16(64))
	f.Fuzz(func(t *testing.T, b []byte, piece uint16) {
		b = b[:min(len(b), 1<<15)] // more does not fit into the channel at once
		want, wantErr := understand(b)
		master, child, err := streamPair()
		if err != nil {
			t.Fatal(err)
		}
		defer master.Close()
		port, err := OpenPort(dupOf(t, child))
		_ = child.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer port.Close()
		l := &link{T: t, stream: true, master: master, port: port}

		var up, down []Frame
		var upErr, downErr error
		for part := range slices.Chunk(b, max(int(piece), 1+len(b)/64)) {
			l.say(part)
			if _, errno := sendmsg(master.Num(), part, nil); errno != 0 {
				t.Fatal(errno)
			}
			for upErr == nil {
				if upErr = master.Receive(); upErr != nil {
					break
				}
				var f Frame
				var ok bool
				if ok, upErr = master.Next(&f); ok {
					f.Payload = slices.Clone(f.Payload)
					up = append(up, f)
				}
			}
			for downErr == nil {
				var m Message
				if downErr = port.TryReceive(&m); downErr == nil {
					down = append(down, m.Frames[:m.N]...)
				}
			}
			if isErrno(upErr, unix.EAGAIN) {
				upErr = nil
			}
			if isErrno(downErr, unix.EAGAIN) {
				downErr = nil
			}
		}
		if d := cmp.Diff(want, up); d != "" || !errors.Is(upErr, wantErr) {
			t.Errorf("master: %v, want %v\n%s", upErr, wantErr, d)
		}
		if d := cmp.Diff(want, down); d != "" || !errors.Is(downErr, wantErr) {
			t.Errorf("worker: %v, want %v\n%s", downErr, wantErr, d)
		}
	})
}

// FuzzMessage sends any one message to both ends of a channel as it is made here,
// and both judge it alike.
func FuzzMessage(f *testing.F) {
	for _, c := range badMessages() {
		f.Add(c.msg)
	}
	f.Add(encode(someFrames[3:9]...))
	f.Add(bytes.Repeat([]byte{1}, MaxMessage+1))
	f.Fuzz(func(t *testing.T, msg []byte) {
		if len(msg) == 0 || len(msg) > 2*MaxMessage {
			return
		}
		master, child, err := Pair()
		if err != nil {
			t.Fatal(err)
		}
		defer master.Close()
		port, err := OpenPort(dupOf(t, child))
		_ = child.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer port.Close()
		l := &link{T: t, stream: master.stream, master: master, port: port}
		if l.stream {
			return // FuzzStream's
		}
		l.say(msg)
		if _, errno := sendmsg(master.Num(), msg, nil); errno != 0 {
			t.Fatal(errno)
		}
		up := 0
		upErr := master.Receive()
		for ok := true; ok && upErr == nil; {
			var f Frame
			if ok, upErr = master.Next(&f); ok {
				up++
			}
		}
		var m Message
		downErr := port.Receive(&m)
		// Why it is refused may differ: the master sees that there are too many
		// frames before it looks at them.
		if (upErr == nil) != (downErr == nil) || downErr == nil && up != m.N {
			t.Errorf("master: %d frames, %v; worker: %d frames, %v", up, upErr, m.N, downErr)
		}
	})
}
