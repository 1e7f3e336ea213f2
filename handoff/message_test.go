package handoff

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// Every byte of a frame, so that a change of the layout is seen.
func TestLayout(t *testing.T) {
	f := Frame{
		Type: Listening, Flags: 0x0201, Seq: 0x0807060504030201,
		Listener: 0x14131211, Arg: 0x24232221, Payload: []byte("tcp\x00:80"),
	}
	want := "52524402" + "03" + "00" + "0102" + "0102030405060708" + "11121314" + "21222324" + "07000000" +
		strings.Repeat("00", 36) + hex.EncodeToString([]byte("tcp\x00:80"))
	if got := hex.EncodeToString(f.Append(nil)); got != want {
		t.Errorf("frame is\n%s, want\n%s", got, want)
	}
}

// A worker writes in the version of an older master.
func TestOlderVersion(t *testing.T) {
	b := (&Frame{Type: Ping, Version: OldestVersion}).Append(nil)
	if b[3] != OldestVersion {
		t.Errorf("version %d, want %d", b[3], OldestVersion)
	}
	f := Frame{Version: 9}
	if _, err := Decode(&f, b, true); err != nil || f.Version != 0 {
		t.Errorf("decoded version %d, %v", f.Version, err)
	}
}

func TestPutClearsWhatIsUnused(t *testing.T) {
	b := bytes.Repeat([]byte{0xff}, FrameSize)
	(&Frame{Type: Ping}).Put(b)
	if b[5] != 0 || !bytes.Equal(b[24:], make([]byte, 40)) {
		t.Errorf("unused bytes are not zero: %x", b)
	}
}

var someFrames = []Frame{
	{Type: Hello, Arg: ProtocolVersion, Flags: HelloTouches, Seq: 30_000},
	{Type: Handoff, Seq: math.MaxUint64, Listener: math.MaxUint32, Arg: 2},
	{Type: Listening, Flags: ListeningShared | ListeningPacket, Seq: 7, Listener: 3, Payload: []byte("udp\x00[::]:53")},
	{Type: Drain},
	{Type: Ping, Seq: 1},
	{Type: Ready},
	{Type: Ack, Seq: 9},
	{Type: Reject, Seq: 9, Arg: uint32(ReasonFDLimit)},
	{Type: Again, Listener: 1},
	{Type: Listen, Seq: 1, Arg: 511, Payload: bytes.Repeat([]byte{0xff}, MaxPayload)},
	{Type: Leave, Listener: 1},
	{Type: Drained},
	{Type: Pong, Seq: 1},
	{Type: Bye},
	{Type: Touched, Seq: 9},
	{Type: Closed, Arg: math.MaxUint32},
	{Type: Health, Arg: 1},
	{Type: Tickets, Seq: 2, Arg: MaxTicketKeys, Payload: bytes.Repeat([]byte{7}, MaxTicketKeys*TicketKeySize)},
	{Type: AskTickets},
	{Type: 255, Flags: math.MaxUint16},
}

func TestEncodeThenDecode(t *testing.T) {
	for _, want := range someFrames {
		t.Run(want.Type.String(), func(t *testing.T) {
			var got Frame
			rest, err := Decode(&got, want.Append(nil), true)
			if err != nil || len(rest) > 0 {
				t.Fatalf("%v, %d bytes left", err, len(rest))
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// Any batch of frames without payload comes back as it was, and any one with a
// payload.
func TestEncodeThenDecodeAny(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		frame := rapid.Custom(func(t *rapid.T) Frame {
			return Frame{
				Type:     Type(rapid.Uint8().Draw(t, "type")),
				Flags:    rapid.Uint16().Draw(t, "flags"),
				Seq:      rapid.Uint64().Draw(t, "seq"),
				Listener: rapid.Uint32().Draw(t, "listener"),
				Arg:      rapid.Uint32().Draw(t, "arg"),
			}
		})
		frames := rapid.SliceOfN(frame, 1, MaxFrames).Draw(t, "frames")
		if rapid.Bool().Draw(t, "with payload") {
			frames = frames[:1]
			frames[0].Type = rapid.SampledFrom([]Type{Hello, Listen, Listening, Tickets}).Draw(t, "type")
			frames[0].Payload = rapid.SliceOfN(rapid.Byte(), 1, MaxPayload).Draw(t, "payload")
		}
		b := encode(frames...)
		var got []Frame
		for first := true; len(b) > 0; first = false {
			var f Frame
			rest, err := Decode(&f, b, first)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, f)
			b = rest
		}
		if d := cmp.Diff(frames, got); d != "" {
			t.Fatal(d)
		}
	})
}

// badMessages are what a worker must not send, with what it is told by.
func badMessages() map[string]struct {
	msg  []byte
	want error
} {
	with := func(b []byte, at int, v byte) []byte {
		b[at] = v
		return b
	}
	ack := func() []byte { return encode(Frame{Type: Ack}) }
	listen := func() []byte { return encode(Frame{Type: Listen, Payload: []byte("tcp\x00:80")}) }
	return map[string]struct {
		msg  []byte
		want error
	}{
		"one byte":                 {[]byte("R"), ErrLength},
		"short frame":              {ack()[:FrameSize-1], ErrLength},
		"frame and a half":         {append(ack(), ack()[:32]...), ErrLength},
		"17 frames":                {bytes.Repeat(ack(), MaxFrames+1), ErrLength},
		"other magic":              {with(ack(), 2, 'd'), ErrMagic},
		"other magic in 2nd frame": {with(append(ack(), ack()...), FrameSize, 0), ErrMagic},
		"version 0":                {with(ack(), 3, 0), ErrMagic},
		"payload on an ack":        {encode(Frame{Type: Ack, Payload: []byte("x")}), ErrPayload},
		"payload in 2nd frame":     {append(ack(), listen()...), ErrPayload},
		"frame behind a payload":   {append(listen(), ack()...), ErrLength},
		"payload cut":              {listen()[:FrameSize+3], ErrLength},
		"payload absent":           {listen()[:FrameSize], ErrLength},
		"payload too long":         {encode(Frame{Type: Listen, Payload: make([]byte, MaxPayload+1)})[:MaxMessage], ErrLength},
		"payload of 4 GiB":         {with(with(with(with(listen(), 24, 255), 25, 255), 26, 255), 27, 255), ErrLength},
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, c := range badMessages() {
		t.Run(name, func(t *testing.T) {
			if name == "17 frames" {
				t.Skip("Decode sees one frame; who reads the message counts them")
			}
			b, first := c.msg, true
			var err error
			for len(b) > 0 && err == nil {
				var f Frame
				b, err = Decode(&f, b, first)
				first = false
			}
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// Room for later versions: what a reader does not know it ignores.
func TestDecodeIgnoresWhatLaterVersionsMayUse(t *testing.T) {
	b := encode(Frame{Type: Ack, Seq: 5})
	b[3], b[5] = 200, 1
	for i := 28; i < FrameSize; i++ {
		b[i] = byte(i)
	}
	var f Frame
	if _, err := Decode(&f, b, true); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Frame{Type: Ack, Seq: 5}, f); d != "" {
		t.Error(d)
	}
}

func TestNames(t *testing.T) {
	for typ, want := range map[Type]string{Hello: "HELLO", Closed: "CLOSED", Health: "HEALTH", 0: "UNKNOWN", 7: "UNKNOWN", 28: "UNKNOWN", 255: "UNKNOWN"} {
		if got := typ.String(); got != want {
			t.Errorf("type %d is %s, want %s", typ, got, want)
		}
	}
	for r, want := range map[Reason]string{
		ReasonBusy: "busy", ReasonDraining: "draining", ReasonFDLimit: "fd_limit",
		ReasonClosed: "closed", ReasonOther: "other", 0: "other", math.MaxUint32: "other",
	} {
		if got := r.String(); got != want {
			t.Errorf("reason %d is %s, want %s", r, got, want)
		}
	}
}

// FuzzDecode takes any message apart. What decodes is, written again, the same
// bytes, but for those that a reader ignores.
func FuzzDecode(f *testing.F) {
	for _, c := range badMessages() {
		f.Add(c.msg)
	}
	for _, frame := range someFrames {
		f.Add(frame.Append(nil))
	}
	f.Add(encode(someFrames[3:9]...))
	f.Fuzz(func(t *testing.T, msg []byte) {
		b := msg
		for first := true; len(b) > 0; first = false {
			var f Frame
			rest, err := Decode(&f, b, first)
			if err != nil {
				return
			}
			canonical := bytes.Clone(b[:len(b)-len(rest)])
			canonical[3], canonical[5] = ProtocolVersion, 0
			clear(canonical[28:FrameSize])
			if again := f.Append(nil); !bytes.Equal(again, canonical) {
				t.Fatalf("%+v is\n%x again, was\n%x", f, again, canonical)
			}
			b = rest
		}
	})
}
