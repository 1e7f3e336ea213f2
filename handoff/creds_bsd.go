//go:build darwin || freebsd || netbsd || openbsd || dragonfly

package handoff

// The sender of a message is not told here: the process that was started is
// taken for the reader.

// WatchSender does nothing.
func (c *Conn) WatchSender() error { return nil }

// IgnoreSender does nothing.
func (c *Conn) IgnoreSender() error { return nil }

// Sender returns 0: not known.
func (c *Conn) Sender() int { return 0 }

func (c *Conn) noteSender([]byte) {}
