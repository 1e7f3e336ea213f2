// Package unixmsg is what every dialect of the channel needs of the kernel:
// messages over a unix socket that do not block and do not allocate, descriptors
// that ride along, and who sent them. Errors are bare errnos. It owns no
// descriptor: what it is given is lent for the call.
package unixmsg

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Rights is a control buffer, prepared once and filled with numbers before each
// send.
type Rights struct {
	buf []byte
}

// NewRights makes room for up to n descriptors.
func NewRights(n int) Rights {
	return Rights{buf: make([]byte, unix.CmsgSpace(n*4))}
}

// Put writes the k-th number.
func (r *Rights) Put(k, fd int) {
	binary.NativeEndian.PutUint32(r.buf[unix.CmsgLen(0)+4*k:], uint32(fd))
}

// Set makes the control data for the first n of the numbers that were put.
func (r *Rights) Set(n int) []byte {
	h := (*unix.Cmsghdr)(unsafe.Pointer(unsafe.SliceData(r.buf)))
	h.Level = unix.SOL_SOCKET
	h.Type = unix.SCM_RIGHTS
	h.SetLen(unix.CmsgLen(n * 4))
	return r.buf[:unix.CmsgSpace(n*4)]
}
