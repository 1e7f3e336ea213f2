package node

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// What the worker is told about its listener.
func TestListeningAnswers(t *testing.T) {
	type F = handoff.Frame
	for _, c := range []struct {
		fields string
		f      handoff.Frame
		want   string
	}{
		{`"address":null,"port":80,"addressType":4`, F{Listener: 7, Payload: []byte("tcp\x00[::]:80")},
			`"errno":null,"key":"7","ack":5,"data":null,"sockname":{"address":"::","family":"IPv6","port":80}`},
		{`"address":null,"port":0,"addressType":4`, F{Listener: 7, Payload: []byte("tcp\x00[::]:40123")},
			`"errno":null,"key":"7","ack":5,"data":null,"sockname":{"address":"::","family":"IPv6","port":40123}`},
		// It listens elsewhere than was asked for: the worker is not to know.
		{`"address":"127.0.0.1","port":3000,"addressType":4`, F{Listener: 4294967295, Payload: []byte("tcp4\x00127.0.0.1:80")},
			`"errno":null,"key":"4294967295","ack":5,"data":null,"sockname":{"address":"127.0.0.1","family":"IPv4","port":3000}`},
		{`"address":"::ffff:127.0.0.1","port":80,"addressType":6`, F{Listener: 7, Payload: []byte("tcp4\x00127.0.0.1:80")},
			`"errno":null,"key":"7","ack":5,"data":null,"sockname":{"address":"::ffff:127.0.0.1","family":"IPv6","port":80}`},
		{`"address":"::1","port":80,"addressType":6`, F{Listener: 7, Payload: []byte("tcp6\x00[fe80::1%\"x]:80")},
			`"errno":null,"key":"7","ack":5,"data":null,"sockname":{"address":"fe80::1%\"x","family":"IPv6","port":80}`},
		{`"address":null,"port":80,"addressType":4`, F{Listener: 7, Payload: []byte("tcp4\x00:80")},
			`"errno":null,"key":"7","ack":5,"data":null,"sockname":{"address":"0.0.0.0","family":"IPv4","port":80}`},
		{`"address":null,"port":80,"addressType":4`, F{Listener: 7, Payload: []byte("tcp\x00:80")},
			`"errno":null,"key":"7","ack":5,"data":null,"sockname":{"address":"::","family":"IPv6","port":80}`},
		{`"address":"/a:80","port":-1,"addressType":-1`, F{Listener: 7, Payload: []byte("unix\x00/a:80")},
			`"errno":null,"key":"7","ack":5,"data":null`},
		{`"fd":3`, F{Listener: 7, Payload: []byte("tcp\x00[::]:80")},
			`"errno":null,"key":"7","ack":5,"data":null,"sockname":{"address":"::","family":"IPv6","port":80}`},
		{`"data":{"ticketKeys":"ff"},"address":null,"port":80,"addressType":4`,
			F{Listener: 7, Payload: []byte("tcp\x00[::]:80"), Data: []byte(`{"ticketKeys":"00"}`)},
			`"errno":null,"key":"7","ack":5,"data":{"ticketKeys":"00"},"sockname":{"address":"::","family":"IPv6","port":80}`},
		{`"address":null,"port":80,"addressType":4`, F{Arg: 98, Payload: []byte("somebody has it"), Data: []byte(`[1]`)},
			`"errno":-98,"key":"0","ack":5,"data":[1]`},
	} {
		l := newLink(t, Config{})
		if f := l.heard(query(5, c.fields)); len(f) != 1 {
			t.Fatalf("%s: %+v", c.fields, f)
		}
		c.f.Type, c.f.Seq = handoff.Listening, 5
		l.send(c.f, handoff.FD{})
		l.send(c.f, handoff.FD{}) // nobody asked twice
		wantLines(t, c.fields, l.read(), `{"cmd":"NODE_CLUSTER",`+c.want+`,"seq":0}`)
	}
}

func TestSharedSockets(t *testing.T) {
	for typ, flags := range map[string]uint16{
		"net.Native":   handoff.ListeningShared,
		"dgram.Native": handoff.ListeningShared | handoff.ListeningPacket,
	} {
		l := newLink(t, Config{})
		l.heard(query(5, `"address":"::","port":53,"addressType":"udp6"`))
		d := openFile(t)
		l.send(handoff.Frame{Type: handoff.Listening, Seq: 5, Listener: 7, Flags: flags, Payload: []byte("udp\x00[::]:53"), Data: []byte(`{}`)}, d)
		wantLines(t, typ, l.read(), `{"cmd":"NODE_HANDLE","type":"`+typ+
			`","msg":{"cmd":"NODE_CLUSTER","errno":0,"key":"7","ack":5,"data":{},"seq":0}}`)
		if len(l.got) != 1 || !sameFile(t, l.got[0], d) {
			t.Errorf("descriptors %+v", l.got)
		}
		wantFrames(t, "the rest of its life", l.heard(handleAck, listening, closes("7")),
			handoff.Frame{Type: handoff.Ready}, handoff.Frame{Type: handoff.Leave, Listener: 7})
		if len(l.window.under) != 0 {
			t.Errorf("under way: %+v", l.window.under)
		}
	}
}

// Two open servers of one key would kill the worker.
func TestSecondServerOnTheSameListener(t *testing.T) {
	l := newLink(t, Config{})
	l.listens(1, 7)
	l.listens(2, 7)
	l.heard(query(3, `"address":null,"port":80,"addressType":4`))
	d := openFile(t)
	l.send(handoff.Frame{Type: handoff.Listening, Seq: 3, Listener: 7, Flags: handoff.ListeningShared}, d)
	l.listens(4, 8)
	got := l.read()
	for i, want := range []string{`"errno":null,"key":"7","ack":1,`, `"errno":-98,"key":"0","ack":2,`, `"errno":-98,"key":"0","ack":3,`, `"errno":null,"key":"8","ack":4,`} {
		if len(got) != 4 || !strings.Contains(got[i], want) {
			t.Errorf("answers %q, want %s", got, want)
		}
	}
	wantFrames(t, "close", l.heard(closes("7"), closes("7")), handoff.Frame{Type: handoff.Leave, Listener: 7})
	l.listens(5, 7)
	if got := l.read(); len(got) != 1 || !strings.Contains(got[0], `"errno":null,"key":"7","ack":5,`) {
		t.Errorf("after close: %q", got)
	}
}

func TestHandoffText(t *testing.T) {
	l := newLink(t, Config{})
	l.listens(1, 7)
	l.read()
	for i := range 3 {
		d := openFile(t)
		l.hand(1<<60+uint64(i), uint32(7*i), d)
		wantLines(t, "newconn", l.read(), fmt.Sprintf(
			`{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"cmd":"NODE_CLUSTER","act":"newconn","key":"%d","seq":%d}}`, 7*i, i+1))
		if len(l.got) != 1 || !sameFile(t, l.got[0], d) {
			t.Errorf("descriptors %+v", l.got)
		}
		l.closeGot()
		f := l.heard(handleAck, accepted(i+1, true))
		wantFrames(t, "answer", f, handoff.Frame{Type: handoff.Ack, Seq: 1<<60 + uint64(i)})
	}
}

// After disconnect no handle is sent, and no request is answered.
func TestSilenceAfterDisconnect(t *testing.T) {
	l := newLink(t, Config{})
	l.listens(1, 7)
	l.heard(query(2, `"address":null,"port":81,"addressType":4`), query(3, `"address":"::","port":53,"addressType":"udp6"`))
	l.hand(100, 7, openFile(t))
	l.read()
	l.send(handoff.Frame{Type: handoff.Drain}, handoff.FD{})
	l.send(handoff.Frame{Type: handoff.Drain}, handoff.FD{})
	wantLines(t, "before the answer", l.read())
	l.send(handoff.Frame{Type: handoff.Listening, Seq: 2, Listener: 8, Payload: []byte("tcp\x00[::]:81")}, handoff.FD{})
	l.send(handoff.Frame{Type: handoff.Listening, Seq: 3, Listener: 9, Flags: handoff.ListeningShared}, openFile(t))
	l.send(handoff.Frame{Type: handoff.Listening, Seq: 2, Arg: 98}, handoff.FD{})
	if err := l.try(101, 7, openFile(t)); !isErrno(err, unix.EPIPE) {
		t.Errorf("handoff: %v", err)
	}
	wantFrames(t, "queryServer", l.heard(query(4, `"address":null,"port":82,"addressType":4`), query(5, `"port":-1`)))
	wantLines(t, "silence", l.read())
	wantFrames(t, "late answers", l.heard(nack, closes("7"), goAway),
		handoff.Frame{Type: handoff.Reject, Seq: 100, Arg: uint32(handoff.ReasonFDLimit)},
		handoff.Frame{Type: handoff.Leave, Listener: 7}, handoff.Frame{Type: handoff.Bye})
	// The fence went before its farewell was known: the answer waits for it to arrive.
	wantLines(t, "fence", l.read(), fence(2))
	l.heard(handleAck)
	wantLines(t, "and yet", l.read(), `{"cmd":"NODE_CLUSTER","ack":9,"seq":3}`)
}

// Node has no words for them.
func TestWordsThatNodeDoesNotHave(t *testing.T) {
	l := newLink(t, Config{})
	l.send(handoff.Frame{Type: handoff.Hello, Arg: 1, Seq: 30000}, handoff.FD{})
	l.send(handoff.Frame{Type: handoff.Ping, Seq: 1}, handoff.FD{})
	if _, some := l.Unread(); some {
		t.Error("something can be recalled")
	}
	wantLines(t, "nothing", l.read())
}

// fill makes the channel full with what the worker ignores.
func (l *link) fill() (bytes int) {
	l.Helper()
	line := []byte(strings.Repeat(" ", 1000))
	for {
		if err := l.write(line); err != nil {
			return bytes
		}
		bytes += len(line) - len(l.unsent)
		if l.Unsent() {
			bytes += len(l.unsent)
			return bytes
		}
	}
}

// ack resets the byte window, which fill has used up.
func (l *link) resetWindow() { l.window.acked = l.window.pos }

func TestFullChannel(t *testing.T) {
	l := newLink(t, Config{})
	l.listens(1, 7)
	l.heard(query(2, `"address":null,"port":81,"addressType":4`))
	l.read()
	n := l.fill()
	l.resetWindow()
	if err := l.try(100, 7, openFile(t)); !isErrno(err, unix.EAGAIN) {
		t.Fatalf("handoff: %v", err)
	}
	f := handoff.Frame{Type: handoff.Listening, Seq: 2, Arg: 13}
	if err := l.Send(&f, handoff.FD{}); !isErrno(err, unix.EAGAIN) {
		t.Fatalf("answer: %v", err)
	}
	if l.Held() {
		t.Error("held, with nothing under way")
	}
	// Its own answers wait, in order.
	wantFrames(t, "leaving", l.heard(`{"cmd":"NODE_HANDLE","type":"x"}`+"\n", `{"cmd":"NODE_SOCKET_GET_COUNT","key":"k"}`+"\n"))
	if !l.Unsent() {
		t.Error("its own answers do not wait")
	}
	if err := l.Flush(); !isErrno(err, unix.EAGAIN) {
		t.Errorf("flush: %v", err)
	}
	l.readRaw(n)
	if err := l.Flush(); err != nil || l.Unsent() {
		t.Fatalf("flush: %v", err)
	}
	l.send(f, handoff.FD{})
	l.hand(100, 7, openFile(t))
	wantLines(t, "all of it", l.read(), handleAck[:len(handleAck)-1], `{"cmd":"NODE_SOCKET_COUNT","key":"k","count":0}`,
		`{"cmd":"NODE_CLUSTER","errno":-13,"key":"0","ack":2,"data":null,"seq":1}`,
		`{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"cmd":"NODE_CLUSTER","act":"newconn","key":"7","seq":2}}`)
}

// readRaw reads n bytes as the worker.
func (l *link) readRaw(n int) {
	l.Helper()
	buf := make([]byte, 1<<16)
	for n > 0 {
		k, err := unix.Read(l.end.Num(), buf[:min(n, len(buf))])
		if err == unix.EAGAIN {
			if err := l.Flush(); err != nil && !isErrno(err, unix.EAGAIN) {
				l.Fatal(err)
			}
			continue
		}
		if err != nil || k == 0 {
			l.Fatal(k, err)
		}
		n -= k
	}
}

// A worker that has us answer without ever reading is ended before it fills our
// memory.
func TestWorkerThatDoesNotRead(t *testing.T) {
	l := newLink(t, Config{})
	l.fill()
	answers := 0
	for {
		l.say(`{"cmd":"NODE_HANDLE","type":"net.Socket"}` + "\n")
		if _, err := l.drain(); err == ErrUnread {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if answers++; answers > maxUnsent {
			t.Fatal("it goes on for ever")
		}
	}
	if answers < 1000 || len(l.unsent) > maxUnsent {
		t.Errorf("%d answers, %d bytes", answers, len(l.unsent))
	}
}

// A handle's message that left in part is finished before anything else.
func TestHalfAHandoff(t *testing.T) {
	l := newLink(t, Config{})
	l.listens(1, 7)
	l.read()
	d := openFile(t)
	// As if the kernel had taken 40 bytes of it.
	l.Add(100, 7, 0, d)
	text := string(l.line)
	l.rights.Put(0, d.Num())
	if n, err := unix.SendmsgN(l.fd.Num(), l.line[:40], unix.UnixRights(d.Num()), nil, 0); n != 40 || err != nil {
		t.Fatal(n, err)
	}
	l.committed(l.line, 40)
	l.batch.end = l.window.pos
	l.window.push(l.batch)
	l.next++
	l.filled = false
	if !l.Unsent() || l.Held() {
		t.Fatalf("unsent %v, held %v", l.Unsent(), l.Held())
	}
	l.window.pos += windowBytes // also where the window is used up: the worker must see the end
	if l.Held() {
		t.Error("held before the worker can acknowledge")
	}
	if l.read() != nil || len(l.got) != 1 {
		t.Errorf("a descriptor rides on the first byte: %d came", len(l.got))
	}
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	if !l.Held() {
		t.Error("not held")
	}
	wantLines(t, "all of it", l.read(), strings.TrimSuffix(text, "\n"))
	wantFrames(t, "answer", l.heard(handleAck, accepted(1, true)), handoff.Frame{Type: handoff.Ack, Seq: 100})
}
