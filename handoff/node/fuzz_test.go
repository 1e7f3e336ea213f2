package node

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// FuzzNext has a worker say any bytes in pieces of any size, while handoffs and
// shared sockets are under way. Whatever it says, every Ack and Reject is for a
// handoff that is under way and comes once, Ready and Bye come once, no listener
// is left that was not open, what is made of it does not depend on the pieces,
// and nothing grows beyond its bounds.
func FuzzNext(f *testing.F) {
	var all string
	for _, s := range script {
		f.Add([]byte(s.line), uint16(7))
		all += s.line
	}
	f.Add([]byte(all), uint16(1))
	f.Add([]byte(all), uint16(100))
	f.Add([]byte(strings.Repeat(handleAck, 5)+accepted(3, true)+accepted(4, false)+accepted(5, true)), uint16(33))
	f.Add([]byte(strings.Repeat(nack, 9)+ready+ready), uint16(9))
	f.Add([]byte(accepted(3, true)+accepted(3, true)+nack+handleAck+handleAck+handleAck+accepted(4, true)), uint16(50))
	f.Add([]byte(strings.Repeat("x", 2*maxLine)+"\n"+handleAck+handleAck+handleAck+accepted(3, true)), uint16(4000))
	f.Add([]byte(`{"cmd":"NODE_CLUSTER","data":"`+strings.Repeat("x", maxLine)), uint16(4000))
	f.Add([]byte(`{"cmd":"NODE_HANDLE","data":"`+strings.Repeat("x", maxLine)), uint16(4000))
	f.Add([]byte(`{"cmd":"NODE_SOCKET_GET_COUNT","key":"a"}`+"\n"+`{"cmd":"NODE_HANDLE"`), uint16(4000))
	f.Add([]byte("\x02{}\n{\"cmd\":\"NODE_CLUSTER\",\"ack\":1e1,\"accepted\":null}\n\n"), uint16(2))
	f.Fuzz(func(t *testing.T, b []byte, piece uint16) {
		b = b[:min(len(b), 1<<16)]
		one := converse(t, b, len(b)+1)
		cut := converse(t, b, max(int(piece), 1+len(b)/200))
		if !one.broke && !cut.broke && !slices.EqualFunc(one.frames, cut.frames, sameFrame) {
			t.Errorf("in one piece %+v\nin several %+v", one.frames, cut.frames)
		}
	})
}

func sameFrame(a, b handoff.Frame) bool {
	return a.Type == b.Type && a.Flags == b.Flags && a.Seq == b.Seq && a.Listener == b.Listener && a.Arg == b.Arg &&
		bytes.Equal(a.Payload, b.Payload) && bytes.Equal(a.Data, b.Data)
}

type conversation struct {
	frames []handoff.Frame
	broke  bool
}

// converse plays one conversation: b is said in pieces, each read as it comes.
func converse(t *testing.T, b []byte, piece int) (v conversation) {
	l := bareLink(t, Config{Message: func(text []byte) {
		if len(text) > maxText {
			t.Errorf("a message of %d bytes", len(text))
		}
	}})
	d := openFile(t)
	l.listens(1, 7)
	l.shares(2, 8, d)
	owed := map[uint64]bool{}
	for seq := range uint64(3) {
		owed[100+seq] = true
		l.hand(100+seq, 7, d)
	}
	l.read()
	l.closeGot()
	judge(t, l, b, piece, owed, &v)
	l.closeGot()
	_, _, _ = l.Close(), l.end.Close(), d.Close()
	return v
}

func judge(t *testing.T, l *link, b []byte, piece int, owed map[uint64]bool, v *conversation) {
	open := map[uint32]bool{7: true, 8: true}
	once := map[handoff.Type]bool{}
	for part := range slices.Chunk(b, piece) {
		for len(part) > 0 {
			n, err := unix.Write(l.end.Num(), part[:min(len(part), 20_000)])
			if err != nil {
				t.Fatal(err)
			}
			part = part[n:]
			frames, err := l.drain()
			for _, f := range frames {
				switch f.Type {
				case handoff.Ack, handoff.Reject:
					if !owed[f.Seq] {
						t.Fatalf("%v of %d, which is not under way", f.Type, f.Seq)
					}
					delete(owed, f.Seq)
				case handoff.Leave:
					if !open[f.Listener] {
						t.Fatalf("leaves %d, which is not open", f.Listener)
					}
					delete(open, f.Listener)
				case handoff.Ready, handoff.Bye:
					if once[f.Type] {
						t.Fatalf("%v twice", f.Type)
					}
					once[f.Type] = true
				case handoff.Listen:
					if !bytes.Contains(f.Payload, []byte{0}) {
						t.Fatalf("asks for %q", f.Payload)
					}
				default:
					t.Fatalf("a worker says %v", f.Type)
				}
			}
			for _, f := range frames {
				// How often a lost socket is sent again depends on when it can be.
				if f.Type != handoff.Leave || f.Listener != 8 {
					v.frames = append(v.frames, f)
				}
			}
			if err != nil {
				v.broke = true
				return
			}
			if len(l.unsent) > maxUnsent || len(l.window.under) > 4 || l.window.arrived > len(l.window.under) || len(l.again) > 1 || len(l.Conn.asked) > maxAsked {
				t.Fatalf("it grows: %d unsent, %d under way of which %d arrived, %d again", len(l.unsent), len(l.window.under), l.window.arrived, len(l.again))
			}
			if err := l.Flush(); err != nil && !isErrno(err, unix.EAGAIN) {
				t.Fatal(err)
			}
			l.read()
			l.closeGot()
		}
	}
}
