//go:build darwin || freebsd || netbsd || openbsd || dragonfly

package unixmsg

// Sender is not told here: its methods do nothing.
type Sender struct{}

// Watch does nothing.
func (s *Sender) Watch(int) error { return nil }

// Ignore does nothing.
func (s *Sender) Ignore(int) error { return nil }

// PID returns 0: not known.
func (s *Sender) PID() int { return 0 }

// Buf returns nil: nothing is noted.
func (s *Sender) Buf() []byte { return nil }

// Note does nothing.
func (s *Sender) Note(int) {}
