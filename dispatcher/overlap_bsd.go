//go:build darwin || freebsd

package dispatcher

// sealPort has nothing to do: only sockets that have the option share a port here.
func sealPort(string, string) error { return nil }

func maySeal() bool { return true }
