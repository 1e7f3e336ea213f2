package pool

import (
	"strings"
	"time"

	"rrd/handoff"
)

// notifySource is where the processes of one worker say that they are ready.
type notifySource interface {
	// name is the value of NOTIFY_SOCKET.
	name() string
	// receive waits for the next message and says whether it was READY=1 of a
	// process in the group of leader. The error is that of a closed source.
	receive(leader int) (ready bool, err error)
	// SetReadDeadline interrupts receive, with time.Time{} no more.
	SetReadDeadline(time.Time) error
	// fd lends the descriptor.
	fd() handoff.FD
	Close() error
}

// saysReady looks for READY=1 among the lines of a message (sd_notify(3)).
func saysReady(message string) bool {
	for line := range strings.Lines(message) {
		if strings.TrimSuffix(line, "\n") == "READY=1" {
			return true
		}
	}
	return false
}
