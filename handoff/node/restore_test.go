package node

import (
	"encoding/json"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"rrd/handoff"
	"rrd/handoff/internal/unixmsg"
)

// rich is a state with something of everything; its descriptors are numbers that
// no file has.
func rich() State {
	return State{
		FD: handoff.Own(1 << 30), Watched: true, Sender: 9,
		Input: []byte(handleAck + "half a li"), Skipping: true,
		Next: 9, Unsent: []byte("rest\n"),
		Under: []Handle{
			{N: 3, Seq: 103, End: 100, Wire: 7},
			{N: 4, End: 200, Wire: 9, Share: &Share{FD: handoff.Own(1<<30 | 1), Seq: 2, Wire: 9, Text: []byte(secret + "\n"), Tries: 1}},
			{N: 5, Seq: 105, End: 300, Wire: 7, Done: true},
			{N: 6, End: 400, Wire: 10, Share: &Share{Seq: 4, Wire: 10, Text: []byte(secret + "\n")}},
			{N: 8, Seq: 108, End: 500, Wire: 7},
		},
		Arrived: 1, Pos: 600, Acked: 150,
		Again: []Share{{FD: handoff.Own(1<<30 | 2), Seq: 3, Wire: 8, Text: []byte(secret + "\n"), Tries: 3}},
		Asked: []Ask{{Seq: 5, Port: 80, Mapped: true}, {Seq: 6}},
		Open:  []uint32{7, 8, 9, 10}, Left: []uint32{11},
		Listening: true, Ready: true, SaidReady: true, Bye: true,
		Drain: "waiting", MayLeave: []uint64{7},
	}
}

const secret = "ticketKeys"

// fenced is a state in the middle of a drain.
func fenced() State {
	return State{FD: handoff.Own(1 << 30), Next: 2, Under: []Handle{{N: 1, End: 10, Fence: true}}, Pos: 10, Drain: "fencing"}
}

func TestImpossibleStatesAreRefused(t *testing.T) {
	long := make([]byte, maxUnsent+1)
	for _, c := range []struct {
		field  string
		from   func() State
		change func(*State)
	}{
		{"fd", rich, func(s *State) { s.FD = handoff.FD{} }},
		{"fd", rich, func(s *State) { s.Again[0].FD = s.FD }},
		{"fd", rich, func(s *State) { s.Under[1].Share.FD = s.Again[0].FD }},
		{"sender", rich, func(s *State) { s.Sender = -1 }},
		{"input", rich, func(s *State) { s.Input = make([]byte, maxLine+1) }},
		{"unsent", rich, func(s *State) { s.Unsent, s.Pos = long, 1<<20 }},
		{"unsent", rich, func(s *State) { s.Unsent = make([]byte, 601) }},
		{"next", rich, func(s *State) { s.Next = countable }},
		{"pos", rich, func(s *State) { s.Pos = countable }},
		{"acked", rich, func(s *State) { s.Acked = 601 }},
		{"said_ready", rich, func(s *State) { s.Listening = false }},
		{"asked", rich, func(s *State) { s.Asked = make([]Ask, maxAsked+1) }},
		{"asked[1].seq", rich, func(s *State) { s.Asked[1].Seq = countable }},
		{"may_leave[0]", rich, func(s *State) { s.MayLeave[0] = countable }},
		{"open[3]", rich, func(s *State) { s.Open[3] = 8 }},
		{"arrived", rich, func(s *State) { s.Arrived = -1 }},
		{"arrived", rich, func(s *State) { s.Arrived = 6 }},
		{"under[0].end", rich, func(s *State) { s.Arrived = 0 }},
		{"under[1].end", rich, func(s *State) { s.Arrived = 2 }},
		{"under[1].end", rich, func(s *State) { s.Under[1].End = 100 }},
		{"under[4].end", rich, func(s *State) { s.Under[4].End = 601 }},
		{"under[0]", rich, func(s *State) { s.Under[0].Done = true }},
		{"under[1]", rich, func(s *State) { s.Arrived, s.Acked = 2, 200 }},
		{"under[2].n", rich, func(s *State) { s.Under[2].N = 3 }},
		{"under[4].n", rich, func(s *State) { s.Under[4].N = 9 }},
		{"under[1].n", rich, func(s *State) { s.Under[1].N = 10 }},
		{"under[1].share", rich, func(s *State) { s.Under[1].Seq = 1 }},
		{"under[1].share", rich, func(s *State) { s.Under[1].Wire = 1 }},
		{"under[1].share", rich, func(s *State) { s.Under[1].Fence = true }},
		{"under[1].share.fd", rich, func(s *State) { s.Under[1].Share.FD = handoff.FD{} }},
		{"under[1].share.tries", rich, func(s *State) { s.Under[1].Share.Tries = maxLost + 1 }},
		{"under[3].share.text", rich, func(s *State) { s.Under[3].Share.Text = nil }},
		{"under[3].share.text", rich, func(s *State) { s.Under[3].Share.Text = []byte(secret) }},
		{"under[3].share.seq", rich, func(s *State) { s.Under[3].Share.Seq = countable }},
		{"again[0].fd", rich, func(s *State) { s.Again[0].FD = handoff.FD{} }},
		{"again[0].tries", rich, func(s *State) { s.Again[0].Tries = 0 }},
		{"again[0].tries", rich, func(s *State) { s.Again[0].Tries = -1 }},
		{"again[0].text", rich, func(s *State) { s.Again[0].Text = long }},
		{"drain", rich, func(s *State) { s.Drain = "elsewhere" }},
		{"drain", rich, func(s *State) { s.Drain = "fencing" }},
		{"drain", rich, func(s *State) { s.Drain = "told" }},
		{"fence_waits", rich, func(s *State) { s.FenceWaits = true }},
		{"fence_waits", rich, func(s *State) { s.Under, s.Arrived = nil, 0 }},
		{"fence_waits", rich, func(s *State) { s.Drain, s.FenceWaits = "", true }},
		{"under[0].fence", fenced, func(s *State) { s.Drain = "waiting" }},
		{"under[0].fence", fenced, func(s *State) { s.Drain = "told" }},
		{"under[0].fence", fenced, func(s *State) { s.Under[0].Done = true }},
		{"under[0].fence", fenced, func(s *State) { s.Under[0].Wire = 1 }},
		{"under[0].fence", fenced, func(s *State) { s.Under[0].Seq = 1 }},
		{"under[1].fence", fenced, func(s *State) {
			s.Under, s.Next, s.Pos = append(s.Under, Handle{N: 2, End: 20, Fence: true}), 3, 20
		}},
		{"drain", fenced, func(s *State) {
			s.Under, s.Next, s.Pos = append(s.Under, Handle{N: 2, End: 20}), 3, 20
		}},
	} {
		s := c.from()
		if _, err := Restore(s, Config{}); err != nil {
			t.Fatal(err)
		}
		c.change(&s)
		r, err := Restore(s, Config{})
		if r != nil || err == nil || !strings.HasPrefix(err.Error(), "restore node channel: "+c.field+": ") {
			t.Errorf("%v, want an error about %s", err, c.field)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("it tells a secret: %v", err)
		}
	}
}

// State touches no descriptor, and leaves a batch alone.
func TestStateChangesNothing(t *testing.T) {
	l := newLink(t, Config{})
	d := openFile(t)
	l.listens(1, 7)
	l.shares(2, 8, d)
	l.shares(3, 9, d)
	l.hand(100, 7, d)
	l.heard(nack, query(4, `"address":null,"port":81,"addressType":4`))
	l.say(listening, `"half`)
	if err := l.Receive(); err != nil {
		t.Fatal(err)
	}
	l.read()
	l.closeGot()
	l.Add(101, 7, 0, d)
	conf := l.conf
	l.conf = Config{} // functions do not compare
	before := *l.Conn
	s := l.State()
	if !reflect.DeepEqual(before, *l.Conn) {
		t.Errorf("changed from %+v to %+v", before, *l.Conn)
	}
	want := []handoff.FD{l.fd, l.window.under[0].share.fd, l.again[0].fd}
	if got := s.FDs(); !slices.Equal(got, want) {
		t.Errorf("descriptors %+v, want %+v", got, want)
	}
	l.conf = conf
	for _, d := range s.FDs() {
		if flags, err := unix.FcntlInt(uintptr(d.Num()), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d: flags %#x, %v", d.Num(), flags, err)
		}
	}
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := l.read(); len(got) != 2 || len(l.got) != 2 || !strings.HasSuffix(got[1], `"act":"newconn","key":"7","seq":4}}`) {
		t.Errorf("the socket again and the batch: %q", got)
	}
	frames, err := l.drain()
	if err != nil {
		t.Fatal(err)
	}
	wantFrames(t, "it goes on", frames, handoff.Frame{Type: handoff.Ready})
	l.heard(` a line"` + "\n")
	wantLines(t, "it goes on", l.said, `"half a line"`)
}

// Who adds a field to a Conn says here that State carries it, or need not.
func TestStateCarriesEveryField(t *testing.T) {
	for kind, want := range map[reflect.Type]string{
		reflect.TypeFor[Conn]():   "conf fd sender in next line batch lent filled rights unsent again window asked open left listening ready saidReady draining mayLeave fenceWaits bye",
		reflect.TypeFor[input]():  "buf start scanned end skipping",
		reflect.TypeFor[window](): "under arrived pos acked",
		reflect.TypeFor[handle](): "n seq end wire share fence done",
		reflect.TypeFor[share]():  "fd seq wire text tries",
		reflect.TypeFor[ask]():    "seq port mapped",
	} {
		var names []string
		for i := range kind.NumField() {
			names = append(names, kind.Field(i).Name)
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("fields of %v: %s\nknown: %s", kind, got, want)
		}
	}
}

// FuzzRestore makes a Conn of any JSON. It is refused or can be used, and then is
// again what can be restored. Descriptors are numbers that no file has, or the
// channel is a pair of its own.
func FuzzRestore(f *testing.F) {
	told := fenced()
	told.Drain, told.Under[0].Done = "told", true
	lost := rich()
	lost.Drain, lost.Bye, lost.MayLeave, lost.Skipping = "", false, nil, false
	for _, s := range []State{rich(), fenced(), told, lost} {
		b, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, []byte(nil), false)
		f.Add(b, []byte(nack+accepted(5, true)+accepted(1, false)+handleAck+nack+goAway+listening), true)
		f.Add(b, []byte(handleAck+query(1, `"address":null,"port":80,"addressType":4`)+closes("7")+ready), false)
	}
	f.Add([]byte(`{"fd":1,"drain":"x","arrived":-1,"under":[{"share":{}}]}`), []byte("x"), false)
	f.Fuzz(func(t *testing.T, doc, input []byte, live bool) {
		var s State
		if json.Unmarshal(doc, &s) != nil {
			return
		}
		if len(input) > 0 {
			s.Input = input
		}
		disown(&s)
		var end handoff.FD
		if live && s.FD.Valid() {
			fds, err := unixmsg.Socketpair(unix.SOCK_STREAM)
			if err != nil {
				t.Fatal(err)
			}
			s.FD, end = handoff.Own(fds[0]), handoff.Own(fds[1])
			defer end.Close()
		}
		c, err := Restore(s, Config{ReadyOnMessage: len(doc)%2 == 0})
		if err != nil {
			_ = s.FD.Close()
			return
		}
		defer c.Close()
		exercise(t, c, &end)
	})
}

// disown puts numbers that no file can have in the place of a state's
// descriptors. What was there twice is that still.
func disown(s *State) {
	nobodys := func(d *handoff.FD) {
		if d.Valid() {
			*d = handoff.Own(1<<30 | d.Num()&0xffff)
		} else {
			*d = handoff.FD{}
		}
	}
	nobodys(&s.FD)
	for i := range s.Under {
		if s.Under[i].Share != nil {
			nobodys(&s.Under[i].Share.FD)
		}
	}
	for i := range s.Again {
		nobodys(&s.Again[i].FD)
	}
}

// exercise has every call made on c, whose worker's end, if there is one, is end.
func exercise(t *testing.T, c *Conn, end *handoff.FD) {
	restorable := func(after string) {
		if s := c.State(); s.Next < countable-1<<20 && s.Pos < countable-1<<30 {
			if _, err := s.check(); err != nil {
				t.Errorf("a state that was reached by %s: %v", after, err)
			}
		}
	}
	live := end.Valid()
	restorable("nothing")
	calls := map[string]func() error{
		"receive": c.Receive,
		"flush":   c.Flush,
		"handoff": func() error { c.Add(1, 1, 0, handoff.FD{}); return c.Flush() },
		"drain":   func() error { return c.Send(&handoff.Frame{Type: handoff.Drain}, handoff.FD{}) },
		"answer": func() error {
			if len(c.asked) == 0 {
				return nil
			}
			return c.Send(&handoff.Frame{Type: handoff.Listening, Seq: c.asked[0].seq, Listener: 7}, handoff.FD{})
		},
	}
	for _, name := range []string{"flush", "receive", "answer", "handoff", "flush", "drain", "receive", "flush"} {
		for more := true; more; {
			var f handoff.Frame
			more, _ = c.Next(&f)
			restorable("next")
		}
		err := calls[name]()
		if name == "receive" && !live && err != unix.EBADF && err != nil { //nolint:errorlint // bare
			t.Errorf("receive: %v", err)
		}
		restorable(name)
		if live {
			_, _, _, _ = unixmsg.Recv(end.Num(), make([]byte, 1<<16), nil)
		}
	}
	if live {
		_ = end.Close()
		if err := c.Receive(); err != nil && err != io.EOF {
			t.Errorf("the end: %v", err)
		}
	}
	_, _ = c.WatchSender(), c.IgnoreSender()
	if err := c.Close(); (err == nil) != live {
		t.Errorf("close: %v", err)
	}
}
