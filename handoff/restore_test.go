package handoff

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"rrd/test/leakcheck"
)

// restored is what c is after exec: its state as JSON, and nothing of its memory.
func restored(t testing.TB, c *Conn) *Conn {
	t.Helper()
	s := c.State()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var decoded ConnState
	if err := json.Unmarshal(b, &decoded); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(s, decoded) {
		t.Fatalf("state %+v\nas JSON %s\nis %+v", s, b, decoded)
	}
	if again := c.State(); !reflect.DeepEqual(s, again) {
		t.Fatalf("State() changed the state from %+v to %+v", s, again)
	}
	r, err := RestoreConn(decoded)
	if err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	for i := range c.unsent {
		c.unsent[i] = 'X'
	}
	c.in, c.fd, c.peer = [MaxMessage]byte{}, FD{}, FD{}
	for _, p := range [][]byte{decoded.Input, decoded.Unsent} {
		for i := range p {
			p[i] = 'X'
		}
	}
	if again := r.State(); !reflect.DeepEqual(s, again) {
		t.Fatalf("restored of %+v is %+v", s, again)
	}
	return r
}

// twins are two channels with the same conversation. One of them is restored
// again and again.
type twins struct {
	*testing.T
	rng   *rand.Rand
	links [2]*link // the second is the one that is restored
	files []FD
	pend  []byte // what the worker of a stream is still to say
	seq   uint64
	met   map[string]bool // what was there when it was restored
}

func (w *twins) both(what string, do func(*link) any) {
	w.Helper()
	plain, moved := do(w.links[0]), do(w.links[1])
	if !reflect.DeepEqual(plain, moved) {
		w.Fatalf("%s (-never restored +restored):\n%s", what, cmp.Diff(plain, moved, cmp.Exporter(func(reflect.Type) bool { return true })))
	}
}

// outcome is what a call returned.
type outcome struct {
	Frame Frame
	OK    bool
	Err   error
}

func (w *twins) step() {
	switch w.rng.IntN(12) {
	case 0, 1, 2:
		w.workerSays()
	case 3, 4:
		w.both("receive", func(l *link) any { return outcome{Err: l.master.Receive()} })
	case 5, 6:
		w.both("next", func(l *link) any {
			var o outcome
			o.OK, o.Err = l.master.Next(&o.Frame)
			if !o.OK {
				o.Frame = Frame{}
			}
			o.Frame.Payload = slices.Clone(o.Frame.Payload)
			return o
		})
	case 7:
		n := 1 + w.rng.IntN(MaxFrames)
		w.both("handoffs", func(l *link) any {
			for i := range n {
				l.master.Add(w.seq+uint64(i), 1, 0, w.files[i%len(w.files)])
			}
			return outcome{OK: l.master.Unsent(), Err: l.master.Flush()}
		})
		w.seq += uint64(n)
	case 8:
		f := Frame{Type: Listening, Seq: w.seq, Payload: make([]byte, w.rng.IntN(MaxPayload))}
		var share FD
		if w.rng.IntN(2) == 0 {
			f.Flags, share = ListeningShared, w.files[0]
		}
		w.both("send", func(l *link) any { return outcome{Err: l.master.Send(&f, share), OK: l.master.Unsent()} })
	case 9:
		w.both("flush", func(l *link) any { return outcome{Err: l.master.Flush(), OK: l.master.Unsent()} })
	case 10:
		w.workerReads()
	default:
		w.oddStep()
	}
}

func (w *twins) oddStep() {
	switch w.rng.IntN(4) {
	case 0:
		w.both("watch", func(l *link) any { return outcome{Err: l.master.WatchSender()} })
	case 1:
		w.both("ignore", func(l *link) any { return outcome{Err: l.master.IgnoreSender()} })
	case 2:
		w.both("sender", func(l *link) any { return l.master.Sender() })
	default:
		w.both("recall", func(l *link) any {
			var seqs []uint64
			if err := recall(l.master, func(f *Frame) { seqs = append(seqs, f.Seq) }); err != nil {
				w.Fatal(err)
			}
			return seqs
		})
	}
}

// workerSays sends a message; on a stream any part of what there is to say.
func (w *twins) workerSays() {
	var b []byte
	if len(w.pend) == 0 || !w.links[0].stream {
		switch w.rng.IntN(10) {
		case 0:
			b = make([]byte, 1+w.rng.IntN(2*FrameSize)) // no frame
		case 1: // a payload where none may be
			b = encode(Frame{Type: Ack, Seq: w.seq}, Frame{Type: Listen, Payload: make([]byte, w.rng.IntN(100))})
		case 2, 3:
			b = encode(Frame{Type: Listen, Seq: w.seq, Payload: make([]byte, w.rng.IntN(MaxPayload))})
		default:
			for range 1 + w.rng.IntN(MaxFrames) {
				w.seq++
				b = (&Frame{Type: Ack, Seq: w.seq}).Append(b)
			}
			if w.rng.IntN(8) == 0 {
				b[w.rng.IntN(len(b))] = 0xff
			}
		}
	}
	if w.links[0].stream {
		b = append(w.pend, b...)
		n := 1 + w.rng.IntN(len(b))
		b, w.pend = b[:n], slices.Clone(b[n:])
	}
	w.both("the worker says", func(l *link) any {
		n, errno := sendmsg(l.portFD(), b, nil)
		if errno != 0 && errno != unix.EAGAIN {
			l.Fatal(errno)
		}
		return n
	})
}

func (w *twins) workerReads() {
	w.both("the worker reads", func(l *link) any {
		var all []string
		var m Message
		for {
			err := l.port.TryReceive(&m)
			if isErrno(err, unix.EAGAIN) {
				return all
			}
			if err != nil {
				l.Fatal(err)
			}
			for i, f := range m.Frames[:m.N] {
				which := slices.IndexFunc(w.files, func(d FD) bool { return i < m.NumFDs && sameFile(l, d.Num(), m.FDs[i].Num()) })
				all = append(all, fmt.Sprint(f.Type, f.Seq, len(f.Payload), which))
			}
			m.Close()
		}
	})
}

func (w *twins) restore() {
	l := w.links[1]
	l.master = restored(w, l.master)
	s := l.master.State()
	for what, is := range map[string]bool{
		"half input": l.stream && len(s.Input) > 0 && !s.whole(), "input": len(s.Input) > 0 && (!l.stream || s.whole()),
		"next": s.Next > 0, "unsent": len(s.Unsent) > 0, "watched": s.Watched, "sender": s.Sender > 0,
	} {
		w.met[what] = w.met[what] || is
	}
}

// A conversation is the same whether the master's end is restored or not, and as
// often as that may be.
func TestRestoredConverses(t *testing.T) {
	for kind, pair := range kinds {
		t.Run(kind, func(t *testing.T) {
			leakcheck.Check(t)
			met := map[string]bool{}
			for seed := range uint64(100) {
				walk(t, pair, seed, met)
			}
			want := []string{"input", "half input", "unsent"}
			if kind != "stream" {
				want = []string{"input", "next"}
			}
			for _, what := range want {
				if !met[what] {
					t.Errorf("never restored with %s", what)
				}
			}
			t.Logf("met %v", met)
		})
	}
}

func walk(t *testing.T, pair func() (*Conn, *os.File, error), seed uint64, met map[string]bool) {
	t.Helper()
	w := &twins{T: t, rng: rand.New(rand.NewPCG(seed, 1)), files: openFiles(t, 3), met: met}
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	for i := range w.links {
		master, child, err := pair()
		if err != nil {
			t.Fatal(err)
		}
		port, err := OpenPort(dupOf(t, child))
		_ = child.Close()
		if err != nil {
			t.Fatal(err)
		}
		if master.stream {
			// So that messages are taken in part.
			if err := unix.SetsockoptInt(master.Num(), unix.SOL_SOCKET, unix.SO_SNDBUF, 1); err != nil {
				t.Fatal(err)
			}
		}
		w.links[i] = &link{T: t, stream: master.stream, master: master, port: port}
	}
	defer func() {
		for _, l := range w.links {
			_, _ = l.master.Close(), l.port.Close()
		}
		for i := range w.files {
			_ = w.files[i].Close()
		}
	}()
	for range 100 {
		w.step()
		if w.rng.IntN(3) == 0 {
			w.restore()
		}
	}
	w.both("close", func(l *link) any { return outcome{Err: l.master.Close()} })
}

// State touches no descriptor, and leaves a batch alone.
func TestStateChangesNothing(t *testing.T) {
	eachKind(t, func(l *link) {
		files := openFiles(l, 2)
		l.say(encode(Frame{Type: Ack, Seq: 1}))
		awaitReadable(l, l.master.Num())
		if err := l.master.Receive(); err != nil {
			l.Fatal(err)
		}
		l.master.Add(7, 1, 0, files[0])
		before := *l.master
		s := l.master.State()
		if !reflect.DeepEqual(before, *l.master) {
			l.Errorf("changed from %+v to %+v", before, *l.master)
		}
		for _, d := range s.FDs() {
			if flags, err := unix.FcntlInt(uintptr(d.Num()), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				l.Errorf("descriptor %d: flags %#x, %v", d.Num(), flags, err)
			}
		}
		want := []FD{l.master.fd}
		if l.master.peer.Valid() {
			want = append(want, l.master.peer)
		}
		if got := s.FDs(); !slices.Equal(got, want) {
			l.Errorf("descriptors %+v, want %+v", got, want)
		}
		for i := range s.Input {
			s.Input[i] = 'X'
		}
		var f Frame
		if ok, err := l.master.Next(&f); !ok || err != nil || f.Seq != 1 {
			l.Errorf("next: %+v, %v, %v", f, ok, err)
		}
		if err := l.master.Flush(); err != nil {
			l.Fatal(err)
		}
		if r := l.got(1); r[0].Seq != 7 {
			l.Errorf("the batch: %+v", r[0].Frame)
		}
	})
}

func TestImpossibleStatesAreRefused(t *testing.T) {
	packet := ConnState{FD: Own(1 << 20), Peer: Own(1<<20 + 1)}
	stream := ConnState{FD: Own(1 << 20), Stream: true}
	ack := encode(Frame{Type: Ack})
	long := encode(Frame{Type: Listen, Payload: make([]byte, 2000)})
	for _, c := range []struct {
		field  string
		from   ConnState
		change func(*ConnState)
	}{
		{"fd", stream, func(s *ConnState) { s.FD = FD{} }},
		{"peer", packet, func(s *ConnState) { s.Peer = s.FD }},
		{"peer", packet, func(s *ConnState) { s.Peer = FD{} }},
		{"sender", packet, func(s *ConnState) { s.Sender = -1 }},
		{"unsent", packet, func(s *ConnState) { s.Unsent = ack }},
		{"unsent", stream, func(s *ConnState) { s.Unsent = make([]byte, MaxMessage+1) }},
		{"input", packet, func(s *ConnState) { s.Input = make([]byte, MaxMessage+1) }},
		{"input", stream, func(s *ConnState) { s.Input = make([]byte, MaxMessage+1) }},
		{"input", stream, func(s *ConnState) { s.Input = append(ack[:FrameSize:FrameSize], 0) }},
		{"next", stream, func(s *ConnState) { s.Input, s.Next = slices.Concat(ack, ack)[:FrameSize], FrameSize }},
		{"next", packet, func(s *ConnState) { s.Next = FrameSize }},
		{"next", packet, func(s *ConnState) { s.Input, s.Next = ack, FrameSize }},
		{"next", packet, func(s *ConnState) { s.Input, s.Next = slices.Concat(ack, ack), 1 }},
		{"next", packet, func(s *ConnState) { s.Input, s.Next = slices.Concat(ack, ack), -FrameSize }},
		{"next", packet, func(s *ConnState) { s.Input, s.Next = long, FrameSize }},
	} {
		s := c.from
		if _, err := RestoreConn(s); err != nil {
			t.Fatal(err)
		}
		c.change(&s)
		if r, err := RestoreConn(s); r != nil || err == nil || !strings.HasPrefix(err.Error(), "restore channel: "+c.field+": ") {
			t.Errorf("%+v: %v, want an error about %s", s, err, c.field)
		}
	}
}

// Who adds a field to a Conn says here that State carries it, or need not.
func TestStateCarriesEveryField(t *testing.T) {
	kind := reflect.TypeFor[Conn]()
	var names []string
	for i := range kind.NumField() {
		names = append(names, kind.Field(i).Name)
	}
	const want = "fd peer stream frames out rights in have next end first unsent sender"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("fields: %s\nknown: %s", got, want)
	}
}

// FuzzRestore makes a Conn of any JSON. It is refused or can be used; descriptors
// are numbers that no file has.
func FuzzRestore(f *testing.F) {
	for _, s := range []ConnState{
		{FD: Own(5), Peer: Own(6), Watched: true, Sender: 9},
		{FD: Own(5), Peer: Own(6), Input: encode(someFrames[3:9]...), Next: FrameSize},
		{FD: Own(5), Stream: true, Input: encode(Frame{Type: Listen, Payload: []byte("tcp\x00127.0.0.1:0")})[:70], Unsent: []byte("rest")},
		{FD: Own(5), Stream: true, Input: encode(Frame{Type: Ack})},
	} {
		b, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, []byte(nil))
		f.Add(b, encode(someFrames[:9]...))
	}
	f.Add([]byte(`{"fd":1,"peer":2,"next":-64,"sender":-1}`), []byte("x"))
	f.Fuzz(func(t *testing.T, doc, input []byte) {
		var s ConnState
		if json.Unmarshal(doc, &s) != nil {
			return
		}
		if len(input) > 0 {
			s.Input = input
		}
		s.FD, s.Peer = nobodys(s.FD), nobodys(s.Peer)
		c, err := RestoreConn(s)
		if err != nil {
			return
		}
		for range 2 {
			var f Frame
			for ok := true; ok; {
				ok, _ = c.Next(&f)
			}
			wantErrno(t, "receive", c.Receive(), unix.EBADF)
			if c.Unsent() {
				wantErrno(t, "flush", c.Flush(), unix.EBADF)
			}
			if _, err := RestoreConn(c.State()); err != nil {
				t.Errorf("a state that was reached: %v", err)
			}
		}
		wantErrno(t, "send", c.Send(&Frame{Type: Ping}, FD{}), unix.EBADF)
		if err := recall(c, func(*Frame) {}); err != nil {
			wantErrno(t, "recall", err, unix.EBADF)
		}
		wantErrno(t, "close", c.Close(), unix.EBADF)
	})
}

// nobodys puts a number that no file can have in the place of d's.
func nobodys(d FD) FD {
	if !d.Valid() {
		return FD{}
	}
	return Own(1<<30 | d.Num()&0xffff)
}
