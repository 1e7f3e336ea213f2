package node

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"rrd/handoff"
	"rrd/handoff/internal/unixmsg"
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
	var decoded State
	if err := json.Unmarshal(b, &decoded); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(s, decoded) {
		t.Fatalf("state %+v\nas JSON %s\nis %+v", s, b, decoded)
	}
	if again := c.State(); !reflect.DeepEqual(s, again) {
		t.Fatalf("State() changed the state from %+v to %+v", s, again)
	}
	r, err := Restore(decoded, c.conf)
	if err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	spoil(c, &decoded)
	if again := r.State(); !reflect.DeepEqual(s, again) {
		t.Fatalf("restored of %+v is %+v", s, again)
	}
	return r
}

// spoil overwrites what a restored Conn must not share with another, nor with the
// state that it is made of.
func spoil(c *Conn, s *State) {
	texts := [][]byte{c.in.buf[:], c.unsent, s.Input, s.Unsent}
	for _, h := range c.window.under {
		if h.share != nil {
			texts = append(texts, h.share.text)
		}
	}
	for _, a := range c.again {
		texts = append(texts, a.text)
	}
	for _, a := range s.Again {
		texts = append(texts, a.Text)
	}
	for _, text := range texts {
		for i := range text {
			text[i] = 'X'
		}
	}
	for _, wires := range [][]uint32{c.open, c.left, s.Open, s.Left} {
		clear(wires)
	}
	clear(c.mayLeave)
	clear(s.MayLeave)
	clear(c.asked)
	clear(c.window.under)
	c.again, c.fd = nil, handoff.FD{} // its Close is to close nothing any more
}

// twins are two channels with the same conversation, with a worker that does all
// that one may do. One of them is restored again and again.
type twins struct {
	testing.TB
	rng   *rand.Rand
	links [2]*link // the second is the one that is restored
	look  bool     // compare the states too, which looks into the first one
	files []handoff.FD

	// The worker.
	pend  []byte // what it has still to say
	under []int  // handles that it has not acknowledged, by their number; -1: a shared socket
	owes  []int  // handoffs that it has not answered
	asked uint64

	// The master.
	asks []uint64 // unanswered requests
	wire uint32
	seq  uint64

	met map[string]bool // what was there when it was restored
}

func (w *twins) both(what string, do func(*link) any) {
	w.Helper()
	plain, moved := do(w.links[0]), do(w.links[1])
	if !reflect.DeepEqual(plain, moved) {
		w.Fatalf("%s (-never restored +restored):\n%s", what, cmp.Diff(plain, moved, cmp.Exporter(func(reflect.Type) bool { return true })))
	}
}

func (w *twins) err(what string, do func(*link) error) {
	w.Helper()
	w.both(what, func(l *link) any { return []error{do(l)} })
}

// alike compares what can be asked, and at times all there is.
func (w *twins) alike() {
	w.Helper()
	w.both("wants", func(l *link) any { return []bool{l.Unsent(), l.Held()} })
	w.both("sender", func(l *link) any { return l.Sender() })
	if w.look {
		w.both("state", func(l *link) any { return anonymous(l.State()) })
	}
	w.both("messages", func(l *link) any { return l.said })
}

// anonymous is a state without the numbers of its descriptors.
func anonymous(s State) State {
	blank := func(d *handoff.FD) {
		if d.Valid() {
			*d = handoff.Own(0)
		}
	}
	blank(&s.FD)
	for i := range s.Under {
		if s.Under[i].Share != nil {
			blank(&s.Under[i].Share.FD)
		}
	}
	for i := range s.Again {
		blank(&s.Again[i].FD)
	}
	return s
}

func (w *twins) step() {
	switch n := w.rng.IntN(100); {
	case n < 20:
		w.workerThinks()
	case n < 40:
		w.workerSays(1 + w.rng.IntN(len(w.pend)+1))
	case n < 50:
		w.workerReads()
	case n < 58:
		w.err("receive", func(l *link) error { return l.Receive() })
	case n < 70:
		w.next()
	case n < 76:
		w.hear()
	case n < 84:
		d := w.files[w.rng.IntN(len(w.files))]
		w.seq++
		w.err("handoff", func(l *link) error { return l.try(1000+w.seq, w.rngWire(), d) })
	case n < 90:
		w.err("flush", func(l *link) error { return l.Flush() })
	case n < 97:
		w.answer()
	default:
		w.oddStep()
	}
}

// rngWire is a listener, or one that is none.
func (w *twins) rngWire() uint32 { return uint32(w.seq) % (w.wire + 2) }

func (w *twins) oddStep() {
	switch w.rng.IntN(6) {
	case 0:
		w.err("drain", func(l *link) error { return l.Send(&handoff.Frame{Type: handoff.Drain}, handoff.FD{}) })
	case 1:
		w.err("watch", func(l *link) error { return l.WatchSender() })
	case 2:
		w.err("ignore", func(l *link) error { return l.IgnoreSender() })
	case 3, 4:
		w.both("fill", func(l *link) any { return l.fill() })
	default:
		w.err("ping", func(l *link) error { return l.Send(&handoff.Frame{Type: handoff.Ping}, handoff.FD{}) })
	}
}

// heard is what Next returned.
type heard struct {
	Frame handoff.Frame
	OK    bool
	Err   error
}

func (w *twins) next() (ok bool) {
	w.Helper()
	var f handoff.Frame
	w.both("next", func(l *link) any {
		var h heard
		h.OK, h.Err = l.Next(&h.Frame)
		if !h.OK {
			h.Frame = handoff.Frame{}
		}
		ok, f = h.OK, h.Frame
		return h
	})
	if ok && f.Type == handoff.Listen {
		w.asks = append(w.asks, f.Seq)
	}
	return ok
}

// hear takes all that has come.
func (w *twins) hear() {
	w.Helper()
	for {
		for w.next() {
		}
		var last error
		w.err("receive", func(l *link) error { last = l.Receive(); return last })
		if last != nil {
			return
		}
	}
}

// answer answers a request: with a listener, a shared one, or an error.
func (w *twins) answer() {
	if len(w.asks) == 0 {
		return
	}
	i := w.rng.IntN(len(w.asks))
	f := handoff.Frame{Type: handoff.Listening, Seq: w.asks[i], Payload: []byte("tcp\x00[::]:80"), Data: []byte(`{"ticketKeys":"00ff"}`)}
	w.asks = slices.Delete(w.asks, i, i+1)
	var share handoff.FD
	switch w.rng.IntN(5) {
	case 0:
		f.Arg = 13
	case 1, 2:
		f.Flags, share = handoff.ListeningShared, w.files[0]
		fallthrough
	default:
		if w.wire == 0 || w.rng.IntN(4) > 0 {
			w.wire++
		}
		f.Listener = w.wire
	}
	var last error
	w.err("answer", func(l *link) error { last = l.Send(&f, share); return last })
	if isErrno(last, unix.EAGAIN) {
		w.asks = append(w.asks, f.Seq)
	}
}

// workerThinks finds something to say.
func (w *twins) workerThinks() {
	var text string
	switch n := w.rng.IntN(40); {
	case n < 12 && len(w.under) > 0:
		n := w.under[0]
		w.under = w.under[1:]
		if w.rng.IntN(3) == 0 {
			text = nack
			break
		}
		if n >= 0 {
			w.owes = append(w.owes, n)
		}
		text = handleAck
	case n < 22 && len(w.owes) > 0:
		i := w.rng.IntN(len(w.owes))
		text = accepted(w.owes[i], w.rng.IntN(3) > 0)
		w.owes = slices.Delete(w.owes, i, i+1)
	case n < 24 && len(w.under) > 0 && w.under[0] >= 0: // before it has acknowledged it
		text = accepted(w.under[w.rng.IntN(len(w.under))], true)
	case n < 29:
		w.asked++
		text = query(w.asked, `"data":{"ticketKeys":"`+strings.Repeat("0", w.rng.IntN(500))+`"},"address":null,"addressType":4,"port":`+strconv.Itoa(80+w.rng.IntN(2)))
	case n < 30:
		text = query(w.asked, `"port":-1`)
	case n < 31:
		text = closes(strconv.Itoa(w.rng.IntN(int(w.wire) + 2)))
	case n < 32:
		text = listening
	case n < 33:
		text = ready
	case n < 35:
		text = `{"cmd":"NODE_HANDLE","type":"net.Socket"}` + "\n" + `{"cmd":"NODE_SOCKET_GET_COUNT","key":"k"}` + "\n"
	case n < 36:
		text = `"` + strings.Repeat("long ", w.rng.IntN(10_000)) + `"` + "\n"
	case n < 37:
		text = []string{handleAck, nack, accepted(w.rng.IntN(30), true)}[w.rng.IntN(3)] // a lie
	case n < 38 && w.rng.IntN(4) == 0:
		text = goAway
	default:
		text = fmt.Sprintf(`{"user":%d}`+"\n", w.rng.IntN(1000))
	}
	w.pend = append(w.pend, text...)
}

// workerSays writes up to n bytes of it.
func (w *twins) workerSays(n int) {
	b := w.pend[:min(n, len(w.pend))]
	if len(b) == 0 {
		return
	}
	said := 0
	w.both("the worker says", func(l *link) any {
		n, errno := unixmsg.Send(l.end.Num(), b, nil)
		if errno == unix.EAGAIN {
			n = 0
		} else if errno != 0 {
			l.Fatal(errno)
		}
		said = n
		return n
	})
	w.pend = w.pend[said:]
}

var numbered = regexp.MustCompile(`"act":"newconn",.*"seq":(\d+)}}$`)

func (w *twins) workerReads() {
	var lines []string
	w.both("the worker reads", func(l *link) any {
		lines = l.read()
		return lines
	})
	w.both("with descriptors", func(l *link) any {
		var which []int
		for _, d := range l.got {
			which = append(which, slices.IndexFunc(w.files, func(f handoff.FD) bool { return sameFile(l, f, d) }))
		}
		l.closeGot()
		return which
	})
	for _, line := range lines {
		switch m := numbered.FindStringSubmatch(line); {
		case m != nil:
			n, _ := strconv.Atoi(m[1])
			w.under = append(w.under, n)
		case strings.Contains(line, `"NODE_HANDLE",`):
			w.under = append(w.under, -1)
		}
	}
}

func (w *twins) restore() {
	l := w.links[1]
	l.Conn = restored(w, l.Conn)
	s := l.State()
	met := func(what string, is bool) { w.met[what] = w.met[what] || is }
	met("half a line", len(s.Input) > 0 && !strings.Contains(string(s.Input), "\n"))
	met("complete lines", strings.Contains(string(s.Input), "\n"))
	met("skipping", s.Skipping)
	met("unsent", len(s.Unsent) > 0)
	met("arrived", s.Arrived > 0)
	met("on their way", s.Arrived < len(s.Under))
	for _, h := range s.Under {
		met("done", h.Done && !h.Fence)
		met("shared", h.Share != nil)
		met("shared, lost", h.Share != nil && h.Share.Tries > 0)
		met("fence done", h.Fence && h.Done)
	}
	met("held", l.Held())
	met("again", len(s.Again) > 0)
	met("asked", len(s.Asked) > 0)
	met("open", len(s.Open) > 0)
	met("left", len(s.Left) > 0)
	met("said ready", s.SaidReady)
	met("ready", s.Ready && !s.SaidReady)
	met("listening", s.Listening && !s.SaidReady)
	met("bye", s.Bye)
	met("may leave", len(s.MayLeave) > 0)
	met("fence waits", s.FenceWaits)
	met("drain "+s.Drain, true)
	if runtime.GOOS == "linux" { // elsewhere nobody says who sends
		met("watched", s.Watched)
		met("sender", s.Sender > 0)
	}
}

// A conversation is the same whether the master's end is restored or not, and as
// often as that may be.
func TestRestoredConverses(t *testing.T) {
	leakcheck.Check(t)
	met := map[string]bool{}
	for seed := range uint64(100) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) { walk(t, seed, met) })
	}
	for what, is := range met {
		if !is {
			t.Errorf("never restored with %s", what)
		}
	}
	for _, step := range drainNames {
		if !met["drain "+step] {
			t.Errorf("never restored with drain %q", step)
		}
	}
}

func walk(t *testing.T, seed uint64, met map[string]bool) {
	w := &twins{TB: t, rng: rand.New(rand.NewPCG(seed, 2)), look: seed%2 == 0, met: met}
	for range 3 {
		w.files = append(w.files, openFile(t))
	}
	for i := range w.links {
		l := bareLink(t, Config{ReadyOnMessage: seed%3 == 0})
		t.Cleanup(func() { _ = l.Conn.Close() }) // the last of them
		w.links[i] = l
	}
	for range 200 {
		w.step()
		w.alike()
		if w.rng.IntN(3) == 0 {
			w.restore()
		}
	}
	// The worker dies, with something still to be sent or to be read, such as
	// shared sockets once more.
	w.pend = append(append(w.pend, '\n'), strings.Repeat(nack, int(seed%4))...)
	w.workerSays(len(w.pend))
	w.hear()
	for _, l := range w.links {
		_ = l.end.Close()
	}
	w.err("flush", func(l *link) error { return l.Flush() })
	w.restore()
	w.hear()
	w.err("the end", func(l *link) error { return l.Receive() })
	w.alike()
	w.restore()
	w.err("close", func(l *link) error { return l.Conn.Close() })
}
