package node

import (
	"bytes"
	"fmt"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/handoff"
	"rrd/handoff/internal/unixmsg"
	"rrd/test/leakcheck"
)

// rawWorker answers handoffs as Node does, without an allocation of its own.
type rawWorker struct {
	fd  int
	in  [1 << 16]byte
	oob [256]byte
	out []byte
}

var seqField = []byte(`,"seq":`)

// answer takes and closes n connections, acknowledges and accepts them: all
// acknowledgements, then all answers, as Node does with what it reads together.
func (w *rawWorker) answer(t testing.TB, n int) {
	w.out = w.out[:0]
	have := 0
	for range n {
		k, oobn, _, errno := unixmsg.Recv(w.fd, w.in[have:], w.oob[:])
		if errno != 0 || oobn < unix.CmsgLen(4) {
			t.Fatal(k, oobn, errno)
		}
		d := handoff.Own(int(w.oob[unix.CmsgLen(0)]) | int(w.oob[unix.CmsgLen(0)+1])<<8)
		_ = d.Close()
		have += k
		w.out = append(w.out, handleAck...)
	}
	for b := w.in[:have]; len(b) > 0; {
		i := bytes.IndexByte(b, '\n')
		_, rest, _ := bytes.Cut(b[:i], seqField)
		w.out = append(w.out, cluster+`"ack":`...)
		w.out = append(w.out, rest[:len(rest)-2]...)
		w.out = append(w.out, `,"accepted":true,"seq":`...)
		w.out = strconv.AppendInt(w.out, int64(n), 10)
		w.out = append(w.out, "}\n"...)
		b = b[i+1:]
	}
	if k, errno := unixmsg.Send(w.fd, w.out, nil); k != len(w.out) || errno != 0 {
		t.Fatal(k, errno)
	}
}

// round hands n connections off, and reads n acks.
func round(t testing.TB, c *Conn, w *rawWorker, n int, d handoff.FD) {
	for i := range n {
		c.Add(uint64(i), 7, 0, d)
		if err := c.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	w.answer(t, n)
	if err := c.Receive(); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		var f handoff.Frame
		if ok, err := c.Next(&f); !ok || err != nil || f.Type != handoff.Ack || f.Seq != uint64(i) {
			t.Fatal(ok, err, f)
		}
	}
	var f handoff.Frame
	if ok, err := c.Next(&f); ok || err != nil {
		t.Fatal(ok, err)
	}
}

func TestHandoffAllocatesNothing(t *testing.T) {
	l := newLink(t, Config{})
	l.listens(1, 7)
	l.read()
	w := &rawWorker{fd: l.end.Num()}
	d := openFile(t)
	for _, n := range []int{1, 16} {
		round(t, l.Conn, w, n, d)
		if got := testing.AllocsPerRun(200, func() { round(t, l.Conn, w, n, d) }); got != 0 {
			t.Errorf("%v allocations for %d handoffs", got, n)
		}
	}
}

// BenchmarkHandoff is everything that the channel costs the master, and what the
// kernel costs the worker: the worker's part is a loop in the same thread.
func BenchmarkHandoff(b *testing.B) {
	for _, window := range []int{1, 4, 16} {
		b.Run(fmt.Sprintf("window=%d", window), func(b *testing.B) {
			leakcheck.Check(b)
			b.ReportAllocs()
			l := bareLink(b, Config{})
			l.listens(1, 7)
			l.read()
			w := &rawWorker{fd: l.end.Num()}
			d := openFile(b)
			for b.Loop() {
				round(b, l.Conn, w, window, d)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*window), "ns/handoff")
		})
	}
}

// BenchmarkText is the part of it that is not the kernel's: the text of a handoff
// and the reading of its two answers.
func BenchmarkText(b *testing.B) {
	b.ReportAllocs()
	line := append([]byte(nil), newconn...)
	ack := []byte(handleAck[:len(handleAck)-1])
	yes := []byte(`{"cmd":"NODE_CLUSTER","ack":123456,"accepted":true,"seq":123456}`)
	c := newConn(Config{}, handoff.FD{})
	n := uint64(123456)
	for b.Loop() {
		line = appendNewconn(line[:len(newconn)], 7, n)
		c.window.push(handle{n: n, seq: 1, wire: 7})
		var f handoff.Frame
		if said, err := c.heed(&f, ack); said || err != nil {
			b.Fatal(said, err)
		}
		if said, err := c.heed(&f, yes); !said || err != nil {
			b.Fatal(said, err)
		}
	}
}
