package aside

import (
	"bytes"
	"reflect"
	"testing"
)

func TestMessagesComeBackAsTheyWere(t *testing.T) {
	for _, h := range []header{
		{call: Recall, id: 1}, {call: Accept, id: 1<<64 - 1, arg: 16}, {call: Recall, part: true, id: 7}, {call: Listen, errno: 22, id: 3},
	} {
		got, payload, err := decodeHeader(h.append(nil))
		if err != nil || got != h || len(payload) > 0 {
			t.Errorf("%+v: %+v, %q, %v", h, got, payload, err)
		}
	}
	conn := ConnFacts{State: 8, Received: 1 << 40, Unread: 3, Sent: 5, Unsent: 9}
	queue := QueueFacts{Length: 2, Limit: 4096, Drops: 1 << 33}
	var a Answer
	if _, _, err := decodeAnswer(conn.append(header{call: Conn}.append(nil)), Conn, 0, &a); err != nil || a.conn != conn || !a.Known {
		t.Errorf("%+v, %v", a, err)
	}
	if _, _, err := decodeAnswer(queue.append(header{call: Queue}.append(nil)), Queue, 0, &a); err != nil || a.queue != queue {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestMalformedMessagesAreRefused(t *testing.T) {
	good := header{call: Conn, id: 1}
	for name, b := range map[string][]byte{
		"empty": nil, "short": good.append(nil)[:headerSize-1], "no magic": make([]byte, headerSize),
		"call 0": header{}.append(nil), "no such call": header{call: lastCall + 1}.append(nil),
		"payload": append(good.append(nil), 1), "a part": header{call: Recall, part: true}.append(nil),
		"an errno": header{call: Conn, errno: 1}.append(nil), "a huge argument": header{call: Listen, arg: 1 << 31}.append(nil),
	} {
		if h, err := decodeRequest(b, 1); err == nil {
			t.Errorf("request with %s: %+v", name, h)
		}
	}
	for fds, call := range map[int]Call{0: Conn, 2: Conn, maxDiscard + 1: discard} {
		if h, err := decodeRequest(header{call: call}.append(nil), fds); err == nil {
			t.Errorf("request with %d descriptors: %+v", fds, h)
		}
	}
	var a Answer
	for name, tt := range map[string]struct {
		b    []byte
		call Call
		fds  int
	}{
		"of another call":     {header{call: Queue}.append(nil), Conn, 0},
		"without its payload": {header{call: Conn}.append(nil), Conn, 0},
		"a part of no recall": {append(header{call: Conn, part: true}.append(nil), 1), Conn, 0},
		"an empty part":       {header{call: Recall, part: true}.append(nil), Recall, 0},
		"fewer descriptors":   {header{call: Accept, arg: 2}.append(nil), Accept, 1},
		"descriptors unasked": {header{call: Listen, arg: 1}.append(nil), Listen, 1},
		"too many":            {header{call: Accept, arg: MaxAccept + 1}.append(nil), Accept, MaxAccept + 1},
	} {
		if h, _, err := decodeAnswer(tt.b, tt.call, tt.fds, &a); err == nil {
			t.Errorf("answer %s: %+v", name, h)
		}
	}
}

// Whatever comes, decoding panics on nothing, and what it takes is written the same.
func FuzzDecode(f *testing.F) {
	f.Add(header{call: Recall, id: 1}.append(nil), byte(Recall), 1)
	f.Add(append(header{call: Recall, part: true}.append(nil), 1, 2), byte(Recall), 0)
	f.Add((&ConnFacts{State: 1}).append(header{call: Conn}.append(nil)), byte(Conn), 0)
	f.Add((&QueueFacts{Limit: 1}).append(header{call: Queue}.append(nil)), byte(Queue), 0)
	f.Fuzz(func(t *testing.T, b []byte, call byte, fds int) {
		if h, err := decodeRequest(b, fds); err == nil && !bytes.Equal(h.append(nil), b) {
			t.Errorf("request %+v of % x", h, b)
		}
		var a Answer
		h, payload, err := decodeAnswer(b, Call(call), fds, &a)
		if err != nil {
			if !reflect.DeepEqual(a, Answer{}) {
				t.Errorf("refused, and yet %+v", a)
			}
			return
		}
		if again := append(h.append(nil), payload...); !bytes.Equal(again, b) {
			t.Errorf("answer %+v of % x", h, b)
		}
	})
}
