package handoff

import (
	"encoding/binary"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"rrd/handoff/internal/unixmsg"
	"rrd/test/leakcheck"
)

// control writes one control message with the numbers of files.
func control(level, typ int32, files []FD) []byte {
	b := make([]byte, unix.CmsgSpace(4*len(files)))
	h := (*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(b)))
	h.Level, h.Type = level, typ
	h.SetLen(unix.CmsgLen(4 * len(files)))
	for i := range files {
		binary.NativeEndian.PutUint32(b[unix.CmsgLen(0)+4*i:], uint32(files[i].Release()))
	}
	return b
}

func TestRightsRoundTrip(t *testing.T) {
	leakcheck.Check(t)
	for n := range MaxFrames + 1 {
		r := unixmsg.NewRights(MaxFrames)
		for k := range n {
			r.Put(k, 1000+k)
		}
		var fds [MaxFrames]FD
		if got := takeRights(r.Set(n), &fds); got != n {
			t.Errorf("%d put, %d taken", n, got)
		}
		for k := range n {
			if fds[k].Release() != 1000+k {
				t.Errorf("descriptor %d of %d is another", k, n)
			}
		}
	}
}

// More than fit are closed, in one control message or in several.
func TestSurplusRightsAreClosed(t *testing.T) {
	for name, sizes := range map[string][]int{"one message": {20}, "two messages": {9, 9}, "three": {16, 1, 16}} {
		t.Run(name, func(t *testing.T) {
			leakcheck.Check(t)
			var oob []byte
			for _, n := range sizes {
				oob = append(oob, control(unix.SOL_SOCKET, unix.SCM_RIGHTS, openFiles(t, n))...)
			}
			var fds [MaxFrames]FD
			if n := takeRights(oob, &fds); n != MaxFrames {
				t.Errorf("took %d", n)
			}
			for i := range fds {
				if err := fds[i].Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestTakeRightsIsBoundedByWhatCame(t *testing.T) {
	leakcheck.Check(t)
	whole := control(unix.SOL_SOCKET, unix.SCM_RIGHTS, []FD{Own(1001), Own(1002), Own(1003)})
	other := control(unix.SOL_SOCKET, unix.SCM_RIGHTS+1, []FD{Own(1001)})
	length := func(v int) []byte {
		b := append([]byte(nil), whole...)
		(*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(b))).SetLen(v)
		return b
	}
	for name, c := range map[string]struct {
		oob  []byte
		want int
	}{
		"nothing":                {nil, 0},
		"half a header":          {whole[:unix.CmsgLen(0)/2], 0},
		"only a header":          {whole[:unix.CmsgLen(0)], 0},
		"cut, length as before":  {whole[:unix.CmsgLen(8)], 2},
		"cut inside a number":    {whole[:unix.CmsgLen(6)], 1},
		"length of the whole":    {length(len(whole)), len(whole[unix.CmsgLen(0):]) / 4},
		"length below a header":  {length(1), 0},
		"length negative":        {length(-1), 0},
		"length beyond the data": {length(1<<31 - 1), len(whole[unix.CmsgLen(0):]) / 4},
		"another kind":           {other, 0},
		"another kind before":    {append(other, whole...), 3},
	} {
		t.Run(name, func(t *testing.T) {
			var fds [MaxFrames]FD
			if n := takeRights(c.oob, &fds); n != c.want {
				t.Errorf("took %d, want %d", n, c.want)
			}
		})
	}
}
