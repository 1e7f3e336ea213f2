//go:build unix && !linux

package pool

// resetThread does nothing here. There is no no_new_privs on darwin, and signal mask and
// ignored signals are what the master was started with: Go offers no way to set
// them that does not go through libc.
func resetThread() error { return nil }
