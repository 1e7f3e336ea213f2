//go:build unix && !linux

package pool

// listenNotify offers no NOTIFY_SOCKET here: sd_notify is systemd's, and there are
// no credentials to check on a datagram. Config.ReadyAfter decides.
func listenNotify() (notifySource, error) { return nil, nil }
