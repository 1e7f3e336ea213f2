package dispatcher

import "golang.org/x/sys/unix"

// reusePort does not balance on darwin; cmd/rrd warns.
const reusePort = unix.SO_REUSEPORT
