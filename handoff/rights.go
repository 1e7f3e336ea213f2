package handoff

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// rightsSpace is the control buffer for MaxFrames descriptors. The kernel rounds
// it up, so one more than asked for may arrive on 64-bit systems (tried: room
// for one is room for two); takeRights closes every surplus.
var rightsSpace = unix.CmsgSpace(MaxFrames * 4)

// takeRights moves the descriptors in the control data into fds, in order, and
// closes what does not fit. It returns how many it stored. The walk is bounded
// by the data that came, not by lengths in it: darwin keeps the untruncated
// length in the header of a truncated message.
func takeRights(oob []byte, fds *[MaxFrames]FD) int {
	n := 0
	hdr := unix.CmsgLen(0)
	for len(oob) >= hdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(oob)))
		size := int(h.Len)
		if size < hdr {
			break
		}
		data := oob[hdr:min(size, len(oob))]
		if h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_RIGHTS {
			for ; len(data) >= 4; data = data[4:] {
				d := Own(int(int32(binary.NativeEndian.Uint32(data))))
				if n == len(fds) {
					_ = d.Close()
					continue
				}
				fds[n] = d
				n++
			}
		}
		if size >= len(oob) {
			break
		}
		oob = oob[min(unix.CmsgSpace(size-hdr), len(oob)):]
	}
	return n
}
