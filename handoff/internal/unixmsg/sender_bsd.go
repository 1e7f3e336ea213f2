//go:build darwin || freebsd || netbsd || openbsd || dragonfly

package unixmsg

// Sender is not told here: its methods do nothing.
type Sender struct{}

// RestoreSender has nothing to restore.
func RestoreSender(bool, int) Sender { return Sender{} }

// Watched reports false.
func (s *Sender) Watched() bool { return false }

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
