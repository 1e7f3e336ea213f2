//go:build unix && !linux

package pool

// resetThread does nothing here. darwin has no no_new_privs and FreeBSD's
// (procctl(2)) is left out; signal mask and ignored signals are those the master was
// started with, as Go offers no way to set them there.
func resetThread() error { return nil }

// dropCapabilities: there are none.
func dropCapabilities() error { return nil }
