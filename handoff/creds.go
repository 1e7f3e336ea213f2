package handoff

// Who reads the worker's end need not be the process that the master started:
// under "sh -c COMMAND" it is the shell's child. Linux says who sent a message;
// elsewhere the process that was started is taken for the reader.

// WatchSender makes Receive note who sent each message, until IgnoreSender. A
// descriptor that a kernel without SO_PASSRIGHTS lets through is closed there.
func (c *Conn) WatchSender() error { return c.sender.Watch(c.fd.Num()) }

// IgnoreSender ends WatchSender.
func (c *Conn) IgnoreSender() error { return c.sender.Ignore(c.fd.Num()) }

// Sender returns the process that sent the last message under WatchSender, as a
// pid in the master's namespace; 0 if it is not known.
func (c *Conn) Sender() int { return c.sender.PID() }
