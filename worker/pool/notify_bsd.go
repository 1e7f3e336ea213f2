//go:build unix && !linux

package pool

import (
	"errors"

	"rrd/handoff"
)

// listenNotify offers no NOTIFY_SOCKET here: sd_notify is systemd's, and there are
// no credentials to check on a datagram. Config.ReadyAfter decides.
func listenNotify() (notifySource, error) { return nil, nil }

func adoptNotify(handoff.FD) (notifySource, error) {
	return nil, errors.New("there are no notify sockets on this system")
}
