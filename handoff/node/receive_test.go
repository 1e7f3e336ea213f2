package node

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/handoff"
	"rrd/handoff/internal/unixmsg"
	"rrd/test/leakcheck"
)

// script is a conversation of everything that a worker says, and what is made of
// it, by a channel on which 7 is open and handoffs 1 and 2 are under way.
var script = []struct {
	line string
	want []handoff.Frame
}{
	{online, nil},
	{query(1, `"data":{"ticketKeys":"00"},"address":null,"port":0,"addressType":4,"index":1`), []handoff.Frame{{
		Type: handoff.Listen, Flags: handoff.ListenExact, Seq: 1, Listener: 1, Arg: 511,
		Payload: []byte("tcp\x00:0"), Data: []byte(`{"ticketKeys":"00"}`),
	}}},
	{listening, []handoff.Frame{{Type: handoff.Ready}}},
	{`{"user":"ä\n"}` + "\n", nil},
	{handleAck, nil},
	{accepted(1, true), []handoff.Frame{{Type: handoff.Ack, Seq: 100}}},
	{handleAck, nil},
	{accepted(2, false), []handoff.Frame{{Type: handoff.Reject, Seq: 101, Arg: uint32(handoff.ReasonBusy)}}},
	{"\n", nil},
	{`{"cmd":"NODE_HANDLE","type":"net.Socket"}` + "\n", nil},
	{closes("7"), []handoff.Frame{{Type: handoff.Leave, Listener: 7}}},
	{goAway, []handoff.Frame{{Type: handoff.Bye}}},
}

func scripted(t testing.TB) (l *link, text string, want []handoff.Frame) {
	t.Helper()
	l = bareLink(t, Config{})
	l.listens(50, 7)
	l.hand(100, 7, openFile(t))
	l.hand(101, 7, openFile(t))
	l.closeGot()
	for _, s := range script {
		text += s.line
		want = append(want, s.want...)
	}
	return l, text, want
}

func TestScriptInOneRead(t *testing.T) {
	leakcheck.Check(t)
	l, text, want := scripted(t)
	wantFrames(t, "all at once", l.heard(text), want...)
	wantLines(t, "messages", l.said, `{"user":"ä\n"}`)
}

func TestScriptCutAtEveryByte(t *testing.T) {
	leakcheck.Check(t)
	_, text, _ := scripted(t)
	for i := range len(text) {
		t.Run("", func(t *testing.T) {
			l, text, want := scripted(t)
			got := append(l.heard(text[:i]), l.heard(text[i:])...)
			wantFrames(t, fmt.Sprint("cut before byte ", i), got, want...)
		})
	}
}

func TestScriptByteByByte(t *testing.T) {
	leakcheck.Check(t)
	l, text, want := scripted(t)
	var got []handoff.Frame
	for i := range len(text) {
		got = append(got, l.heard(text[i:i+1])...)
	}
	wantFrames(t, "byte by byte", got, want...)
	wantLines(t, "messages", l.said, `{"user":"ä\n"}`)
}

// The script again and again through one buffer, with lines in between that make
// every position the beginning of a line once.
func TestLinesAnywhereInTheBuffer(t *testing.T) {
	l := newLink(t, Config{})
	l.listens(1, 7)
	d := openFile(t)
	for i := range 600 {
		l.hand(uint64(i), 7, d)
		l.read()
		l.closeGot()
		filler := strings.Repeat("x", i*53%maxLine-1+1) + "\n"
		wantFrames(t, "handoff", l.heard(filler+handleAck+accepted(i+1, true)), handoff.Frame{Type: handoff.Ack, Seq: uint64(i)})
	}
}

// A line of the program's may have any length. Of those that do not fit the
// beginning is passed on, and the rest is not kept.
func TestLongMessages(t *testing.T) {
	for _, n := range []int{maxText, maxText + 1, maxLine - 2, maxLine - 1, maxLine, maxLine + 1, 2 * maxLine, 3 << 20} {
		l := newLink(t, Config{})
		l.listens(1, 7)
		l.hand(100, 7, openFile(t))
		text := `"` + strings.Repeat("x", n-2) + `"`
		var got []handoff.Frame
		for part := range slices.Chunk([]byte(text+"\n"+handleAck+accepted(1, true)), 60_000) {
			got = append(got, l.heard(string(part))...)
		}
		wantFrames(t, "what follows", got, handoff.Frame{Type: handoff.Ack, Seq: 100})
		wantLines(t, "message", l.said, text[:min(n, maxText)])
	}
}

func TestLongMessageTakesConstantMemory(t *testing.T) {
	l := newLink(t, Config{Message: func([]byte) {}})
	part := strings.Repeat("x", 60_000)
	l.heard(`"`, part)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	buf := []byte(part)
	for range 3 << 20 / len(part) {
		if n, errno := unixmsg.Send(l.end.Num(), buf, nil); errno != 0 || n != len(buf) {
			t.Fatal(n, errno)
		}
		if _, err := l.drain(); err != nil {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	// A message that was kept would take 3 MiB; what the runtime does meanwhile counts too.
	if n := after.TotalAlloc - before.TotalAlloc; n > 256<<10 {
		t.Errorf("%d bytes allocated for one message of 3 MiB", n)
	}
	wantFrames(t, "its end", l.heard(`"`+"\n"+listening), handoff.Frame{Type: handoff.Ready})
}

// A handle of the worker's is acknowledged however long its message is.
func TestLongInternalMessages(t *testing.T) {
	l := newLink(t, Config{})
	long := strings.Repeat("x", 3*maxLine)
	wantFrames(t, "handle", l.heard(`{"cmd":"NODE_HANDLE","type":"net.Socket","msg":"`+long+`"}`+"\n"+listening), handoff.Frame{Type: handoff.Ready})
	wantLines(t, "handle", l.read(), handleAck[:len(handleAck)-1])
	wantFrames(t, "others", l.heard(`{"cmd":"NODE_NEW","x":"`+long+`"}`+"\n", `{"cmd":"NODE_SOCKET_GET_COUNT","key":"`+long+`"}`+"\n"))
	wantLines(t, "others", l.read())
	wantLines(t, "nothing of it is the program's", l.said)
}

func TestMessageIsCutBetweenCharacters(t *testing.T) {
	for i := range 4 {
		got := string(cut([]byte(strings.Repeat("x", i) + strings.Repeat("😀", maxText))))
		if len(got) > maxText || len(got) < maxText-3 || strings.ToValidUTF8(got, "?") != got {
			t.Errorf("%d bytes, ends with %q", len(got), got[len(got)-4:])
		}
	}
	if got := cut([]byte(strings.Repeat("\x80", 2*maxText))); len(got) != maxText-4 {
		t.Errorf("of what is no text: %d bytes", len(got))
	}
}

func TestNoConfiguredReader(t *testing.T) {
	master, child, err := Pair(Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	defer child.Close()
	if _, err := io.WriteString(child, `{"a":1}`+"\n"+`"`+strings.Repeat("x", maxLine)+`"`+"\n"+listening); err != nil {
		t.Fatal(err)
	}
	f, err := drain(master)
	if err != nil {
		t.Fatal(err)
	}
	wantFrames(t, "listening", f, handoff.Frame{Type: handoff.Ready})
}

// The end is told after everything that was said before it.
func TestEnd(t *testing.T) {
	for name, unread := range map[string]bool{"read all": false, "left something unread": true} {
		l := newLink(t, Config{})
		l.listens(1, 7)
		l.hand(100, 7, openFile(t))
		if !unread {
			l.read()
			l.closeGot()
		}
		l.say(handleAck, accepted(1, true), `{"cmd":"NODE_CLUS`)
		_ = l.end.Close()
		f, err := l.drain()
		wantFrames(t, name, f, handoff.Frame{Type: handoff.Ack, Seq: 100})
		mustEOF(t, err)
		_, err = l.drain()
		mustEOF(t, err)
		if err := l.try(101, 7, openFile(t)); !isErrno(err, unix.EPIPE) && !isErrno(err, unix.ECONNRESET) {
			t.Errorf("handoff after the end: %v", err)
		}
		// What asks for an answer gets none, and that is no error.
		if err := l.tell([]byte(handleAck)); err != nil || l.Unsent() {
			t.Errorf("%v, unsent %v", err, l.Unsent())
		}
	}
}

// Descriptors that a worker sends are not installed; leakcheck counts.
func TestDescriptorsOfAWorkerAreNotInstalled(t *testing.T) {
	for _, watched := range []bool{false, true} {
		l := newLink(t, Config{})
		if watched {
			if err := l.WatchSender(); err != nil {
				t.Fatal(err)
			}
		}
		text := []byte(`{"cmd":"NODE_HANDLE","type":"net.Socket"}` + "\n")
		for range 3 {
			oob := unix.UnixRights(l.end.Num(), l.end.Num())
			if n, err := unix.SendmsgN(l.end.Num(), text, oob, nil, unix.MSG_DONTWAIT); err != nil || n != len(text) {
				t.Fatal(n, err)
			}
		}
		wantFrames(t, "handles", l.heard(listening), handoff.Frame{Type: handoff.Ready})
		if got := l.read(); len(got) != 3 {
			t.Errorf("acknowledged: %q", got)
		}
	}
}

// A program may ask for more than is answered at a time: such a listen fails, and the
// worker lives.
func TestTooManyRequests(t *testing.T) {
	l := newLink(t, Config{})
	const fields = `"address":null,"port":80,"addressType":4`
	for i := range uint64(maxAsked) {
		l.heard(query(i, fields))
	}
	wantFrames(t, "one too many", l.heard(query(maxAsked, fields)))
	wantLines(t, "one too many", l.read(), fmt.Sprintf(`{"cmd":"NODE_CLUSTER","errno":-24,"key":"0","ack":%d,"data":null,"seq":0}`, maxAsked))
	if err := l.Send(&handoff.Frame{Type: handoff.Listening, Seq: 0, Listener: 7, Payload: []byte("tcp\x00[::]:80")}, handoff.FD{}); err != nil {
		t.Fatal(err)
	}
	if got := l.heard(query(maxAsked, fields)); len(got) != 1 || got[0].Type != handoff.Listen {
		t.Errorf("after an answer: %+v", got)
	}
}

func TestTooManyGoodbyes(t *testing.T) {
	l := newLink(t, Config{})
	l.listens(1, 7)
	l.hand(100, 7, openFile(t)) // until it has arrived no goodbye is answered
	for range maxAsked {
		l.heard(goAway)
	}
	l.say(goAway)
	if _, err := l.drain(); err != ErrAsks {
		t.Errorf("got %v", err)
	}
}

// Receive with lines still in the buffer loses nothing.
func TestReceiveBeforeNext(t *testing.T) {
	l := newLink(t, Config{})
	want := 0
	for range 3 * maxLine / len(closes("7")) {
		l.say(ready)
		want++
		if err := l.Receive(); err != nil {
			t.Fatal(err)
		}
	}
	l.say(listening)
	f, err := l.drain()
	wantFrames(t, "listening", f, handoff.Frame{Type: handoff.Ready})
	if err != nil || len(l.said) != want {
		t.Errorf("%v, %d messages of %d", err, len(l.said), want)
	}
}
