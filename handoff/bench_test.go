package handoff

import (
	"fmt"
	"testing"

	"rrd/test/leakcheck"
)

func BenchmarkPut(b *testing.B) {
	b.ReportAllocs()
	var buf [FrameSize]byte
	f := Frame{Type: Handoff, Seq: 1, Listener: 2, Arg: 3}
	for b.Loop() {
		f.Put(buf[:])
	}
}

func BenchmarkDecode(b *testing.B) {
	b.ReportAllocs()
	msg := encode(make([]Frame, MaxFrames)...)
	frames := 0
	for b.Loop() {
		var f Frame
		rest, first := msg, true
		for len(rest) > 0 {
			var err error
			if rest, err = Decode(&f, rest, first); err != nil {
				b.Fatal(err)
			}
			first = false
			frames++
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(frames), "ns/frame")
}

// BenchmarkHandoff sends a batch, receives it as a worker does in the same thread,
// acks, and reads the acks: everything that the channel costs both sides, without
// a switch between processes.
func BenchmarkHandoff(b *testing.B) {
	for kind, pair := range kinds {
		for _, batch := range []int{1, 4, MaxFrames} {
			b.Run(fmt.Sprintf("%s/batch=%d", kind, batch), func(b *testing.B) {
				leakcheck.Check(b)
				b.ReportAllocs()
				master, child, err := pair()
				if err != nil {
					b.Fatal(err)
				}
				defer master.Close()
				end := Own(dupOf(b, child))
				defer end.Close()
				_ = child.Close()
				file := openFiles(b, 1)[0]
				w := newRawWorker(end.Num(), batch)
				for b.Loop() {
					for i := range batch {
						master.Add(uint64(i), 0, 0, file)
					}
					if err := master.Flush(); err != nil {
						b.Fatal(err)
					}
					w.answer(b)
					if n := countFrames(b, master); n != batch {
						b.Fatalf("%d acks", n)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/handoff")
			})
		}
	}
}
