package node

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"rrd/handoff"
)

const (
	online    = `{"cmd":"NODE_CLUSTER","act":"online","seq":0}` + "\n"
	listening = `{"cmd":"NODE_CLUSTER","act":"listening","index":0,"data":null,"address":null,"port":80,"addressType":4,"backlog":0,"seq":2}` + "\n"
	nack      = `{"cmd":"NODE_HANDLE_NACK"}` + "\n"
	goAway    = `{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":9}` + "\n"
	ready     = `"ready"` + "\n"
)

func accepted(n int, yes bool) string {
	return fmt.Sprintf(`{"cmd":"NODE_CLUSTER","ack":%d,"accepted":%v,"seq":3}`+"\n", n, yes)
}

func closes(key string) string {
	return `{"cmd":"NODE_CLUSTER","act":"close","key":"` + key + `","seq":4}` + "\n"
}

func wantFrames(t testing.TB, what string, got []handoff.Frame, want ...handoff.Frame) {
	t.Helper()
	if len(got) == 0 && len(want) == 0 {
		return
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func wantLines(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	if len(got) == 0 && len(want) == 0 {
		return
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func listen(f handoff.Frame, target string) handoff.Frame {
	f.Type, f.Seq, f.Payload = handoff.Listen, 5, []byte(strings.Replace(target, " ", "\x00", 1))
	f.Flags |= handoff.ListenExact
	if f.Arg == 0 && !strings.HasPrefix(target, "udp") {
		f.Arg = 511
	}
	return f
}

// What programs ask for, as Node puts it, and what is bound for them.
func TestQueries(t *testing.T) {
	type F = handoff.Frame
	for fields, want := range map[string]handoff.Frame{
		// listen(8000), with what different versions put beside
		`"index":0,"data":null,"address":null,"port":8000,"addressType":4,"backlog":false`:             listen(F{}, "tcp :8000"),
		`"index":3,"data":null,"address":null,"port":8000,"addressType":4,"flags":null,"backlog":0`:    listen(F{}, "tcp :8000"),
		`"address":null,"port":8000,"addressType":4,"fd":-1,"backlog":12`:                              listen(F{Arg: 12}, "tcp :8000"),
		`"address":null,"port":8000,"addressType":4,"backlog":-1`:                                      listen(F{}, "tcp :8000"),
		`"address":null,"port":8000,"addressType":4,"backlog":99999999999`:                             listen(F{Arg: 1<<31 - 1}, "tcp :8000"),
		`"address":null,"port":8000,"addressType":4,"flags":1`:                                         listen(F{}, "tcp6 :8000"),
		`"address":"::","port":8000,"addressType":6,"flags":0`:                                         listen(F{}, "tcp [::]:8000"),
		`"address":"::","port":8000,"addressType":6,"flags":1`:                                         listen(F{}, "tcp6 [::]:8000"),
		`"address":"::1","port":8000,"addressType":6`:                                                  listen(F{}, "tcp6 [::1]:8000"),
		`"address":"::ffff:127.0.0.1","port":8000,"addressType":6`:                                     listen(F{}, "tcp4 [::ffff:127.0.0.1]:8000"),
		`"address":"fe80::1%eth0","port":8000,"addressType":6`:                                         listen(F{}, "tcp6 [fe80::1%eth0]:8000"),
		`"address":"127.0.0.1","port":8000,"addressType":4`:                                            listen(F{}, "tcp4 127.0.0.1:8000"),
		`"address":null,"port":0,"addressType":4,"index":2`:                                            listen(F{Listener: 2}, "tcp :0"),
		`"index":0,"data":{"ticketKeys":"00ff"},"address":null,"port":443,"addressType":4`:             listen(F{Data: []byte(`{"ticketKeys":"00ff"}`)}, "tcp :443"),
		`"address":"/tmp/a\"é.sock","port":-1,"addressType":-1`:                                        listen(F{}, "unix /tmp/a\"é.sock"),
		`"address":"/tmp/a","port":-1,"addressType":-1,"readableAll":true,"writableAll":false`:         listen(F{Flags: handoff.ListenReadable}, "unix /tmp/a"),
		`"address":"/tmp/a","port":-1,"addressType":-1,"writableAll":true,"index":4`:                   listen(F{Flags: handoff.ListenWritable}, "unix /tmp/a"),
		`"address":"/home/app/\u0000name","port":-1,"addressType":-1`:                                  listen(F{}, "unix @name"),
		`"address":"0.0.0.0","port":53,"addressType":"udp4","fd":null,"flags":0`:                       listen(F{}, "udp4 0.0.0.0:53"),
		`"address":"::","port":53,"addressType":"udp6","flags":0`:                                      listen(F{}, "udp [::]:53"),
		`"address":"::","port":53,"addressType":"udp6","flags":5`:                                      listen(F{Flags: handoff.ListenReuse}, "udp6 [::]:53"),
		`"address":"::1","port":0,"addressType":"udp6","index":1`:                                      listen(F{Listener: 1}, "udp6 [::1]:0"),
		`"address":null,"port":null,"addressType":4,"index":1`:                                         listen(F{Listener: 1}, "tcp :0"),
		`"address":null,"port":"80","addressType":4`:                                                   listen(F{}, "tcp :80"),
		`"address":"0.0.0.0","addressType":"udp4","fd":-1,"flags":0`:                                   listen(F{}, "udp4 0.0.0.0:0"),
		`"address":"0.0.0.0","port":null,"addressType":"udp4","fd":-1,"index":2`:                       listen(F{Listener: 2}, "udp4 0.0.0.0:0"),
		`"address":"0.0.0.0","port":"53","addressType":"udp4","fd":-1,"index":2`:                       listen(F{}, "udp4 0.0.0.0:53"),
		`"address":null,"port":null,"addressType":null,"fd":3,"backlog":5`:                             listen(F{Arg: 5}, "fd 3"),
		`"address":null,"port":null,"addressType":null,"fd":0`:                                         listen(F{}, "fd 0"),
		`"ADDRESS":"x","Act":"y","Seq":7,"address":"127.0.0.1","port":1,"port":8000,"addressType":4`:   listen(F{}, "tcp4 127.0.0.1:8000"),
		`"address":{"cmd":"NODE_HANDLE"},"new":[1,{"a":null}],"port":8000,"addressType":4,"backlog":9`: listen(F{Arg: 9}, "tcp :8000"),
	} {
		l := newLink(t, Config{})
		wantFrames(t, fields, l.heard(online, query(5, fields)), want)
		wantLines(t, fields, l.read())
	}
}

// What nobody could grant is refused without asking.
func TestImpossibleQueries(t *testing.T) {
	const refused = `{"cmd":"NODE_CLUSTER","errno":-22,"key":"0","ack":5,"data":null,"seq":0}`
	for _, fields := range []string{
		`"address":null,"port":-1,"addressType":-1`, // listen(handle) of Node 18
		`"address":"","port":-1,"addressType":-1`,
		`"address":"relative","port":-1,"addressType":-1`,
		`"address":"/app/\u0000","port":-1,"addressType":-1`,   // the kernel would make a name up
		`"address":"/app/s\u0000x","port":-1,"addressType":-1`, // and end the path here
		`"address":"/app/\u0000a\u0000b","port":-1,"addressType":-1`,
		`"address":null,"port":65536,"addressType":4`,
		`"address":null,"port":-1,"addressType":4`,
		`"address":null,"port":"65536","addressType":4`,
		`"address":null,"port":"eighty","addressType":4`,
		`"address":null,"port":[80],"addressType":4`,
		`"address":"0.0.0.0","port":{},"addressType":"udp4"`,
		`"address":null,"port":80.5,"addressType":4`,
		`"address":null,"port":80,"addressType":"pipe"`,
		`"address":null,"port":80,"addressType":5`,
		`"address":null,"port":80`,
		`"address":null,"port":null,"addressType":null,"fd":4294967296`,
		`"address":null,"port":null,"addressType":null,"fd":-2`,
	} {
		l := newLink(t, Config{})
		wantFrames(t, fields, l.heard(query(5, fields)))
		wantLines(t, fields, l.read(), refused)
	}
	l := newLink(t, Config{})
	l.heard(query(5, `"data":{"ticketKeys":"ab"},"port":-1`))
	wantLines(t, "with data", l.read(), strings.Replace(refused, `"data":null`, `"data":{"ticketKeys":"ab"}`, 1))
}

// A socket that a tool has made for itself is bound, and makes no worker ready.
func TestPrivateSocketsMakeNoWorkerReady(t *testing.T) {
	type F = handoff.Frame
	l := newLink(t, Config{Private: func(path string, _ int) bool { return path == "/tmp/tool" }})
	says := func(path string) string {
		return `{"cmd":"NODE_CLUSTER","act":"listening","address":"` + path + `","port":-1,"addressType":-1,"seq":6}` + "\n"
	}
	unix := func(path string) string { return query(5, `"address":"`+path+`","port":-1,"addressType":-1`) }
	wantFrames(t, "its own", l.heard(unix("/tmp/tool")), listen(F{Flags: handoff.ListenPrivate}, "unix /tmp/tool"))
	wantFrames(t, "its own", l.heard(says("/tmp/tool"), ready))
	wantFrames(t, "the service's", l.heard(unix("/tmp/app")), listen(F{}, "unix /tmp/app"))
	wantFrames(t, "its own", l.heard(says("/tmp/tool")))
	wantFrames(t, "the service's", l.heard(says("/tmp/app")), F{Type: handoff.Ready})
}

func TestReadyOnce(t *testing.T) {
	l := newLink(t, Config{})
	wantFrames(t, "online", l.heard(online))
	wantFrames(t, "a message", l.heard(ready))
	wantFrames(t, "listening", l.heard(listening), handoff.Frame{Type: handoff.Ready})
	wantFrames(t, "again", l.heard(listening, ready))
}

func TestReadyOnMessage(t *testing.T) {
	for _, words := range [][]string{{ready, listening}, {listening, ready}, {listening, `{"a":1}` + "\n", ready}} {
		l := newLink(t, Config{ReadyOnMessage: true})
		for i, w := range words {
			if last := i == len(words)-1; last {
				wantFrames(t, w, l.heard(w), handoff.Frame{Type: handoff.Ready})
			} else {
				wantFrames(t, w, l.heard(w))
			}
		}
		wantFrames(t, "again", l.heard(listening, ready))
	}
}

func TestAnswersToHandoffs(t *testing.T) {
	l := newLink(t, Config{})
	l.listens(1, 7)
	l.heard(listening)
	for seq := range uint64(4) {
		l.hand(100+seq, 7, openFile(t))
	}
	l.heard(handleAck, handleAck, handleAck, handleAck)
	// 0 was the answer to the queryServer.
	wantFrames(t, "the answers", l.heard(accepted(3, false), accepted(1, true),
		`{"seq":3,"accepted":true,"ack":2,"cmd":"NODE_CLUSTER","new":1}`+"\n"), // in other words
		handoff.Frame{Type: handoff.Reject, Seq: 102, Arg: uint32(handoff.ReasonBusy)},
		handoff.Frame{Type: handoff.Ack, Seq: 100}, handoff.Frame{Type: handoff.Ack, Seq: 101})
	wantFrames(t, "what is not under way", l.heard(accepted(1, true), accepted(0, true), accepted(99, false), accepted(3, true),
		`{"cmd":"NODE_CLUSTER","ack":-4,"accepted":true,"seq":1}`+"\n",
		`{"cmd":"NODE_CLUSTER","ack":4,"accepted":"yes","seq":1}`+"\n",
		`{"cmd":"NODE_CLUSTER","ack":4,"seq":1}`+"\n",
		`{"cmd":"NODE_CLUSTER","ack":18446744073709551620,"accepted":true,"seq":1}`+"\n"))
	wantFrames(t, "closed", l.heard(closes("7"), accepted(4, false)),
		handoff.Frame{Type: handoff.Leave, Listener: 7},
		handoff.Frame{Type: handoff.Reject, Seq: 103, Arg: uint32(handoff.ReasonClosed)})
}

// An answer that precedes the acknowledgement, which Node never sends, is an
// answer all the same, and the acknowledgement counts when it comes.
func TestAnswerBeforeAcknowledgement(t *testing.T) {
	l := newLink(t, Config{})
	l.listens(1, 7)
	l.hand(100, 7, openFile(t))
	l.hand(101, 7, openFile(t))
	wantFrames(t, "second", l.heard(accepted(2, true), accepted(2, true)), handoff.Frame{Type: handoff.Ack, Seq: 101})
	wantFrames(t, "acknowledged, lost", l.heard(handleAck, nack, handleAck, nack))
	wantFrames(t, "first", l.heard(accepted(1, true)), handoff.Frame{Type: handoff.Ack, Seq: 100})
	if len(l.window.under) != 0 {
		t.Errorf("under way: %+v", l.window.under)
	}
}

func TestClose(t *testing.T) {
	l := newLink(t, Config{})
	l.listens(1, 7)
	wantFrames(t, "unknown keys", l.heard(closes("8"), closes(""), closes("-7"), closes("x"), closes("0"),
		`{"cmd":"NODE_CLUSTER","act":"close","key":7,"seq":4}`+"\n", `{"cmd":"NODE_CLUSTER","act":"close","seq":4}`+"\n"))
	wantFrames(t, "close", l.heard(closes("7"), closes("7")), handoff.Frame{Type: handoff.Leave, Listener: 7})
	l.listens(2, 7) // it may come back
	wantFrames(t, "close again", l.heard(closes("7")), handoff.Frame{Type: handoff.Leave, Listener: 7})
}

func TestLeaving(t *testing.T) {
	l := newLink(t, Config{})
	l.listens(1, 7)
	l.hand(100, 7, openFile(t))
	l.read()
	l.closeGot()
	wantFrames(t, "leaving", l.heard(handleAck, goAway, goAway), handoff.Frame{Type: handoff.Bye})
	wantLines(t, "it may", l.read(), `{"cmd":"NODE_CLUSTER","ack":9,"seq":2}`, `{"cmd":"NODE_CLUSTER","ack":9,"seq":3}`)
	if err := l.try(101, 7, openFile(t)); err == nil || err.Error() != "broken pipe" {
		t.Errorf("a handoff to one who leaves: %v", err)
	}
	wantFrames(t, "after that", l.heard(listening, query(12, `"address":null,"port":81,"addressType":4`), accepted(1, true), closes("7")),
		handoff.Frame{Type: handoff.Ack, Seq: 100}, handoff.Frame{Type: handoff.Leave, Listener: 7})
	wantLines(t, "nothing", l.read())
}

func TestWorkersOwnHandles(t *testing.T) {
	l := newLink(t, Config{})
	for _, typ := range []string{"net.Socket", "net.Server", "dgram.Socket", "net.BoundSocket"} {
		wantFrames(t, typ, l.heard(`{"cmd":"NODE_HANDLE","type":"`+typ+`","msg":{"cmd":"NODE_CLUSTER","act":"listening"},"key":"a"}`+"\n"))
		wantLines(t, typ, l.read(), `{"cmd":"NODE_HANDLE_ACK"}`)
	}
	wantFrames(t, "questions", l.heard(`{"cmd":"NODE_SOCKET_GET_COUNT","key":"6::::1\"2"}`+"\n"+
		`{"cmd":"NODE_SOCKET_NOTIFY_CLOSE","key":"6::::1\"2"}`+"\n"+
		`{"cmd":"NODE_SOCKET_GET_COUNT"}`+"\n"+`{"cmd":"NODE_SOCKET_NOTIFY_CLOSE","key":3}`+"\n"))
	wantLines(t, "answers", l.read(), `{"cmd":"NODE_SOCKET_COUNT","key":"6::::1\"2","count":0}`,
		`{"cmd":"NODE_SOCKET_ALL_CLOSED","key":"6::::1\"2"}`)
}

func TestUserMessages(t *testing.T) {
	l := newLink(t, Config{})
	texts := []string{
		`"ready"`, `{"a":1}`, `null`, `7`, `true`, `[]`, `""`, `{"cmd":"NODE_"}`, `{"cmd":"node_CLUSTER","act":"close"}`, `{"cmd":7}`,
		`{"x":{"cmd":"NODE_HANDLE"}}`, `{"CMD":"NODE_HANDLE"}`, `["NODE_HANDLE"]`, `{"cmd":["NODE_CLUSTER"]}`, `"NODE_HANDLE"`,
	}
	for _, text := range texts {
		wantFrames(t, text, l.heard(text+"\n"))
	}
	wantLines(t, "messages", l.said, texts...)
	wantLines(t, "nothing is answered", l.read())
}

func TestUnknownIsIgnored(t *testing.T) {
	l := newLink(t, Config{})
	wantFrames(t, "unknown", l.heard(
		`{"cmd":"NODE_NEW","act":"listening"}`+"\n", `{"cmd":"NODE_CLUSTER","act":"dance","seq":1}`+"\n",
		`{"cmd":"NODE_CLUSTER","seq":1}`+"\n", `{"cmd":"NODE_CLUSTER","act":7}`+"\n", `{"cmd":"NODE_CLUSTER","ack":1}`+"\n",
		`{"cmd":"NODE_HANDLE_ACK","x":1}`+"\n", handleAck, nack, "\n", `{"cmd":"NODE_HANDLE_ACK`+"\n"))
	wantLines(t, "nothing is answered", l.read())
	wantLines(t, "nothing of it is the program's", l.said)
}

// Of Node's cluster a broken message ends the worker, what follows it can be read.
func TestBrokenClusterMessages(t *testing.T) {
	for _, line := range []string{
		`{"cmd":"NODE_CLUSTER","ack":1,"accepted":tru`, `{"cmd":"NODE_CLUSTER"`, `{"cmd":"NODE_CLUSTER","act":"listening",}`,
		`{"cmd":"NODE_CLUSTER","act":"queryServer","port":80,"addressType":4}`,
		`{"cmd":"NODE_CLUSTER","act":"queryServer","port":80,"addressType":4,"seq":-1}`,
		`{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect"}`,
		`{"cmd":"NODE_CLUSTER","data":"` + strings.Repeat("s", maxLine) + `"}`,
	} {
		l := newLink(t, Config{})
		l.listens(1, 7)
		l.hand(100, 7, openFile(t))
		l.say(line, "\n", handleAck, accepted(1, true))
		f, err := l.drain()
		if err != ErrLine { // which repeats nothing of the line
			t.Errorf("%.60s: %+v, %v", line, f, err)
		}
		f, err = l.drain()
		if err != nil {
			t.Fatal(err)
		}
		wantFrames(t, "what follows", f, handoff.Frame{Type: handoff.Ack, Seq: 100})
	}
}
