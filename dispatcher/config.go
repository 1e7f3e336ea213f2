package dispatcher

import "os"

// ListenerConfig describes one listener of --listen.
type ListenerConfig struct {
	// Name labels the listener in metrics and logs and is what a worker may ask
	// for: NAME of NAME=ADDR, else the address as it was given, never the
	// resolved port.
	Name string
	// Network is "tcp" (dual stack), "tcp4", "tcp6", "unix", "udp", "udp4",
	// "udp6" or "fd".
	Network string
	// Address is host:port, a path, or for "fd" the number or activation name.
	Address string
	// Backlog is the listen(2) backlog; 0 means the system's maximum.
	Backlog int
	// Mode is the mode of a unix socket file; nil means 0777 less the umask.
	Mode *os.FileMode
	// UID and GID own a unix socket file; -1 leaves them alone.
	UID, GID int
	// File is the inherited socket of an "fd" listener. Listen takes ownership.
	File *os.File
}
