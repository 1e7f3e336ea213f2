package handoff

import (
	"fmt"
	"os"
	"strconv"
)

// FD owns one descriptor. The zero FD owns nothing. An FD is not copied by who
// keeps it: the variable that holds it is the owner, and Close or Release
// empties that variable. It is a plain value so that a table of ten thousand
// connections holds no pointer.
type FD struct {
	n int32 // the number plus one, so that the zero value is "none"
}

// Own makes fd's owner. The caller gives the number up.
func Own(fd int) FD { return FD{n: int32(fd) + 1} }

// Valid reports whether there is a descriptor.
func (d FD) Valid() bool { return d.n > 0 }

// Num lends the number, for a system call that does not keep it; -1 if there is
// none.
func (d FD) Num() int { return int(d.n) - 1 }

// Release gives ownership up and returns the number.
func (d *FD) Release() int {
	fd := d.Num()
	d.n = 0
	return fd
}

// Close closes the descriptor, once: a second call does nothing. An error of
// close(2) is returned for the record, the descriptor is gone all the same.
func (d *FD) Close() error {
	if d.n <= 0 {
		return nil
	}
	if errno := closeFD(d.Release()); errno != 0 {
		return errno
	}
	return nil
}

// MarshalJSON writes the number, for a state that crosses exec(2) in one process:
// there the number stays. -1 is none. The FD stays the owner.
func (d FD) MarshalJSON() ([]byte, error) { return strconv.AppendInt(nil, int64(d.Num()), 10), nil }

// UnmarshalJSON makes d the owner of a descriptor by its number.
func (d *FD) UnmarshalJSON(b []byte) error {
	n, err := strconv.ParseInt(string(b), 10, 32)
	if err != nil || n < -1 || n == 1<<31-1 {
		return fmt.Errorf("descriptor %q: not a number from -1", b)
	}
	*d = Own(int(n))
	return nil
}

// Dup makes another descriptor for the same open file, close-on-exec, with an
// owner of its own.
func (d FD) Dup() (FD, error) {
	n, errno := dupFD(d.Num())
	if errno != 0 {
		return FD{}, os.NewSyscallError("fcntl", errno)
	}
	return Own(n), nil
}
