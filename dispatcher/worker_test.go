package dispatcher

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// testWorker is a worker's side played by a goroutine: it acks, answers one line
// with its number and closes.
type testWorker struct {
	id     uint64
	port   *handoff.Port
	served int
	done   sync.WaitGroup
}

func startWorker(t *testing.T, d *Dispatcher, id uint64, slot int, address string) *testWorker {
	t.Helper()
	master, child, err := handoff.Pair()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.FcntlInt(child.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	_ = child.Close()
	port, err := handoff.OpenPort(fd)
	if err != nil {
		t.Fatal(err)
	}
	w := &testWorker{id: id, port: port}
	if err := d.Add(Worker{ID: id, Slot: slot, Channel: master}); err != nil {
		t.Fatal(err)
	}
	w.done.Add(1)
	go w.run(t, address)
	return w
}

func (w *testWorker) run(t *testing.T, address string) {
	defer w.done.Done()
	f := handoff.Frame{Type: handoff.Listen, Seq: 1, Payload: []byte("tcp\x00" + address)}
	if err := w.port.Send(f.Append(nil)); err != nil {
		t.Error(err)
		return
	}
	var m handoff.Message
	for {
		err := w.port.Receive(&m)
		if errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed) {
			return
		}
		if err != nil {
			t.Error(err)
			return
		}
		var out []byte
		k := 0
		for i := range m.N {
			switch f := &m.Frames[i]; f.Type {
			case handoff.Listening:
				if f.Arg != 0 {
					t.Errorf("LISTENING: errno %d %s", f.Arg, f.Payload)
				}
				out = (&handoff.Frame{Type: handoff.Ready}).Append(out)
			case handoff.Handoff:
				out = (&handoff.Frame{Type: handoff.Ack, Seq: f.Seq}).Append(out)
			case handoff.Ping:
				out = (&handoff.Frame{Type: handoff.Pong, Seq: f.Seq}).Append(out)
			case handoff.Drain:
				out = (&handoff.Frame{Type: handoff.Drained}).Append(out)
			}
		}
		if len(out) > 0 {
			if err := w.port.Send(out); err != nil {
				t.Error(err)
			}
		}
		for ; k < m.NumFDs; k++ {
			_, _ = unix.Write(m.FDs[k].Num(), []byte{byte(w.id)})
			_ = m.FDs[k].Close()
			w.served++
		}
	}
}

func dialOne(addr string) (byte, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	var b [1]byte
	_, err = io.ReadFull(c, b[:])
	return b[0], err
}
